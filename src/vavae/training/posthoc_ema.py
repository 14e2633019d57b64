"""Averages of a finished run: the ones in its checkpoint, and power-function averages of any length.

The latter are computed from snapshots (arXiv 2312.02696, section 3.2). A snapshot at step t with exponent γ is a
weighted sum of all parameters of the run, with weights p(τ) = (γ + 1) τ^γ / t^(γ + 1) for τ in [0, t]. The wanted
average has such weights too. It is approximated by the combination of snapshots whose weights are nearest in L2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vavae.errors import UserError
from vavae.io.files import written_whole
from vavae.training.checkpoint import CheckpointFolder
from vavae.training.ema import power_exponent


@dataclass(frozen=True)
class Snapshot:
    """A stored power-function average."""

    path: Path
    steps: int  # optimizer steps that it averages over
    images: int  # images seen in these steps
    width: float  # relative standard deviation of its weights


def save_snapshot(
    folder: Path, module: str, values: dict[str, Tensor], *, steps: int, images: int, width: float
) -> Path:
    """Write one snapshot atomically and return its path."""
    path = folder / f"{module}-width{width}-images{images:012d}.safetensors"
    metadata = {"steps": str(steps), "images": str(images), "width": str(width)}
    with written_whole(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, temporary, metadata)
    return path


def list_snapshots(folder: Path, module: str) -> list[Snapshot]:
    """Return the snapshots of a module, sorted by images and width."""
    found = []
    for path in sorted(folder.glob(f"{module}-width*-images*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        found.append(Snapshot(path, int(metadata["steps"]), int(metadata["images"]), float(metadata["width"])))
    return sorted(found, key=lambda snapshot: (snapshot.images, snapshot.width))


def _inner_products(
    steps: np.ndarray, exponents: np.ndarray, other_steps: np.ndarray, other_exponents: np.ndarray
) -> np.ndarray:
    """Return ∫ p_i q_j dτ for every pair, (N, M): equation 132, in logarithms since the powers overflow."""
    t, g = steps[:, None], exponents[:, None]
    u, h = other_steps[None], other_exponents[None]
    total = g + h + 1
    logs = np.log(g + 1) + np.log(h + 1) - np.log(total)
    logs = logs + total * np.log(np.minimum(t, u)) - (g + 1) * np.log(t) - (h + 1) * np.log(u)
    return np.exp(logs)


def combination(steps: Sequence[int], widths: Sequence[float], target_steps: int, target_width: float) -> np.ndarray:
    """Return the factors (N,), of sum 1, by which N snapshots add up to the average of a width at a step.

    Args:
        steps: Step of each snapshot.
        widths: Width of each snapshot.
        target_steps: Step of the wanted average.
        target_width: Width of the wanted average.

    Raises:
        UserError: No snapshot reaches the target's step.
    """
    if max(steps, default=0) < target_steps:
        raise UserError(f"no snapshot of step {target_steps} or later")
    t = np.asarray(steps, dtype=np.float64)
    g = np.array([power_exponent(width) for width in widths])
    u, h = np.array([float(target_steps)]), np.array([power_exponent(target_width)])
    gram = _inner_products(t, g, t, g)
    wanted = _inner_products(t, g, u, h)
    # Unit diagonal and least squares, since snapshots close to each other are nearly dependent.
    scale = 1.0 / np.sqrt(np.diag(gram))
    solved = np.linalg.lstsq(gram * scale[:, None] * scale[None], wanted[:, 0] * scale, rcond=1e-12)[0] * scale
    return np.asarray(solved / solved.sum())


def reconstruct(folder: Path, module: str, width: float, images: int | None = None) -> dict[str, Tensor]:
    """Return the state dict of `module` averaged with relative standard deviation `width`, as of `images`.

    Args:
        folder: The run's `averages/`.
        module: Name of the module, `transformer` or `autoencoder`.
        width: Length of the average as a share of the run, in (0, 0.288).
        images: Images seen at the end of the average; None is the last snapshot.

    Raises:
        UserError: The width is out of range, or no snapshot is of at most `images`.
    """
    if not 0.0 < width < 1 / math.sqrt(12):
        raise UserError(f"width must be in (0, 0.288), got {width}")
    snapshots = [s for s in list_snapshots(folder, module) if images is None or s.images <= images]
    if not snapshots:
        raise UserError(f"{folder}: no snapshots of {module}" + (f" up to {images:,} images" if images else ""))
    last = max(snapshot.steps for snapshot in snapshots)
    factors = combination([s.steps for s in snapshots], [s.width for s in snapshots], last, width)
    total: dict[str, Tensor] = {}
    for factor, snapshot in zip(factors.tolist(), snapshots, strict=True):
        latest = load_file(snapshot.path)
        for name, value in latest.items():
            if not value.is_floating_point():
                total[name] = value
            elif name in total:
                total[name].add_(value.double(), alpha=factor)
            else:
                total[name] = value.double() * factor
    return {name: value.to(latest[name].dtype) for name, value in total.items()}


def decayed(folder: Path, module: str, decay: float) -> dict[str, Tensor]:
    """Return the state dict of `module` averaged with `decay` per step, from the newest good checkpoint of a run.

    Args:
        folder: The run folder.
        module: Name of the module, `transformer` or `autoencoder`.
        decay: The run's `ema_decay`, or one of its `averages.decays`.

    Raises:
        UserError: The run has no good checkpoint, or the checkpoint lacks this average; the message lists its averages.
    """
    found = CheckpointFolder(folder / "checkpoints").newest()
    if found is None:
        raise UserError(f"{folder}: no good checkpoint")
    prefix = f"average/{decay}/{module}/"
    tensors = found.read(prefix)
    if not tensors:
        labels = sorted({"/".join(name.split("/")[1:3]) for name in found.shapes if name.startswith("average/")})
        raise UserError(f"{folder}: no average {decay}/{module}; there is {', '.join(labels) or 'none'}")
    return {name.removeprefix(prefix): value for name, value in tensors.items()}
