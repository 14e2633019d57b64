"""Take over, assume, leave out or refuse the keys of a published configuration."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vavae.checkpoints.published import IgnoredSetting, indented, left_out
from vavae.errors import UserError

PRECISIONS = {"32": "fp32", "32-true": "fp32", "fp32": "fp32", "no": "fp32", "bf16": "bf16", "bf16-mixed": "bf16"}
_SECTIONS = ("data", "vae", "model", "train", "optimizer", "transport", "sample", "lightning", "args")
# Names that only a diffusion of discrete steps has.
DISCRETE = frozenset(
    [
        "timesteps",
        "linear_start",
        "linear_end",
        "beta_schedule",
        "noise_schedule",
        "diffusion_steps",
        "num_train_timesteps",
        "num_diffusion_timesteps",
        "timestep_respacing",
    ]
)
# Words in the names of keys that do not change what is trained.
_HARMLESS = frozenset(
    [
        *("log", "logs", "logger", "logging", "wandb", "tensorboard", "print", "progress", "project", "entity"),
        *("save", "eval", "fid", "validation", "valid", "check", "sanity", "monitor", "debug", "profile", "profiler"),
        *("workers", "pin", "prefetch", "persistent", "accelerator", "strategy", "benchmark", "callbacks"),
    ]
)
# Sections of sampling, the tokenizer (its folder is an option), logs and measurements, which do not change it either.
_FREE = (
    *("sample.", "vae.", "wandb.", "logging.", "lightning.callbacks.", "lightning.modelcheckpoint."),
    *("lightning.logger.", "data.params.validation.", "data.params.test."),
)


@dataclass(frozen=True)
class ConvertedRecipe:
    """A recipe of ours from a published configuration.

    Attributes:
        command: The command it is for.
        values: Its keys and values.
        taken: Keys of the file that were taken over, by sections.
        assumed: Keys that the file lacks, with the values that were assumed, by sections.
        left_aside: Keys that do not change what is trained.
    """

    command: Literal["train-dit", "train-tokenizer"]
    values: dict[str, Any]
    taken: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    left_aside: tuple[IgnoredSetting, ...] = ()

    def lines(self, width: int = 80) -> list[str]:
        """Return what was taken over, assumed and left out, in lines of at most `width` characters."""
        texts = [
            f"{word} {text}"
            for word, parts in (("taken over", self.taken), ("assumed", self.assumed))
            for text in parts
        ]
        return indented([*texts, *left_out(self.left_aside)], width)


@dataclass
class Keys:
    """The keys of a configuration by their dotted names, and what became of them.

    Attributes:
        content: The configuration.
        source: The file, for messages.
        values: Its keys and values.
        used: Keys that were read.
        assumed: Keys that were read and are missing, with their defaults.
    """

    content: Any
    source: str | Path
    values: dict[str, Any] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.content, Mapping):
            raise UserError(f"{self.source}: holds {self.content!r}, not keys")
        for name in _SECTIONS:
            if not isinstance(self.content.get(name) or {}, Mapping):
                raise UserError(f"{self.source}: {name} holds {self.content[name]!r}, not keys")
        self.values = dict(flat(self.content))

    def given(self, key: str, default: Any) -> Any:
        """Return a value of the default's type, or the default, which is not listed."""
        if key not in self.values:
            return default
        self.used.append(key)
        value, wanted = self.values[key], type(default)
        try:
            return _typed(value, wanted)
        except (TypeError, ValueError, OverflowError) as error:
            said = "is blank" if value is None else f"is {value!r}, not a {wanted.__name__}"
            raise UserError(f"{self.source}: {key} {said}") from error

    def get(self, key: str, default: Any) -> Any:
        """Return a value of the default's type, or the default, which is then listed as assumed."""
        if key not in self.values:
            self.assumed[key] = default
        return self.given(key, default)

    def table(self, rows: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
        """Return keys of ours with the values of the file's keys."""
        return {ours: self.get(key, default) for ours, (key, default) in rows.items()}

    def choose(self, key: str, default: str, names: Mapping[str, Any]) -> Any:
        """Return the value of a name among `names`."""
        value = self.get(key, default).lower()
        if value not in names:
            raise UserError(f"{self.source}: {key}: {value!r} is not one of {', '.join(names)}")
        return names[value]

    def fixed(self, rows: Mapping[str, Any]) -> None:
        """Refuse values of keys that can have one value only."""
        for key, wanted in rows.items():
            if self.values.get(key, wanted) != wanted:
                raise UserError(f"{self.source}: {key} must be {wanted}, got {self.values[key]}")
            self.used += [key] if key in self.values else []

    def rest(self, reasons: Mapping[str, str]) -> tuple[IgnoredSetting, ...]:
        """Return the keys that were not read, with reasons.

        Raises:
            UserError: One of them changes what is trained.
        """
        left = []
        for key, value in self.values.items():
            if key in self.used or value is None:
                continue
            if key in reasons:
                why = reasons[key]
            elif not value:
                why = "switched off"
            elif key.startswith(_FREE) or _HARMLESS & set(key.rpartition(".")[2].split("_")):
                why = "does not change what is trained"
            else:
                raise UserError(f"{self.source}: {key} must be left out, got {value!r}: {_why_refused(key)}")
            left.append(IgnoredSetting(key, 1, why))
        return tuple(left)

    def recipe(
        self, command: Literal["train-dit", "train-tokenizer"], values: Mapping[str, Any], reasons: Mapping[str, str]
    ) -> ConvertedRecipe:
        """Return the recipe with all that became of the keys."""
        left = self.rest(reasons)
        taken = _by_section((key, "") for key in dict.fromkeys(self.used))
        assumed = _by_section((key, f" {plain(value)}") for key, value in self.assumed.items())
        return ConvertedRecipe(command, _nested(values), taken, assumed, left)


def _by_section(parts: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    sections: dict[str, list[str]] = {}
    for key, text in parts:
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(name + text)
    return tuple(
        f"{section}: {', '.join(names)}" if section else ", ".join(names) for section, names in sections.items()
    )


def flat(values: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dictionaries with their dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        part = nested
        for section in sections:
            part = part.setdefault(section, {})
        part[key] = value
    return nested


def _typed(value: Any, wanted: type) -> Any:
    if isinstance(value, str) and wanted in (int, float):
        value = float(value)  # YAML reads 1e-4 as text
    if value is None or isinstance(value, bool) != (wanted is bool) or isinstance(value, str) != (wanted is str):
        raise TypeError
    if wanted is int and value != int(value):
        raise TypeError
    return wanted(value)


def plain(value: Any) -> str:
    """Return a value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _why_refused(key: str) -> str:
    if key.rpartition(".")[2] in DISCRETE:
        return "it asks for a diffusion of discrete steps, and only flows are trained here"
    return "it is not known, and may change what is trained"
