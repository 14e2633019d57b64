"""Latents of EDM2 and REPA: one `.npy` file per image with mean and standard deviation of its posterior.

Files are called `00000/img-mean-std-00000000.npy`, of shape (2C, h, w): C means, then C standard deviations, as the
autoencoder gives them, before any scaling. `dataset.json` in the same folder may hold labels.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vavae import rng
from vavae.data.labels import class_number
from vavae.data.latent_writer import write_shards
from vavae.data.loader import loaded_ahead
from vavae.errors import UserError, one_line
from vavae.io.files import whole_folder

_NAME = "img-mean-std-*.npy"


def holds_moments(folder: Path) -> bool:
    """Return whether a folder holds latents in this form."""
    return any(any(folder.glob(pattern)) for pattern in (_NAME, f"*/{_NAME}"))


def convert_moments(folder: Path, output: Path, seed: int = 0) -> str:
    """Write one sample of each posterior, z = mean + std · noise, in the layout of the published extractor.

    Args:
        folder: Where the files are.
        output: Where to write; must be empty or missing.
        seed: Seed of the noise, which depends on the number of the image in the order of file names.

    Returns:
        What was written, in one line.

    Raises:
        UserError: A file is damaged or of another shape than the first, or the labels do not fit the files.
    """
    paths = sorted(folder.rglob(_NAME))
    labels, said = _labels(folder, paths)
    shape = _read(paths[0]).shape

    def load(indices: Tensor) -> Tensor:
        moments = [_read(paths[int(index)]) for index in indices]
        for index, moment in zip(indices, moments, strict=True):
            if moment.shape != shape:
                raise UserError(f"{paths[int(index)]}: its shape is {moment.shape}, not {shape} as in {paths[0].name}")
        mean, deviation = torch.from_numpy(np.stack(moments)).float().chunk(2, dim=1)
        return mean + deviation * rng.normal(seed, "posterior", indices, mean.shape[1:])

    def batches() -> Iterator[tuple[Tensor, None, Tensor]]:
        for indices, latents in loaded_ahead(torch.arange(len(paths)).split(10_000), load, 2):
            yield latents, None, labels[indices]

    with whole_folder(output):
        write_shards(batches(), output)
    size = "x".join(map(str, (shape[0] // 2, *shape[1:])))
    return f"{len(paths):,} latents {size}, one sample of each mean and deviation (seed {seed}); {said}"


def _read(path: Path) -> np.ndarray:
    """Read mean and standard deviation, (2C, h, w). Raises UserError for another content."""
    try:
        moments = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(moments, np.ndarray) or moments.ndim != 3 or len(moments) % 2 or moments.dtype.kind != "f":
        kind = f"{moments.dtype} of shape {moments.shape}" if isinstance(moments, np.ndarray) else "another file"
        raise UserError(f"{path} must hold means and deviations, fractions of shape (2C, h, w), got {kind}")
    if not np.isfinite(moments).all() or (moments[len(moments) // 2 :] < 0).any():
        raise UserError(f"{path} holds numbers that are not finite, or negative deviations")
    return moments


def _labels(folder: Path, paths: list[Path]) -> tuple[Tensor, str]:
    """Return class numbers (N,) int64 of `dataset.json`, zeros where it has none, and a sentence on them.

    Raises:
        UserError: `dataset.json` cannot be read, or a file has no label or one that is not a class number.
    """
    path = folder / "dataset.json"
    name = None
    try:
        entries = json.loads(path.read_text())["labels"] if path.is_file() else None
        if entries is None:
            return torch.zeros(len(paths), dtype=torch.int64), "no labels in dataset.json: one class"
        by_name = dict(entries)
        names = [p.relative_to(folder).as_posix() for p in paths]
        numbers = []
        for name in names:
            if name not in by_name:
                raise UserError(f"{path}: has no label for {name}")
            numbers.append(class_number(by_name[name]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: {f'{name}: ' if name else ''}{one_line(error)[:200]}") from error
    unused = len(by_name) - len(names)
    rest = f", in which {unused:,} labels have no file" if unused else ""
    return torch.tensor(numbers, dtype=torch.int64), f"labels of dataset.json{rest}"
