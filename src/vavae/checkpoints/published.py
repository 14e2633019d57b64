"""Find the state dict of one network in a checkpoint of training code, and list the parts that are left out."""

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vavae.checkpoints.reading import Placeholder
from vavae.errors import UserError
from vavae.tokenizer.statistics import FORMS

Kind = Literal["autoencoder", "decoder", "transformer", "statistics"]
# `auto`, `ema`, `model`, or the name of a set of weights in the file.
Weights = str

# Names of sets of averaged weights: ema, model_ema, state_dict_ema, params_ema, ema_0.9999, …
_AVERAGED = re.compile(r"(^|[_.])(ema|emas|averaged?|swa|shadow)([_.\d]|$)", re.IGNORECASE)
_NETWORK = re.compile(r"(^|\.)(encoder|decoder|x_embedder|blocks|decoder_layers)\.")
# The prefix of these names is the prefix of all names of a network.
_FIRST = re.compile(r"^(.+\.)?(?:encoder\.conv_in|x_embedder\.proj|decoder_embed)\.weight$")
# LDM's averages are among the weights, under names without dots.
_LDM_AVERAGE = re.compile(r"model_ema\.[^.]+$")
# Depth down to which dictionaries of weights are searched.
_MOST_NESTED = 3
_NOT_WEIGHTS = {
    "opt": "state of the optimizer",
    "optimizer": "state of the optimizer",
    "optimizer_states": "state of the optimizers",
    "lr_schedulers": "state of the learning-rate schedules",
    "scaler": "state of the loss scaler",
    "config": "recipe of the training run",
    "args": "options of the training run",
    "hyper_parameters": "options of the training run",
    "callbacks": "state of the trainer",
    "loops": "state of the trainer",
}
# Parts that training adds to an autoencoder, or to a transformer (projectors).
_TRAINING_ONLY = {
    "loss.": "discriminator and perceptual network, used in training only",
    "foundation_model.": "frozen teacher, used in training only",
    "linear_proj.": "projection to the teacher's features, used in training only",
    "projectors.": "projectors to the teacher's features, used in training only",
}
_WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class Ignored:
    """A part of a checkpoint or configuration that was left out."""

    what: str  # its name, or the prefix of its names with a `*`
    count: int  # number of entries
    why: str


@dataclass(frozen=True)
class LoadReport:
    """The loaded and ignored parts of a checkpoint."""

    source: str  # file or folder
    what: str  # the network, in words
    tensors: int  # number of loaded tensors
    parameters: int  # number of values in them
    weights: str = ""  # name of the set of weights; empty if the file is one set
    notes: tuple[str, ...] = ()  # assumptions and changes
    ignored: tuple[Ignored, ...] = ()  # the parts that were left out, with reasons

    def __str__(self) -> str:
        chosen = f" from '{self.weights}'" if self.weights else ""
        lines = [self.what, f"{self.tensors} tensors, {self.parameters:,} numbers loaded{chosen}", *self.notes]
        return "\n".join([f"{self.source}:", *indented([*lines, *describe_ignored(self.ignored)])])


def describe_ignored(parts: Iterable[Ignored]) -> list[str]:
    """Return one text for each reason, with all parts that were left out for it."""
    reasons: dict[str, list[str]] = {}
    for part in parts:
        reasons.setdefault(part.why, []).append(f"{part.what} ({part.count})" if part.count > 1 else part.what)
    return [f"left out {', '.join(names)}: {why}" for why, names in reasons.items()]


def indented(texts: Iterable[str], width: int = 80) -> list[str]:
    """Wrap texts into lines of at most `width` characters, indented by two spaces, continued lines by six."""
    wrap = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
    return [line for text in texts for line in wrap(text, initial_indent="  ", subsequent_indent="      ")]


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """The tensors of one network in a checkpoint."""

    kind: Kind  # the kind of network, or statistics of latents
    tensors: dict[str, Tensor]  # its tensors, without prefixes in their names
    weights: str  # name of the set of weights; empty if the file is one set
    training: Mapping[str, Any]  # the training configuration in the checkpoint, in the sections of LightningDiT's
    ignored: tuple[Ignored, ...]  # the other parts of the checkpoint
    extra: dict[str, Tensor]  # tensors among them that a training can continue from: discriminator and projection
    # Running mean and variance of the batch normalization of latents (REPA-E, FLUX.2), averaged ones if possible.
    batch_norm: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Set:
    """One set of weights in a checkpoint."""

    label: str  # its name; empty if the file is one set
    key: str  # the key of the file under which it is; empty if the file is one set
    averaged: bool  # whether its name says that the weights are averages
    tensors: dict[str, Any]
    rest: tuple[Ignored, ...] = ()  # other parts of the same dictionary


def unwrap(content: Any, source: str | Path, weights: Weights = "auto", kind: Kind | None = None) -> Unwrapped:
    """Find the network in the content of a checkpoint file.

    A set of weights is the file itself, or a dictionary in it with names of our networks. Prefixes of wrappers
    (`module.`, `_orig_mod.`) and one prefix before the whole network (`model.`, `first_stage_model.`) are removed.

    Args:
        content: The result of `read_checkpoint`.
        source: The file, for messages.
        weights: `auto` prefers averaged weights, `ema` and `model` require averaged or plain ones; else the name of a
            set.
        kind: Which network, if the file has several (REPA-E's have `vae` next to a transformer).

    Raises:
        UserError: The set is missing, or its network is neither an autoencoder nor a LightningDiT.
    """
    if not isinstance(content, Mapping):
        what = content.path if isinstance(content, Placeholder) else type(content).__name__
        raise UserError(f"{source}: holds a {what}, not a dictionary of tensors")
    sets = _sets(content, source)
    fitting = [each for each in sets if kind is not None and _kind_of(each.tensors) == kind] or sets
    chosen = _choose(fitting, source, weights)
    ignored = [Ignored(other.label, 1, _of_other(other, fitting)) for other in sets if other is not chosen]
    keys = {each.key for each in sets}
    if chosen.key:
        ignored += [Ignored(str(k), 1, _reason(str(k), v)) for k, v in content.items() if str(k) not in keys]
    ignored += chosen.rest
    tensors, extra = dict(chosen.tensors), dict[str, Tensor]()
    for prefix, why in _TRAINING_ONLY.items():
        names = [name for name in tensors if name.startswith(prefix)]
        if names:
            ignored.append(Ignored(f"{prefix}*", len(names), why))
            extra |= {name: tensors.pop(name) for name in names}
    kept = {name: value for name, value in extra.items() if not name.startswith("foundation_model.")}
    norms = [_below(each.tensors, "bn.") for each in sorted(sets, key=lambda each: not each.averaged)]
    tensors = {name: value for name, value in tensors.items() if not name.startswith("bn.")}
    return Unwrapped(
        _kind(tensors, source),
        tensors,
        chosen.label,
        _training(content),
        tuple(ignored),
        kept,
        next((norm for norm in norms if norm), {}),
    )


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _of_other(other: _Set, fitting: list[_Set]) -> str:
    """Return why a set of weights is left out."""
    if other not in fitting:
        return "another network"
    return "averaged weights" if other.averaged else "weights that are not averaged"


def _reason(key: str, value: Any) -> str:
    if _AVERAGED.search(key) and not isinstance(value, int | float):
        return "averaged weights without the names of the network"
    return _NOT_WEIGHTS.get(key, "not weights")


def _sets(content: Mapping[Any, Any], source: str | Path) -> list[_Set]:
    """Return all sets of weights of a file, in its order."""
    found = [(".".join(place), place[0], state) for place, state in _networks(content)] or [("", "", content)]
    return [each for label, key, state in found for each in _split(label, key, state, source)]


def _networks(content: Mapping[Any, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the dictionaries of weights with their keys: `ema`, or `state_dict` within `ema`."""
    for key, value in content.items():
        value = value.values if isinstance(value, Placeholder) else value
        if not isinstance(value, Mapping):
            continue
        here = (*place, str(key))
        # At deeper levels, the state of an optimizer may have the names of the network.
        if any(_NETWORK.search(str(name)) and (not place or isinstance(v, Tensor)) for name, v in value.items()):
            yield here, value
        elif len(here) < _MOST_NESTED and str(key) not in _NOT_WEIGHTS:
            yield from _networks(value, here)


def _split(label: str, key: str, state: Mapping[Any, Any], source: str | Path) -> list[_Set]:
    """Split one dictionary into plain weights and LDM's averages, and each of them by the prefixes of networks."""
    tensors = _clean_names(state, source)
    flat, rest = {name: tensors.pop(name) for name in list(tensors) if _LDM_AVERAGE.match(name)}, []
    averages = _ldm_averages(flat, tensors, source)
    if flat and not averages:
        rest = [Ignored("model_ema.*", len(flat), "averages of another network")]
    versions = [(label, tensors)] + ([(f"{label}:model_ema".removeprefix(":"), tensors | averages)] if averages else [])
    prefixes = [found[1] or "" for name in tensors if (found := _FIRST.match(name))] or [""]
    several = len(versions) > 1 or len(prefixes) > 1
    sets = []
    for version, every in versions:
        for prefix in prefixes:
            others = tuple(other for other in prefixes if other and other != prefix)
            inside = {k.removeprefix(prefix): v for k, v in every.items() if k.startswith(prefix)}
            inside = inside if prefix else {k: v for k, v in inside.items() if not k.startswith(others)}
            outside = [k.split(".")[0] for k in every if not k.startswith((prefix, *others))]
            parts = [Ignored(f"{k}.*", outside.count(k), "not part of the network") for k in dict.fromkeys(outside)]
            name = ":".join(part for part in (version, prefix.removesuffix(".") if len(prefixes) > 1 else "") if part)
            name = name or ("weights" if several else "")
            sets.append(_Set(name, key, bool(_AVERAGED.search(name)), inside, (*rest, *parts)))
    return sets


def _ldm_averages(flat: Mapping[str, Any], tensors: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Return LDM's averages under the names of `tensors`; empty if they belong to another network."""
    names = {name.replace(".", ""): name for name in tensors}
    given = {name.removeprefix("model_ema."): value for name, value in flat.items()}
    averages = {names[name]: value for name, value in given.items() if name in names}
    unknown = sorted(given.keys() - names.keys() - {"decay", "num_updates"})
    if averages and (unknown or len(names) < len(tensors)):
        raise UserError(f"{source}: the names of its averages do not fit its weights: {', '.join(unknown[:5])}")
    return averages


def _choose(sets: list[_Set], source: str | Path, weights: Weights) -> _Set:
    known = ", ".join(each.label for each in sets)
    if weights == "ema" and sets[0].label == "":
        raise UserError(f"{source}: averaged weights ('ema') are missing")
    if weights in ("auto", "model", "ema"):
        wanted = [each for each in sets if weights == "auto" or each.averaged == (weights == "ema")]
        wanted.sort(key=lambda each: not each.averaged)
    else:
        wanted = [each for each in sets if each.label == weights]
    if not wanted:
        raise UserError(f"{source}: weights must be one of its sets ({known or 'only one'}), got {weights}")
    return wanted[0]


def _training(content: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return the training configuration in a checkpoint.

    LightningDiT's `config` is returned unchanged. Of flat options, such as the `args` of SiT and DiT, path and
    prediction go into its section `transport`.
    """
    for key in ("config", "args", "hyper_parameters"):
        options = content.get(key)
        options = options.values if isinstance(options, Placeholder) else options
        if not isinstance(options, Mapping) or not options:
            continue
        if any(isinstance(options.get(name), Mapping) for name in ("model", "data", "transport", "sample")):
            return options
        transport = {name: options[name] for name in ("path_type", "prediction") if name in options}
        return {"args": options} | ({"transport": transport} if transport else {})
    return {}


def _clean_names(state: Mapping[Any, Any], source: str | Path) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for full, value in state.items():
        name = str(full)
        while True:
            shorter = _WRAPPERS.sub(r"\1", name.removeprefix("module."))
            if shorter == name:
                break
            name = shorter
        if name in tensors:
            raise UserError(f"{source}: holds {name} twice, under several prefixes")
        tensors[name] = value
    return tensors


def _kind_of(tensors: Mapping[str, Any]) -> Kind | None:
    """Return the kind of a network by its names, or None."""
    if any(name.startswith("decoder_layers.") for name in tensors):
        return "decoder"
    if any(name.startswith(("encoder.", "decoder.")) for name in tensors):
        return "autoencoder"
    if any(name.startswith(("x_embedder.", "blocks.")) for name in tensors):
        return "transformer"
    if any(tensors.keys() >= {*names} for names in FORMS) and len(tensors) <= 3:
        return "statistics"
    return None


def _kind(tensors: Mapping[str, Any], source: str | Path) -> Kind:
    if (kind := _kind_of(tensors)) is not None:
        return kind
    names = ", ".join(sorted({name.split(".")[0] for name in tensors})[:5]) or "nothing"
    if tensors and not any(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{source}: must have weights of a network, got {names}")
    raise UserError(f"{source}: must be an autoencoder or a LightningDiT; its names begin with {names}")
