"""Families of teachers: load a backbone from a folder with `config.json` and weights."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vavae.errors import UserError
from vavae.io.files import read_json_object
from vavae.teachers.backbones import (
    MaskedAutoencoderBackbone,
    NaflexBackbone,
    ResNetBackbone,
    SamBackbone,
    TinyViTBackbone,
    TokenBackbone,
)
from vavae.teachers.base import CLIP, HALF, IMAGENET, Backbone, Normalization
from vavae.teachers.tiny_vit import TinyViT


@dataclass(frozen=True)
class Family:
    """One architecture."""

    name: str
    model_types: tuple[str, ...]  # values of `model_type` in `config.json`
    model_class: str  # class of transformers that loads the model; empty for a model of our own
    wrap: Callable[[Any], Backbone]
    normalization: Normalization  # if the folder does not state its own
    input_size: int | None = None  # side that images are resized to by default; None takes it from `config.json`
    other_parts: tuple[str, ...] = ()  # prefixes of weights that a full checkpoint has next to the vision model
    antialiased_positions: bool = False  # whether the published system resizes position embeddings with antialiasing


_CLIP_PARTS = ("text_", "visual_projection.", "logit_", "vision_model.embeddings.position_ids")
_HEAD = ("classifier.",)
_DINO_PARTS = (*_HEAD, "embeddings.mask_token")
_SAM_PARTS = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.")
_REGISTERS = ("dinov2_with_registers",)
_SIGLIP2_TYPES = ("siglip2", "siglip2_vision_model")
_LAST_NORM = re.compile(r"^(vision_model\.)?(post_)?layernorm\.(weight|bias)$")
_CLIP_BACKBONE = partial(TokenBackbone, interpolate=True)
_SIGLIP_BACKBONE = partial(TokenBackbone, class_token=False, interpolate=True)

FAMILIES: tuple[Family, ...] = (
    Family("DINOv2", ("dinov2",), "Dinov2Model", TokenBackbone, IMAGENET, 224, _DINO_PARTS, True),
    Family("DINOv2 with registers", _REGISTERS, "Dinov2WithRegistersModel", TokenBackbone, IMAGENET, 224, _HEAD),
    Family("DINOv3", ("dinov3_vit",), "DINOv3ViTModel", TokenBackbone, IMAGENET, 256),
    Family("MAE", ("vit_mae",), "ViTMAEModel", MaskedAutoencoderBackbone, IMAGENET, None, ("decoder.",), True),
    Family("CLIP", ("clip", "clip_vision_model"), "CLIPVisionModel", _CLIP_BACKBONE, CLIP, None, _CLIP_PARTS),
    Family("SigLIP", ("siglip", "siglip_vision_model"), "SiglipVisionModel", _SIGLIP_BACKBONE, HALF, None, _CLIP_PARTS),
    Family("SigLIP 2 naflex", _SIGLIP2_TYPES, "Siglip2VisionModel", NaflexBackbone, HALF, 256, _CLIP_PARTS),
    Family("SAM", ("sam", "sam_vision_model"), "SamVisionModel", SamBackbone, IMAGENET, None, _SAM_PARTS),
    Family("ResNet", ("resnet",), "ResNetModel", ResNetBackbone, IMAGENET, 224, _HEAD),
    Family("MobileSAM", ("mobile_sam",), "", TinyViTBackbone, IMAGENET, 1024),
)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: The file is missing, unreadable, or not a JSON object; the message names it.
    """
    try:
        return read_json_object(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a teacher's folder must have it") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def detect_family(folder: Path) -> Family:
    """Return the family of the model in `folder`, by the `model_type` of its `config.json`.

    Raises:
        UserError: `config.json` is missing or unreadable, or the family is unknown.
    """
    model_type = read_json(folder / "config.json").get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise UserError(f"{folder / 'config.json'}: model_type must be one of {known}, got '{model_type}'")


def load_backbone(folder: Path, family: Family) -> Backbone:
    """Return the backbone with its weights, in float32.

    Raises:
        UserError: Weights are missing, have another shape, or are left over. Other parts of a full checkpoint, for
            example a text model, are ignored.
    """
    return family.wrap(_load_transformers(folder, family) if family.model_class else _load_tiny_vit(folder))


def build_backbone(family: Family, config: Any, tensors: Mapping[str, Tensor], source: str | Path) -> Backbone:
    """Return the backbone of a configuration of transformers, with tensors as weights.

    Names may be those of any version of transformers. Weight and bias of the last norm may be missing.

    Raises:
        UserError: Other weights are missing, have another shape, or are left over.
    """
    return family.wrap(_checked(family, source, None, config=config, state_dict=dict(tensors)))


def _load_transformers(folder: Path, family: Family) -> nn.Module:
    return _checked(family, folder, folder, **({"mask_ratio": 0.0} if family.name == "MAE" else {}))


def _checked(family: Family, source: str | Path, folder: Path | None, **options: Any) -> nn.Module:
    """Load a model of transformers from a folder, or from tensors in `options`, whose last norm may be missing."""
    import torch
    import transformers
    from safetensors import SafetensorError

    model_class = getattr(transformers, family.model_class)
    try:
        with _quiet():
            model, report = model_class.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{source}: cannot load a {family.name} model: {_first_line(error)}") from error
    missing = [name for name in report["missing_keys"] if folder or not _LAST_NORM.search(name)]
    problems = {
        "missing": sorted(missing),
        "of the wrong shape": sorted(str(key[0]) for key in report["mismatched_keys"]),
        "left over": sorted(name for name in report["unexpected_keys"] if not name.startswith(family.other_parts)),
    }
    for what, names in problems.items():
        if names:
            raise UserError(f"{source}: {len(names)} weights of the {family.name} model are {what}, first {names[0]}")
    return model


def _load_tiny_vit(folder: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = TinyViT()
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot load a MobileSAM encoder: {_first_line(error)}") from error
    return model


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bar and the report of transformers; problems in the report become errors here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
