"""What a published transformer needs besides its weights: normalization of latents, and sampling defaults."""

from pathlib import Path

from vavae.checkpoints.loading import LoadedTransformer
from vavae.checkpoints.published_recipes import published_sampling, published_scaling
from vavae.checkpoints.registry import RAE_SAMPLING, KnownModel
from vavae.checkpoints.statistics import read_statistics, scaling_statistics, statistics_file
from vavae.config import from_plain
from vavae.errors import UserError
from vavae.models.sampling import SamplingConfig
from vavae.tokenizer import LatentStatistics
from vavae.transformer import DiTDH


def published_defaults(loaded: LoadedTransformer, known: KnownModel | None) -> tuple[SamplingConfig, list[str]]:
    """Return the sampling defaults of a published transformer, and notes for the report.

    The registry's values come before the ones in the file. RAE's files have none.
    """
    if known is not None:
        return from_plain(SamplingConfig, dict(known.sampling)), [f"sampling as published for {known.name}"]
    if isinstance(loaded.model, DiTDH):
        return from_plain(SamplingConfig, RAE_SAMPLING), ["sampling is assumed: as published by RAE"]
    try:
        values, assumed = published_sampling(loaded.training)
        return from_plain(SamplingConfig, values), [f"sampling is assumed: {assumed}"] if assumed else []
    except UserError as error:  # the weights load even if the settings are unknown here
        return SamplingConfig(), [f"sampling defaults are ours: {error}"]


def published_latents(
    source: Path, loaded: LoadedTransformer, given: LatentStatistics | None
) -> tuple[LatentStatistics | None, float, tuple[str, ...]]:
    """Return the normalization of the latents in the training of a published transformer.

    The input was (latents − mean) / std · latent_multiplier, or, without `latent_norm`, latents · latent_multiplier.

    Args:
        source: Its file or folder.
        loaded: The transformer and its configuration.
        given: Statistics from the user.

    Returns:
        The statistics, None for the tokenizer's; the multiplier on top; and notes for the report.
    """
    normalized, multiplier = published_scaling(loaded.training) or (True, 1.0)
    note = f"latent_multiplier {multiplier:g} of its configuration is in the statistics of the latents"
    notes = (note,) if multiplier != 1.0 else ()
    if normalized:
        found = statistics_file(source)
        return given or (read_statistics(found) if found else loaded.statistics), multiplier, notes
    if given is not None:
        return given, 1.0, ()
    return scaling_statistics(loaded.model.config.latent_channels, multiplier), 1.0, notes
