"""Use, assume, ignore or refuse the keys of a published configuration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vavae.checkpoints.published import Ignored, describe_ignored, indented
from vavae.config import flat
from vavae.errors import UserError

Command = Literal["train-dit", "train-tokenizer", "sample"]
PRECISIONS = {"32": "fp32", "32-true": "fp32", "fp32": "fp32", "no": "fp32", "bf16": "bf16", "bf16-mixed": "bf16"}
_SECTIONS = ("data", "vae", "model", "train", "optimizer", "transport", "sample", "lightning", "args")
# Keys of diffusion with discrete steps only.
DISCRETE = frozenset(
    [
        *("timesteps", "linear_start", "linear_end", "beta_schedule", "noise_schedule", "diffusion_steps"),
        *("num_train_timesteps", "num_diffusion_timesteps", "timestep_respacing"),
    ]
)
# Words in the names of keys that do not change the training.
_HARMLESS = frozenset(
    [
        *("log", "logs", "logger", "logging", "wandb", "tensorboard", "print", "progress", "project", "entity"),
        *("save", "eval", "fid", "validation", "valid", "check", "sanity", "monitor", "debug", "profile", "profiler"),
        *("workers", "pin", "prefetch", "persistent", "accelerator", "strategy", "benchmark", "callbacks"),
    ]
)
# Sections that do not change it: sampling, the tokenizer (its folder is an option), logs and measurements.
_FREE = (
    *("sample.", "eval.", "vae.", "wandb.", "logging.", "lightning.callbacks.", "lightning.modelcheckpoint."),
    *("lightning.logger.", "data.params.validation.", "data.params.test."),
)


@dataclass(frozen=True)
class ConvertedRecipe:
    """A recipe of ours from a published configuration."""

    command: Command
    values: dict[str, Any]  # its keys and values
    taken: tuple[str, ...] = ()  # keys of the file that were used, by sections
    assumed: tuple[str, ...] = ()  # keys that the file lacks, with the assumed values, by sections
    ignored: tuple[Ignored, ...] = ()  # keys that do not change the training

    def lines(self, width: int = 80) -> list[str]:
        """Return the keys that were taken over, assumed and left out, in lines of at most `width` characters."""
        texts = [
            f"{word} {text}"
            for word, parts in (("taken over", self.taken), ("assumed", self.assumed))
            for text in parts
        ]
        return indented([*texts, *describe_ignored(self.ignored)], width)


@dataclass
class Keys:
    """The keys of a configuration by their dotted names, and their use."""

    content: Any
    source: str | Path  # the file, for messages
    values: dict[str, Any] = field(default_factory=dict)  # its keys and values
    used: list[str] = field(default_factory=list)  # keys that were read
    assumed: dict[str, Any] = field(default_factory=dict)  # missing keys that were read, with their defaults

    def __post_init__(self) -> None:
        if not isinstance(self.content, Mapping):
            raise UserError(f"{self.source}: must have keys, got {self.content!r}")
        for name in _SECTIONS:
            if not isinstance(self.content.get(name) or {}, Mapping):
                raise UserError(f"{self.source}: {name} must have keys, got {self.content[name]!r}")
        self.values = flat(self.content)

    def given(self, key: str, default: Any) -> Any:
        """Return a value in the default's type, or the default, which is not listed."""
        if key not in self.values:
            return default
        self.used.append(key)
        value, wanted = self.values[key], type(default)
        try:
            return _typed(value, wanted)
        except (TypeError, ValueError, OverflowError) as error:
            found = "nothing" if value is None else repr(value)
            raise UserError(f"{self.source}: {key} must be of type {wanted.__name__}, got {found}") from error

    def get(self, key: str, default: Any) -> Any:
        """Return a value in the default's type, or the default, which is listed as assumed."""
        if key not in self.values:
            self.assumed[key] = default
        return self.given(key, default)

    def table(self, rows: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
        """Return our keys with the values of the file's keys."""
        return {ours: self.get(key, default) for ours, (key, default) in rows.items()}

    def choose(self, key: str, default: str, names: Mapping[str, Any]) -> Any:
        """Return the value of a name among `names`."""
        value = self.get(key, default).lower()
        if value not in names:
            raise UserError(f"{self.source}: {key} must be one of {', '.join(names)}, got {value}")
        return names[value]

    def fixed(self, rows: Mapping[str, Any]) -> None:
        """Refuse other values of keys that can have one value only."""
        for key, wanted in rows.items():
            if self.values.get(key, wanted) != wanted:
                raise UserError(f"{self.source}: {key} must be {wanted}, got {self.values[key]}")
            self.used += [key] if key in self.values else []

    def rest(self, reasons: Mapping[str, str]) -> tuple[Ignored, ...]:
        """Return the keys that were not read, with reasons.

        Raises:
            UserError: One of them could change the training.
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
                discrete = key.rpartition(".")[2] in DISCRETE
                reason = (
                    "it belongs to diffusion with discrete steps, and only flows are trained here"
                    if discrete
                    else "it is not known, and may change what is trained"
                )
                raise UserError(f"{self.source}: {key} must be left out, got {value!r}: {reason}")
            left.append(Ignored(key, 1, why))
        return tuple(left)

    def recipe(self, command: Command, values: Mapping[str, Any], reasons: Mapping[str, str]) -> ConvertedRecipe:
        """Return the recipe, and the use of all keys."""
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
    """Return a value in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)
