"""Read the statistics of latents from a file or folder, ours or published."""

from pathlib import Path

import torch

from vavae.checkpoints.reading import read_checkpoint
from vavae.data.latents import PUBLISHED_STATISTICS_NAME, STATISTICS_NAME
from vavae.errors import UserError
from vavae.io.files import user_path
from vavae.tokenizer import LatentStatistics


def read_statistics(source: str | Path | LatentStatistics) -> LatentStatistics:
    """Return statistics as they are, or read them from a file or folder.

    Args:
        source: `latents_stats.pt` of the published extractor, our `statistics.safetensors`, or a folder with
            either: of latents, or of a tokenizer.

    Raises:
        UserError: There is no such file, or it has no tensors `mean` and `std`.
    """
    if isinstance(source, LatentStatistics):
        return source
    path = user_path(source)
    if path.is_dir():
        found = statistics_file(path)
        if found is None:
            raise UserError(f"{path}: holds neither {STATISTICS_NAME} nor {PUBLISHED_STATISTICS_NAME}")
        path = found
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), torch.Tensor) for name in ("mean", "std")
    ):
        raise UserError(f"{path}: holds no tensors 'mean' and 'std'")
    try:
        # Copies: a mapped file may change or go.
        return LatentStatistics.from_dict({n: v.clone() for n, v in content.items() if isinstance(v, torch.Tensor)})
    except (UserError, RuntimeError) as error:
        raise UserError(f"{path}: {error}") from error


def statistics_file(folder: Path) -> Path | None:
    """Return the file of statistics in a folder, ours before a published one; None if there is none, or no folder."""
    files = (folder / name for name in (STATISTICS_NAME, PUBLISHED_STATISTICS_NAME))
    return next((file for file in files if file.is_file()), None)


def scaled(statistics: LatentStatistics, factor: float) -> LatentStatistics:
    """Return statistics for (latents − mean) / std · factor.

    Raises:
        UserError: The factor is not positive.
    """
    if not factor > 0:
        raise UserError(f"{factor} as the factor of latents is not positive")
    return LatentStatistics(statistics.mean, statistics.std / factor, statistics.count)


def scaling_statistics(channels: int, scaling_factor: float, shift: float = 0.0) -> LatentStatistics:
    """Return statistics for (latents − shift) · scaling_factor, the same in all channels, as SD-VAE's 0.18215.

    Raises:
        UserError: The factor is not positive, or one of the numbers or 1 / scaling_factor is beyond float32.
    """
    if not scaling_factor > 0:
        raise UserError(f"scaling_factor: {scaling_factor} is not positive")
    numbers = torch.tensor([shift, 1.0 / scaling_factor], dtype=torch.float64).float()
    if not bool(numbers.isfinite().all()) or numbers[1] == 0:
        raise UserError(
            f"scaling_factor and shift_factor must be numbers of float32, got {scaling_factor:g} and {shift:g}"
        )
    return LatentStatistics(numbers[0].repeat(channels), numbers[1].repeat(channels))
