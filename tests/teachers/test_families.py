"""Every family against the transformers model that it wraps: tokens, their order, weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FULL_MODELS, VISION_MODELS, randomise
from torch import Tensor

from vavae.errors import UserError
from vavae.teachers import Teacher, load_teacher

_PREFIX = {"dinov2": 1, "dinov2-registers": 4, "dinov3": 5, "clip": 1, "siglip": 0}
_ANY_SIZE = {"dinov2", "dinov2-registers", "dinov3", "clip", "siglip", "mae", "siglip2-naflex", "resnet"}


def _saved(model: torch.nn.Module, folder: Path) -> Any:
    randomise(model)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def _images(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3)) * 2 - 1


def _assert_row_by_row(grid: Tensor, tokens: Tensor) -> None:
    """Check that grid[:, :, i, j] is token i * width + j."""
    _, _, height, width = grid.shape
    assert tokens.shape[1] == height * width
    for i in range(height):
        for j in range(width):
            torch.testing.assert_close(grid[:, :, i, j], tokens[:, i * width + j])


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["native", "other"])
@pytest.mark.parametrize("family", sorted(_PREFIX))
def test_patch_tokens_form_the_grid(family: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = _saved(VISION_MODELS[family](), tmp_path)
    teacher = load_teacher(tmp_path, input_size=size)
    features = teacher(_images(*size))
    fit = {"interpolate_pos_encoding": True} if family in ("clip", "siglip") else {}
    with torch.no_grad():
        output = model(pixel_values=teacher.preprocess(_images(*size)), **fit)
    assert features.grid.shape == (2, 16, size[0] // 8, size[1] // 8)
    _assert_row_by_row(features.grid, output.last_hidden_state[:, _PREFIX[family] :])
    torch.testing.assert_close(features.pooled, output.pooler_output)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["native", "other"])
def test_mae_keeps_all_patches_in_order(size: tuple[int, int], tmp_path: Path) -> None:
    model = _saved(VISION_MODELS["mae"](), tmp_path)
    teacher = load_teacher(tmp_path, input_size=size)
    features = teacher(_images(*size))
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        shuffled = model(teacher.preprocess(_images(*size)), interpolate_pos_encoding=True)
    # The model's record of where each patch went.
    where = shuffled.ids_restore.unsqueeze(-1).expand(-1, -1, 16)
    tokens = shuffled.last_hidden_state[:, 1:].gather(1, where)
    assert not torch.allclose(tokens, shuffled.last_hidden_state[:, 1:])
    _assert_row_by_row(features.grid, tokens)
    torch.testing.assert_close(features.pooled, shuffled.last_hidden_state[:, 0])
    assert torch.equal(features.grid, teacher(_images(*size)).grid)


def test_sam_gives_its_neck_at_one_size(tmp_path: Path) -> None:
    model = _saved(VISION_MODELS["sam"](), tmp_path)
    teacher = load_teacher(tmp_path)
    features = teacher(_images(32, 32))
    with torch.no_grad():
        expected = model(teacher.preprocess(_images(32, 32))).last_hidden_state
    torch.testing.assert_close(features.grid, expected)
    assert (teacher.width, teacher.grid_size, features.pooled) == (12, (4, 4), None)
    with pytest.raises(UserError, match=r"input_size of teacher '.*' must be 32, got 64 x 64"):
        load_teacher(tmp_path, input_size=64)
    wide = load_teacher(tmp_path, image_size=(24, 40))
    assert wide.input_size == (32, 32)  # distorted to a square
    torch.testing.assert_close(wide(_images(24, 40)).grid, teacher(_images(24, 40)).grid)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=["native", "other"])
def test_naflex_patches_match_its_processor(size: tuple[int, int], tmp_path: Path) -> None:
    model = _saved(VISION_MODELS["siglip2-naflex"](), tmp_path)
    teacher = load_teacher(tmp_path, input_size=size)
    pixels = teacher.preprocess(_images(*size))
    # The processor's patches have the channels last; unfold has them first.
    patches = torch.nn.functional.unfold(pixels, 8, stride=8).unflatten(1, (3, 64)).movedim(1, 2).flatten(1, 2).mT
    grid = torch.tensor([[size[0] // 8, size[1] // 8]] * 2)
    with torch.no_grad():
        mask = torch.ones(patches.shape[:2], dtype=torch.long)
        output = model(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=grid)
    features = teacher(_images(*size))
    _assert_row_by_row(features.grid, output.last_hidden_state)
    torch.testing.assert_close(features.pooled, output.pooler_output)


def test_resnet_gives_last_map_and_mean(tmp_path: Path) -> None:
    model = _saved(VISION_MODELS["resnet"](), tmp_path)
    teacher = load_teacher(tmp_path, input_size=32)
    features = teacher(_images(32, 32))
    with torch.no_grad():
        expected = model(teacher.preprocess(_images(32, 32))).last_hidden_state
    torch.testing.assert_close(features.grid, expected)
    torch.testing.assert_close(features.pooled, expected.mean((2, 3)))
    assert (teacher.patch, teacher.grid_size) == (8, (4, 4))


def _vision_part(family: str, model: Any, pixels: Tensor) -> Tensor:
    """Return the output of the vision model in a full checkpoint, as tokens or as a grid."""
    if family == "mae":
        model.config.mask_ratio = 0.0
        order = torch.arange(16.0).expand(len(pixels), -1)
        return model.vit(pixels, noise=order).last_hidden_state
    part = {"dinov2": "dinov2", "clip": "vision_model", "siglip": "vision_model", "sam": "vision_encoder"}
    return getattr(model, part.get(family, "resnet"))(pixels).last_hidden_state


@pytest.mark.parametrize("family", sorted(FULL_MODELS))
def test_full_checkpoints_load_the_vision_model(family: str, tmp_path: Path) -> None:
    model = _saved(FULL_MODELS[family](), tmp_path)
    teacher = load_teacher(tmp_path, input_size=32)
    grid = teacher(_images(32, 32)).grid
    with torch.no_grad():
        expected = _vision_part(family, model, teacher.preprocess(_images(32, 32)))
    if expected.ndim == 4:
        torch.testing.assert_close(grid, expected)
    else:
        _assert_row_by_row(grid, expected[:, -16:])


def _edit_weights(folder: Path, edit: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    if edit == "missing":
        del weights[name]
    elif edit == "left over":
        weights["surplus.weight"] = torch.zeros(2)
    elif edit == "shape":
        weights[name] = torch.zeros(5, 5)
    save_file(weights, path, metadata={"format": "pt"})
    if edit == "truncated":
        path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("family", ["dinov2", "clip", "sam"])
@pytest.mark.parametrize("edit", ["missing", "left over", "shape", "truncated"])
def test_mismatched_weights_are_refused(family: str, edit: str, tmp_path: Path) -> None:
    _saved(VISION_MODELS[family](), tmp_path)
    _edit_weights(tmp_path, edit)
    with pytest.raises(UserError) as raised:
        load_teacher(tmp_path, input_size=32)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "model_type must be one of dinov2, .*, got 'bert'"),
        ({}, "model_type must be .*, got 'None'"),
        ([1], "not a JSON object"),
    ],
)
def test_folder_of_another_model(config: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_teacher(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("family", sorted(_ANY_SIZE))
def test_bfloat16_is_near_float32(family: str, tmp_path: Path) -> None:
    _saved(VISION_MODELS[family](), tmp_path)
    exact: Teacher = load_teacher(tmp_path, input_size=32)
    fast: Teacher = load_teacher(tmp_path, input_size=32, dtype=torch.bfloat16)
    reference, rounded = exact(_images(32, 32)).grid, fast(_images(32, 32)).grid
    assert rounded.dtype == torch.float32
    error = (rounded - reference).norm() / reference.norm()
    assert 1e-5 < error < 0.1
    assert exact.fingerprint() != fast.fingerprint()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", sorted(VISION_MODELS))
def test_gpu_gives_the_same_features(family: str, tmp_path: Path) -> None:
    _saved(VISION_MODELS[family](), tmp_path)
    images = _images(32, 32)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        teacher = load_teacher(tmp_path, input_size=32, dtype=dtype)
        reference = teacher(images).grid
        found = teacher.to("cuda")(images.cuda()).grid
        assert found.device.type == "cuda"
        assert (found.cpu() - reference).norm() < tolerance * reference.norm()
