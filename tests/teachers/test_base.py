"""Preprocessing and precision of a teacher, and the table of names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import VISION_MODELS, randomise
from torch import Tensor

from vavae.config.image_size import Size, height_width
from vavae.errors import UserError
from vavae.teachers import TEACHERS, Teacher, load_teacher
from vavae.teachers.base import Backbone
from vavae.teachers.registry import _in_shape_of


class Backbone14(Backbone):
    """A backbone with a patch of 14."""

    width, patch = 1, 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny DINOv2 and return its folder."""
    path = tmp_path_factory.mktemp("dinov2")
    randomise(VISION_MODELS["dinov2"]()).save_pretrained(path)  # type: ignore[operator]
    return path


def _images(size: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize(
    ("family", "mean", "std"),
    [
        ("dinov2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("dinov3", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("mae", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("sam", (123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255)),
        ("clip", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ("siglip", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("siglip2-naflex", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ],
)
def test_normalization_numbers(family: str, mean: tuple, std: tuple, tmp_path: Path) -> None:
    randomise(VISION_MODELS[family]()).save_pretrained(tmp_path)  # type: ignore[operator]
    teacher = load_teacher(tmp_path, input_size=32)
    images = _images(32)
    unit = (images.double().numpy() + 1) / 2
    expected = (unit - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1))
    np.testing.assert_allclose(teacher.preprocess(images).numpy(), expected, atol=2e-6)


def test_folder_states_its_normalization(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 2.0, 4.0]}))
    pixels = load_teacher(tmp_path, input_size=32).preprocess(torch.ones(1, 3, 32, 32))
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([0.9, 0.4, 0.175]))
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 0.0, 4.0]}))
    with pytest.raises(UserError, match="image_std must be positive"):
        load_teacher(tmp_path, input_size=32)


def _resized_by_pillow(images: Tensor, size: int, method: Image.Resampling) -> Tensor:
    """Resize with antialiasing, channel by channel in float."""
    resized = [
        np.array(Image.fromarray(plane, mode="F").resize((size, size), method))
        for plane in images.flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(resized)).view(*images.shape[:2], size, size)


@pytest.mark.parametrize("size", [50, 21], ids=["down", "up"])
def test_images_are_resized_with_antialiasing(size: int, folder: Path) -> None:
    teacher = load_teacher(folder, input_size=32)
    images = _images(size)
    resized = _resized_by_pillow(images, 32, Image.Resampling.BILINEAR)
    torch.testing.assert_close(
        teacher.preprocess(images), resized * teacher.scale + teacher.shift, atol=1e-4, rtol=1e-5
    )


def test_published_input_is_raw_and_aliased(folder: Path) -> None:
    teacher = load_teacher(folder, input_size=32, normalization="published")
    assert torch.equal(teacher.preprocess(_images(32)), _images(32))
    plain = F.interpolate(_images(50), size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(teacher.preprocess(_images(50)), plain)


@pytest.mark.parametrize("side", [3, 4, 6])
def test_published_positions_are_antialiased(side: int, folder: Path) -> None:
    own = load_teacher(folder, input_size=8 * side).backbone.model.embeddings.position_embeddings
    fitted = load_teacher(folder, input_size=8 * side, normalization="published")
    found = fitted.backbone.model.embeddings.position_embeddings
    grid = own[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    expected = _resized_by_pillow(grid, side, Image.Resampling.BICUBIC)
    torch.testing.assert_close(found[:, 1:], expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, 0], own[:, 0])
    assert fitted(_images(8 * side)).grid.shape == (1, 16, side, side)


def test_published_normalization_changes_features(folder: Path) -> None:
    default = load_teacher(folder, input_size=48)
    published = load_teacher(folder, input_size=48, normalization="published")
    assert not torch.allclose(default(_images(48)).grid, published(_images(48)).grid, atol=1e-2)
    assert default.fingerprint() != published.fingerprint()
    message = "^input_size of teacher '.*' must be square for normalization published, got"
    with pytest.raises(UserError, match=f"{message} 48x32; give"):
        load_teacher(folder, input_size=(48, 32), normalization="published")
    with pytest.raises(UserError, match=f"{message} 176x288"):
        load_teacher(folder, image_size=(192, 320), normalization="published")
    assert load_teacher(folder, input_size=48, image_size=(192, 320), normalization="published").input_size == (48, 48)


@pytest.mark.parametrize(
    ("images", "grid"),
    [
        (None, (28, 28)),
        (256, (28, 28)),
        ((192, 320), (22, 36)),
        ((320, 192), (36, 22)),
        ((256, 384), (23, 34)),
        ((8, 4096), (1, 633)),  # one row of patches is already too high
    ],
)
def test_input_keeps_the_aspect_ratio(images: Size | None, grid: tuple[int, int], folder: Path) -> None:
    """The area is about that of 224 px, in whole patches of 8."""
    teacher = load_teacher(folder, image_size=images)
    assert teacher.grid_size == grid and teacher.input_size == (8 * grid[0], 8 * grid[1])
    assert load_teacher(folder, input_size=32, image_size=images).input_size == (32, 32)


def test_teacher_stays_frozen(folder: Path) -> None:
    teacher = load_teacher(folder, input_size=32)
    wrapper = torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in wrapper.parameters())
    images = _images(32).requires_grad_()
    features = teacher(images)
    assert not features.grid.requires_grad
    assert not teacher.features_at(images, (2, 2)).requires_grad


def test_outer_autocast_has_no_effect(folder: Path) -> None:
    teacher = load_teacher(folder, input_size=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = teacher(_images(32)).grid
    assert torch.equal(inside, teacher(_images(32)).grid)


def test_features_do_not_depend_on_the_batch(folder: Path) -> None:
    teacher = load_teacher(folder, input_size=32)
    images = _images(32, count=5)
    alone = torch.cat([teacher(image).grid for image in images.split(1)])
    torch.testing.assert_close(teacher(images).grid, alone)


def test_features_at_a_latent_grid(folder: Path) -> None:
    teacher = load_teacher(folder, input_size=32)
    features = teacher.features_at(_images(32), (2, 2))
    expected = teacher(_images(32)).grid.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    torch.testing.assert_close(features, expected)


def test_fingerprint_of_weights_and_sizes(folder: Path, tmp_path: Path) -> None:
    first = load_teacher(folder, input_size=32)
    assert first.fingerprint() == load_teacher(folder, input_size=32).fingerprint()
    assert first.fingerprint() != load_teacher(folder, input_size=40).fingerprint()
    randomise(VISION_MODELS["dinov2"](), seed=1).save_pretrained(tmp_path)  # type: ignore[operator]
    assert first.fingerprint() != load_teacher(tmp_path, input_size=32).fingerprint()


@pytest.mark.parametrize("size", [33, 7, 0, -8, (32, 33)])
def test_input_size_must_be_whole_patches(size: int | tuple[int, int], folder: Path) -> None:
    with pytest.raises(UserError, match="must be a multiple of its patch 8, got"):
        load_teacher(folder, input_size=size)


def test_wrong_normalization(folder: Path) -> None:
    with pytest.raises(UserError, match="normalization must be default or published, got 'raw'"):
        load_teacher(folder, normalization="raw")


def test_unknown_name_lists_near_and_all_names() -> None:
    with pytest.raises(UserError, match="did you mean 'dinov2-large'") as raised:
        load_teacher("dinov2-larg")
    assert all(spec.name in str(raised.value) for spec in TEACHERS)


def test_hub_names_are_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vavae import assets

    asked = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return folder

    monkeypatch.setattr(assets, "path", fetch)
    assert isinstance(load_teacher("owner/model", input_size=32), Teacher)
    # The tiny model does not match the known names.
    for name in ("dinov2-large", "facebook/dinov2-large"):
        with pytest.raises(UserError, match=rf"teacher '{name}': .* must have width .* got 16 and 8"):
            load_teacher(name)
    assert asked == ["owner/model", "facebook/dinov2-large", "facebook/dinov2-large"]


def test_the_table_is_consistent() -> None:
    names = [spec.name for spec in TEACHERS]
    assert len(set(names)) == len(names)
    for spec in TEACHERS:
        assert spec.input_size % spec.patch == 0
        assert spec.license
    assert "saliency" in next(spec.note for spec in TEACHERS if spec.name == "dinov2-small-focus")


@given(st.integers(16, 1024), st.integers(16, 1024))
def test_input_is_near_the_ideal_shape(height: int, width: int) -> None:
    """No side is off by a whole patch, and transposed images have a transposed input."""
    found = height_width(_in_shape_of((height, width), 224, Backbone14()))
    exact = (224 * (height / width) ** 0.5, 224 * (width / height) ** 0.5)
    assert all(side % 14 == 0 and abs(side - ideal) < 14 for side, ideal in zip(found, exact, strict=True))
    assert height_width(_in_shape_of((width, height), 224, Backbone14())) == found[::-1]


def test_input_of_a_rectangle() -> None:
    assert _in_shape_of((192, 320), 224, Backbone14()) == (12 * 14, 20 * 14)
