"""The teachers by name, and a function that loads them."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vavae.config.image_size import Size, format_size, height_width
from vavae.errors import UserError, did_you_mean
from vavae.io.files import user_path
from vavae.teachers.backbones import resize_positions
from vavae.teachers.base import CAFFE, CLIP, HALF, IMAGENET, PUBLISHED, Backbone, Normalization, Teacher
from vavae.teachers.families import Family, detect_family, load_backbone, read_json


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher with a short name."""

    name: str
    source: str  # model of the hub (`owner/name`), or asset
    width: int  # channels of its features
    patch: int  # side in pixels of the patch of one feature
    input_size: int  # side that images are resized to by default
    normalization: Normalization
    license: str  # of the weights
    note: str = ""  # remark for readers of results


_DINOV3 = (("s16", 384), ("s16plus", 384), ("b16", 768), ("l16", 1024), ("h16plus", 1280), ("7b16", 4096))
_APACHE = "Apache-2.0"
_GATED = "DINOv3 license; gated on the hub"
_MAE_LICENSE = "CC-BY-NC-4.0 (original release; the hub's copy says Apache-2.0)"
_FOCUS_LICENSE = "Apache-2.0 (DINOv2); MIT (fine-tuned weights)"
_FOCUS_NOTE = "DINOv2 ViT-S/14 fine-tuned for saliency, not the untouched DINOv2"

TEACHERS: tuple[TeacherSpec, ...] = (
    *(
        TeacherSpec(f"dinov2-{name}{size}", f"facebook/dinov2-{source}{size}", width, 14, 224, IMAGENET, _APACHE)
        for name, source in (("", ""), ("registers-", "with-registers-"))
        for size, width in (("small", 384), ("base", 768), ("large", 1024), ("giant", 1536))
    ),
    *(
        TeacherSpec(
            f"dinov3-vit{size}", f"facebook/dinov3-vit{size}-pretrain-lvd1689m", width, 16, 256, IMAGENET, _GATED
        )
        for size, width in _DINOV3
    ),
    TeacherSpec("mae-base", "facebook/vit-mae-base", 768, 16, 224, IMAGENET, _MAE_LICENSE),
    TeacherSpec("mae-large", "facebook/vit-mae-large", 1024, 16, 224, IMAGENET, _MAE_LICENSE),
    TeacherSpec("mae-huge", "facebook/vit-mae-huge", 1280, 14, 224, IMAGENET, _MAE_LICENSE),
    TeacherSpec("clip-base32", "openai/clip-vit-base-patch32", 768, 32, 224, CLIP, "MIT"),
    TeacherSpec("clip-base16", "openai/clip-vit-base-patch16", 768, 16, 224, CLIP, "MIT"),
    TeacherSpec("clip-large14", "openai/clip-vit-large-patch14", 1024, 14, 224, CLIP, "MIT"),
    TeacherSpec("clip-large14-336", "openai/clip-vit-large-patch14-336", 1024, 14, 336, CLIP, "MIT"),
    TeacherSpec("siglip2-base", "google/siglip2-base-patch16-256", 768, 16, 256, HALF, _APACHE),
    TeacherSpec("siglip2-large", "google/siglip2-large-patch16-256", 1024, 16, 256, HALF, _APACHE),
    TeacherSpec("siglip2-so400m", "google/siglip2-so400m-patch16-256", 1152, 16, 256, HALF, _APACHE),
    TeacherSpec("siglip2-base-naflex", "google/siglip2-base-patch16-naflex", 768, 16, 256, HALF, _APACHE),
    TeacherSpec("siglip2-so400m-naflex", "google/siglip2-so400m-patch16-naflex", 1152, 16, 256, HALF, _APACHE),
    *(
        TeacherSpec(f"sam-{size}", f"facebook/sam-vit-{size}", 256, 16, 1024, IMAGENET, _APACHE)
        for size in ("base", "large", "huge")
    ),
    TeacherSpec("dinov2-small-focus", "dinov2-small-focus", 384, 14, 224, IMAGENET, _FOCUS_LICENSE, _FOCUS_NOTE),
    TeacherSpec("mobile-sam", "mobile-sam", 256, 16, 1024, IMAGENET, _APACHE, "a TinyViT distilled from SAM ViT-H"),
    TeacherSpec("resnet50", "resnet50-imagenet", 2048, 32, 224, CAFFE, "MIT", "trained with ImageNet labels"),
)


def load_teacher(
    name: str | Path,
    *,
    input_size: Size | None = None,
    image_size: Size | None = None,
    normalization: Literal["default", "published"] | str = "default",
    dtype: torch.dtype | None = None,
) -> Teacher:
    """Load a teacher by short name (see `TEACHERS`), local folder, or model of the hub (`owner/name`).

    Args:
        name: Name, folder or model. A folder must have `config.json` and weights as transformers saves them.
        input_size: Side, or (height, width), that images are resized to; a multiple of the patch. A side of n patches
            gives an n x n grid: 112 gives 8 x 8 with a patch of 14. None takes the teacher's own size.
        image_size: Size of the images, if known. Without `input_size`, images that are not square keep their aspect
            ratio as nearly as whole patches allow, at about the area of the teacher's own square. SAM accepts only one
            size, so it gets them distorted.
        normalization: "default" is the one that the model was trained with. "published" does as the published VA-VAE:
            the input is raw [-1, 1], resized without antialiasing, and position embeddings of DINOv2 and MAE, whose
            input must then be square, are resized with antialiasing. (The published sizes are 224 for DINOv2 and the
            image's own for MAE.)
        dtype: Dtype of matrix products, for example `torch.bfloat16`; float32 if None.

    Raises:
        UserError: The name, model, input size or normalization does not exist or fit, or weights do not fit.
    """
    if normalization not in ("default", "published"):
        raise UserError(f"normalization must be default or published, got '{normalization}'")
    spec = teacher_spec(str(name))
    folder = _find_folder(spec, str(name))
    family = detect_family(folder)
    backbone = load_backbone(folder, family)
    if spec is not None and (backbone.width, backbone.patch) != (spec.width, spec.patch):
        raise UserError(
            f"teacher '{name}': {folder} must have width {spec.width} and patch {spec.patch}, got {backbone.width} and "
            f"{backbone.patch}"
        )
    if input_size is None:
        own_size = spec.input_size if spec else _own_input_size(folder, family, backbone)
        input_size = _in_shape_of(image_size, own_size, backbone)
    size = _check_size(str(name), backbone, input_size)
    own = spec.normalization if spec else _own_normalization(folder, family)
    if normalization == "published" and family.antialiased_positions:
        if size[0] != size[1]:
            raise UserError(
                f"input_size of teacher '{name}' must be square for normalization published, got {format_size(size)}; "
                "give a square input_size, or use normalization default"
            )
        resize_positions(backbone.model, (size[0] // backbone.patch, size[1] // backbone.patch))
    return Teacher(str(name), backbone, size, PUBLISHED if normalization == "published" else own, dtype)


def teacher_spec(name: str) -> TeacherSpec | None:
    """Return the teacher of a short name or hub id; None for any other."""
    return next((spec for spec in TEACHERS if name in (spec.name, spec.source)), None)


def name_and_side(name: str) -> tuple[str, int | None]:
    """Return a teacher's name and input size of "NAME@SIDE"; None for a name alone."""
    plain, _, side = name.rpartition("@")
    return (plain, int(side)) if plain and side.isdigit() else (name, None)


def _find_folder(spec: TeacherSpec | None, name: str) -> Path:
    """Return the folder with the teacher's files; fetch them if necessary."""
    from vavae import assets

    if spec is not None:
        path = assets.path(spec.source)
        return path if path.is_dir() else path.parent
    if user_path(name).is_dir():
        return user_path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return assets.path(name)
    names = [spec.name for spec in TEACHERS]
    hint = did_you_mean(name, names)
    raise UserError(f"teacher must be a name, folder or hub model, got '{name}'{hint} (names: {', '.join(names)})")


def _in_shape_of(images: Size | None, own: int, backbone: Backbone) -> Size:
    """Return the input size for images of a size: the teacher's own square, or about its area in their aspect ratio."""
    height, width = height_width(own if images is None else images)
    if height == width or backbone.fixed_size is not None:
        return own
    cells = own / backbone.patch
    exact = cells * math.sqrt(height / width), cells * math.sqrt(width / height)

    def error(grid: tuple[int, ...]) -> float:
        rows, columns = grid
        shape, whole = columns * height / (rows * width), rows * columns / cells**2
        # The aspect ratio counts twice: distortion changes the image more than a different scale.
        return 2 * abs(math.log(shape)) + abs(math.log(whole))

    nearest = ((max(1, math.floor(side)), math.ceil(side)) for side in exact)
    rows, columns = min(itertools.product(*nearest), key=error)
    return rows * backbone.patch, columns * backbone.patch


def _check_size(name: str, backbone: Backbone, size: Size) -> tuple[int, int]:
    height, width = height_width(size)
    patch = backbone.patch
    if backbone.fixed_size is not None and (height, width) != (backbone.fixed_size, backbone.fixed_size):
        raise UserError(f"input_size of teacher '{name}' must be {backbone.fixed_size}, got {height} x {width}")
    for side in (height, width):
        if side <= 0 or side % patch:
            below = max(side // patch, 1) * patch
            raise UserError(
                f"input_size of teacher '{name}' must be a multiple of its patch {patch}, got {side}; "
                f"try {below} or {below + patch}"
            )
    return height, width


def _own_input_size(folder: Path, family: Family, backbone: Backbone) -> int:
    """Return the family's input size, else the one in `config.json`, rounded down to whole patches."""
    if family.input_size is not None:
        return family.input_size
    config = read_json(folder / "config.json")
    stated = config.get("vision_config", config).get("image_size")
    if not isinstance(stated, int):
        raise UserError(f"{folder / 'config.json'} must have an image_size; without it give the teacher an input_size")
    return max(stated // backbone.patch, 1) * backbone.patch


def _own_normalization(folder: Path, family: Family) -> Normalization:
    """Return the normalization in the folder's preprocessor config, else the family's."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return family.normalization
    stated = read_json(path)
    mean, std = stated.get("image_mean"), stated.get("image_std")
    if not (isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3):
        return family.normalization
    if not all(value > 0 for value in std):
        raise UserError(f"{path}: image_std must be positive, got {std}")
    return Normalization("stated", (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
