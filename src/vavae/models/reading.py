"""Read the parts of a generator from the three forms of folders: ours, exported for diffusers, published.

Each function returns the arguments of `Generator`, and the report of a checkpoint of others.
"""

import dataclasses
from pathlib import Path
from typing import Any

from vavae.checkpoints import folder as files
from vavae.checkpoints.diffusers_autoencoder import diffusers_statistics
from vavae.checkpoints.loading import LoadedTransformer, load_transformer, own_transformer
from vavae.checkpoints.published import LoadReport
from vavae.checkpoints.published_recipes import published_flow
from vavae.checkpoints.registry import KnownModel
from vavae.checkpoints.statistics import read_statistics, scaled
from vavae.errors import UserError
from vavae.flow import PathName, Prediction
from vavae.models.published import published_defaults, published_latents
from vavae.models.sampling import read_sampling
from vavae.models.tokenizer import StatisticsSource, Tokenizer
from vavae.tokenizer import LatentStatistics

Parts = tuple[dict[str, Any], LoadReport | None]


def native_parts(folder: Path, tokenizer: Tokenizer | str | Path | None, statistics: StatisticsSource | None) -> Parts:
    """Read a folder of `save_pretrained`.

    Raises:
        UserError: Names the file or key that is missing, damaged or wrong.
    """
    transformer, config = own_transformer(folder)
    where = folder / files.CONFIG
    if missing := {"sampling", "path", "prediction", "class_names"} - config.keys():
        raise UserError(f"{where}: the key {min(missing)!r} is missing")
    names = [] if config["class_names"] is None else config["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: class_names must be a list of names, got {str(names)[:60]}")
    if names and len(names) != transformer.config.num_classes:
        raise UserError(f"{where}: class_names must be {transformer.config.num_classes} names, got {len(names)}")
    sampling = read_sampling(config["sampling"], config["path"], config["prediction"], where)
    if tokenizer is None:
        tokenizer = Tokenizer.from_pretrained(files.subfolder(folder, "tokenizer"), statistics=statistics)
    elif statistics is None:  # the ones of the training, in the folder's own tokenizer
        own = files.subfolder(folder, "tokenizer")
        files.read_model(own, "tokenizer")
        statistics = own
    trained = None if statistics is None else read_statistics(statistics)
    names_of_stored = ("path", "prediction", "floor", "provenance")
    stored = {key: value for key, value in config.items() if key in names_of_stored}
    parts: dict[str, Any] = {
        "transformer": transformer,
        "tokenizer": _tokenizer(tokenizer, trained),
        "statistics": trained,
    }
    return {**parts, "sampling": sampling, "class_names": names, **stored}, None


def diffusers_parts(
    folder: Path, tokenizer: Tokenizer | str | Path | None, statistics: StatisticsSource | None
) -> Parts:
    """Read a folder of `save_diffusers`.

    Raises:
        UserError: Names the file or key that is missing, damaged or wrong.
    """
    from vavae.models.diffusers.pipeline import read_settings

    sampling, path, names = read_settings(folder)  # before anything large is read
    loaded = load_transformer(folder)
    own = files.subfolder(folder, "vae")
    if statistics is None:
        channels = loaded.model.config.latent_channels
        statistics = diffusers_statistics(files.read_config(own), channels, own / files.CONFIG)
    trained = read_statistics(statistics)
    tokenizer = _tokenizer(own if tokenizer is None else tokenizer, trained)
    parts = {"transformer": loaded.model, "tokenizer": tokenizer, "statistics": trained, "sampling": sampling}
    facts = {"converted_from": folder.name}
    return {**parts, "path": path, "class_names": names, "provenance": facts}, loaded.report


def published_parts(
    source: Path,
    loaded: LoadedTransformer,
    tokenizer: Tokenizer | str | Path | None,
    statistics: StatisticsSource | None,
    given_path: PathName | None,
    given_prediction: Prediction | None,
    known: KnownModel | None,
) -> Parts:
    """Combine a published transformer with its tokenizer, statistics and sampling.

    Raises:
        UserError: The tokenizer is missing, or the configuration in the checkpoint is not known.
    """
    path, prediction, notes = published_flow(loaded.training, source, given_path, given_prediction)
    sampling, sampling_notes = published_defaults(loaded, known)
    given = None if statistics is None else read_statistics(statistics)
    trained, multiplier, scaling_notes = published_latents(source, loaded, given)
    if tokenizer is None and (source / "tokenizer").is_dir():  # `vavae convert --to published` writes it
        tokenizer = source / "tokenizer"
    if tokenizer is None:
        raise UserError(
            f"{source}: a published transformer comes without its tokenizer: pass tokenizer, the tokenizer of its "
            "training, and statistics, the latents_stats.pt of its training latents ('vavae convert' writes one "
            "folder with all three)"
        )
    tokenizer = _tokenizer(tokenizer, trained)
    parts: dict[str, Any] = {"transformer": loaded.model, "tokenizer": tokenizer, "sampling": sampling}
    parts |= {"statistics": scaled(trained or tokenizer.statistics, multiplier), "path": path, "prediction": prediction}
    notes = [*loaded.report.notes, *notes, *sampling_notes, *scaling_notes]
    report = dataclasses.replace(loaded.report, notes=tuple(notes))
    return {**parts, "provenance": {"converted_from": source.name}}, report


def _tokenizer(source: Tokenizer | str | Path, statistics: LatentStatistics | None) -> Tokenizer:
    if isinstance(source, Tokenizer):
        return source
    return Tokenizer.from_pretrained(source, statistics=statistics)
