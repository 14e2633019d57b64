"""Convert latents of EDM2 and REPA: one `.npy` file per image with mean and standard deviation of its posterior.

A file `00000/img-mean-std-00000000.npy` has the shape (2C, h, w): C means, then C standard deviations, as the
autoencoder returns them, before any scaling. `dataset.json` in the same folder may hold labels.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vavae import rng
from vavae.data.labels import find_label_file
from vavae.data.latent_writer import write_shards
from vavae.data.loader import loaded_ahead
from vavae.errors import UserError, one_line
from vavae.io.files import whole_folder

_NAME = "img-mean-std-*.npy"


def holds_moments(folder: Path) -> bool:
    """Return whether a folder has latents in this form."""
    return any(any(folder.glob(pattern)) for pattern in (_NAME, f"*/{_NAME}"))


def convert_moments(folder: Path, output: Path, seed: int = 0) -> str:
    """Write one sample of each posterior, z = mean + std · noise, in the layout of the published extractor.

    Args:
        folder: Folder of the `.npy` files.
        output: Output folder; must be empty or missing.
        seed: Seed of the noise. Noise is a function of the seed and the image's number in the order of file names.

    Returns:
        One line that describes the result.

    Raises:
        UserError: A file is damaged or of another shape than the first, or the labels do not fit the files.
    """
    paths = sorted(folder.rglob(_NAME))
    labels, sentence = _labels(folder, paths)
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
    return f"{len(paths):,} latents {size}, one sample of each mean and deviation (seed {seed}); {sentence}"


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
    """Return the class numbers (N,) int64 in `dataset.json`, or zeros, and a sentence about them."""
    label_file = find_label_file(folder)
    if label_file is None or not label_file.labels:
        return torch.zeros(len(paths), dtype=torch.int64), "no labels in dataset.json: one class"
    labels = torch.from_numpy(label_file.labels_of(paths))
    unused = len(label_file.missing(folder, paths))
    rest = f", in which {unused:,} labels have no file" if unused else ""
    return labels, f"labels of dataset.json{rest}"
