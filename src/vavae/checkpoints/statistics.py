"""Read the statistics of latents from a file or folder, ours or published."""

from pathlib import Path

import torch

from vavae.checkpoints.folder import RAE_STATISTICS
from vavae.checkpoints.reading import read_checkpoint
from vavae.data.latents import PUBLISHED_STATISTICS_NAME, STATISTICS_NAME
from vavae.errors import UserError
from vavae.io.files import user_path
from vavae.tokenizer import LatentStatistics


def read_statistics(source: str | Path | LatentStatistics) -> LatentStatistics:
    """Return statistics unchanged, or read them from a file or folder.

    Args:
        source: Statistics; a published file in a form that `LatentStatistics.from_dict` names, such as VA-VAE's
            `latents_stats.pt` or RAE's `stat.pt`; our `statistics.safetensors`; or a folder of latents or of a
            tokenizer with one of them.

    Raises:
        UserError: The file is missing, or has none of these forms.
    """
    if isinstance(source, LatentStatistics):
        return source
    path = user_path(source)
    if path.is_dir():
        found = statistics_file(path)
        if found is None:
            raise UserError(f"{path}: must have {STATISTICS_NAME} or {PUBLISHED_STATISTICS_NAME}")
        path = found
    content = read_checkpoint(path)
    tensors = content if isinstance(content, dict) else {}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    try:
        # Copies: a mapped file may change or be removed.
        return LatentStatistics.from_dict({name: value.clone() for name, value in tensors.items()})
    except (UserError, RuntimeError) as error:
        raise UserError(f"{path}: {error}") from error


def statistics_file(path: Path) -> Path | None:
    """Return the file of statistics in a folder, ours before a published one; None without file or folder.

    REPA-E's `NAME-latents-stats.pt` also belongs to the checkpoint `NAME.pt`, if `path` is that file.
    """
    if path.is_file():
        own = path.with_name(f"{path.stem}-latents-stats.pt")
        return own if own.is_file() else None
    files = [path / name for name in (STATISTICS_NAME, PUBLISHED_STATISTICS_NAME, RAE_STATISTICS)]
    return next((file for file in [*files, *sorted(path.glob("*-latents-stats.pt"))] if file.is_file()), None)


def scaled(statistics: LatentStatistics, factor: float) -> LatentStatistics:
    """Return statistics for (latents − mean) / std · factor.

    Raises:
        UserError: The factor is not positive.
    """
    if not factor > 0:
        raise UserError(f"the factor of latents must be positive, got {factor}")
    return LatentStatistics(statistics.mean, statistics.std / factor, statistics.count)


def scaling_statistics(channels: int, scaling_factor: float, shift: float = 0.0) -> LatentStatistics:
    """Return statistics for (latents − shift) · scaling_factor in all channels; SD-VAE's factor is 0.18215.

    Raises:
        UserError: The factor is not positive, or the shift or 1 / scaling_factor is beyond float32.
    """
    if not scaling_factor > 0:
        raise UserError(f"scaling_factor must be positive, got {scaling_factor}")
    numbers = torch.tensor([shift, 1.0 / scaling_factor], dtype=torch.float64).float()
    if not bool(numbers.isfinite().all()) or numbers[1] == 0:
        raise UserError(
            f"scaling_factor and shift_factor must be numbers of float32, got {scaling_factor:g} and {shift:g}"
        )
    return LatentStatistics(numbers[0].repeat(channels), numbers[1].repeat(channels))
