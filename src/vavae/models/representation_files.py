"""Read a representation autoencoder: from a folder of ours, a published decoder, or a folder of diffusers."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from vavae.checkpoints import folder as files
from vavae.checkpoints.loading import diffusers_weights, load_decoder
from vavae.checkpoints.published import LoadReport, Weights
from vavae.checkpoints.reading import check_tensors, read_checkpoint, read_safetensors
from vavae.checkpoints.statistics import read_statistics
from vavae.config import from_plain
from vavae.device import without_values
from vavae.errors import UserError, errors_name
from vavae.models.representation import TEACHER, RepresentationAutoencoder, RepresentationConfig
from vavae.teachers import Teacher, load_teacher
from vavae.tokenizer import LatentStatistics


class LoadedRepresentation(NamedTuple):
    """A representation autoencoder from files."""

    model: RepresentationAutoencoder  # on the CPU, in eval mode
    statistics: LatentStatistics | None  # of its latents; None for a published decoder
    provenance: dict[str, Any]  # its training, or the name of the file or folder that was converted
    report: LoadReport | None  # the parts that were loaded and left out; None for a folder of ours


def load_representation(path: Path) -> LoadedRepresentation | None:
    """Return the representation autoencoder in a tokenizer or generator of ours, or in a folder of diffusers.

    None if another autoencoder, or another form, is at the path. The teacher comes from the folder, if it is there,
    else from its hub or package.

    Raises:
        UserError: Names the file or key that is missing, damaged or wrong; or the teacher has other weights.
    """
    form = files.form_of(path)
    inner = {"generator": "tokenizer", "pipeline": "vae"}.get(form)
    folder = path / inner if inner else path
    if form not in ("tokenizer", "generator", "diffusers", "pipeline") or not folder.is_dir():
        return None
    config = files.read_config(folder)  # before all files are hashed
    if "representation" in config:
        return _own(folder)
    return _of_diffusers(folder, config) if config.get("_class_name") == files.DIFFUSERS_RAE else None


def load_published(
    path: Path, teacher: str, weights: Weights = "auto", heads: int | None = None
) -> LoadedRepresentation:
    """Return the representation autoencoder of a published decoder and its teacher, by name or folder.

    The teacher's input size follows from the decoder's grid.

    Raises:
        UserError: The file holds another network, the heads do not show, or the teacher does not fit.
    """
    decoder, report = load_decoder(path, weights, heads)
    loaded = load_teacher(teacher)
    height, width = (side * loaded.patch for side in decoder.grid)
    fitted = Teacher(loaded.name, loaded.backbone, (height, width), loaded.normalization)
    with errors_name(path):
        model = RepresentationAutoencoder(fitted, decoder)
    notes = (
        *report.notes,
        f"teacher {teacher} at {height} x {width} pixels, as its grid needs",
        f"assumed, as the file does not say: trained with noise {model.noise:g}",
    )
    return LoadedRepresentation(
        model.eval(), None, {"converted_from": path.name}, dataclasses.replace(report, notes=notes)
    )


def _of_diffusers(folder: Path, config: dict[str, Any]) -> LoadedRepresentation:
    from vavae.models.diffusers.representation import from_diffusers

    path = diffusers_weights(folder)
    tensors = read_checkpoint(path)
    check_tensors(tensors, path)
    model, statistics, report = from_diffusers(config, tensors, path)
    return LoadedRepresentation(model, statistics, {"converted_from": folder.name}, report)


def _own(folder: Path) -> LoadedRepresentation:
    content, path = files.read_model(folder, "tokenizer"), folder / files.CONFIG
    with errors_name(path):
        config = from_plain(RepresentationConfig, content["representation"])
        try:
            name, sha256 = str(content["teacher"]["name"]), content["teacher"]["sha256"]
            height, width = content["teacher"]["input_size"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("teacher must have name, input_size and sha256") from error
        inside = folder / TEACHER
        teacher = load_teacher(inside if inside.is_dir() else name, input_size=(height, width))
        teacher.name = name
        with without_values():
            decoder = config.decoder(teacher.width, teacher.grid_size)
        weights = folder / files.WEIGHTS
        files.load_strictly(decoder, read_safetensors(weights), weights)
        model = RepresentationAutoencoder(teacher, decoder, config.noise, config.noise_kind, config.layers)
        model.keep_teacher = inside.is_dir()
        if model.encoder_sha256() != sha256:
            raise UserError(f"teacher {name} must have the weights of the training, sha256 {str(sha256)[:12]}…")
    statistics = read_statistics(folder / files.STATISTICS)
    return LoadedRepresentation(model.eval(), statistics, content.get("provenance") or {}, None)
