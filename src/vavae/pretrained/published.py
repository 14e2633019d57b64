"""Checkpoints as the published code writes them -> the state dict of one network, and what was left aside."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vavae.errors import UserError

Kind = Literal["autoencoder", "transformer", "statistics"]
Weights = Literal["auto", "ema", "model"]

# Where training code keeps the weights in its checkpoints, the averaged ones first.
_CONTAINERS = ("ema", "model", "state_dict")
_ASIDE = {
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
    "ema": "averaged weights; the others were asked for",
    "model": "weights that are not averaged",
    "state_dict": "another set of weights",
}
# What tokenizer training adds to an autoencoder.
_TRAINING_ONLY = {
    "loss.": "discriminator and perceptual network, used in training only",
    "foundation_model.": "frozen teacher, used in training only",
    "linear_proj.": "projection to the teacher's features, used in training only",
}
_WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class LeftAside:
    """Something a checkpoint holds that was not loaded.

    Attributes:
        what: Its name, or the prefix of its names with a `*`.
        count: How many entries.
        why: The reason.
    """

    what: str
    count: int
    why: str

    def __str__(self) -> str:
        return f"{self.what} ({self.count}): {self.why}" if self.count > 1 else f"{self.what}: {self.why}"


@dataclass(frozen=True)
class LoadReport:
    """What was taken from a checkpoint.

    Attributes:
        source: File or folder.
        what: The network, in words.
        tensors: How many tensors were loaded.
        parameters: How many numbers they hold.
        weights: Which of several sets of weights; empty where there was one.
        notes: What was changed on the way.
        left_aside: What was not loaded, and why.
    """

    source: str
    what: str
    tensors: int
    parameters: int
    weights: str = ""
    notes: tuple[str, ...] = ()
    left_aside: tuple[LeftAside, ...] = ()

    def __str__(self) -> str:
        chosen = f" from '{self.weights}'" if self.weights else ""
        lines = [f"{self.source}: {self.what}; {self.tensors} tensors, {self.parameters:,} numbers loaded{chosen}"]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  left aside {part}" for part in self.left_aside]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """One network's tensors out of a checkpoint.

    Attributes:
        kind: What network, or statistics of latents.
        tensors: Its tensors under clean names.
        weights: Which of several sets of weights they are; empty where there was one.
        training: The published configuration, where the checkpoint holds it.
        left_aside: What is not part of the network.
        extra: Tensors among `left_aside` that training can go on from: discriminator and projection.
    """

    kind: Kind
    tensors: dict[str, Tensor]
    weights: str
    training: Mapping[str, Any]
    left_aside: tuple[LeftAside, ...]
    extra: dict[str, Tensor]


def unwrap(content: Any, source: str | Path, weights: Weights = "auto") -> Unwrapped:
    """Find the network in what a checkpoint file holds.

    Taken are a bare state dict; one under `ema`, `model` or `state_dict`; names with the prefixes `module.` and
    `_orig_mod.` of wrappers, in any order; and names that tokenizer training adds, which are left aside.

    Args:
        content: What `read_checkpoint` returned.
        source: The file, for messages.
        weights: `ema` and `model` insist on one set; `auto` prefers the averaged.

    Raises:
        UserError: There is no such set, or it is none of our networks.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{source}: holds a {type(content).__name__}, not a dictionary of tensors")
    chosen, state = _choose(content, source, weights)
    aside = []
    if chosen:
        for key in content:
            if key != chosen:
                aside.append(LeftAside(str(key), 1, _ASIDE.get(str(key), "not weights")))
    tensors = _clean_names(state, source)
    extra: dict[str, Tensor] = {}
    for prefix, why in _TRAINING_ONLY.items():
        names = [name for name in tensors if name.startswith(prefix)]
        if names:
            aside.append(LeftAside(f"{prefix}*", len(names), why))
            extra |= {name: tensors.pop(name) for name in names}
    kept = {name: value for name, value in extra.items() if not name.startswith("foundation_model.")}
    training = content.get("config") if chosen else None
    return Unwrapped(
        _kind(tensors, source),
        tensors,
        chosen,
        training if isinstance(training, Mapping) else {},
        tuple(aside),
        kept,
    )


def _choose(content: Mapping[Any, Any], source: str | Path, weights: Weights) -> tuple[str, Mapping[Any, Any]]:
    """Name and content of the set of weights; no name where the whole file is one."""
    present = [name for name in _CONTAINERS if isinstance(content.get(name), Mapping)]
    if not present:
        if weights == "ema":
            raise UserError(f"{source}: holds no averaged weights ('ema')")
        return "", content
    wanted = [name for name in present if weights == "auto" or (name == "ema") == (weights == "ema")]
    if not wanted:
        raise UserError(f"{source}: holds no '{weights}' weights, only {', '.join(present)}")
    return wanted[0], content[wanted[0]]


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


def _kind(tensors: Mapping[str, Any], source: str | Path) -> Kind:
    if any(name.startswith(("encoder.", "decoder.")) for name in tensors):
        return "autoencoder"
    if any(name.startswith(("x_embedder.", "blocks.", "network.x_embedder.")) for name in tensors):
        return "transformer"
    if {"mean", "std"} <= tensors.keys() and len(tensors) <= 3:
        return "statistics"
    names = ", ".join(sorted({name.split(".")[0] for name in tensors})[:5]) or "nothing"
    raise UserError(f"{source}: holds neither an autoencoder nor a LightningDiT; its names begin with {names}")
