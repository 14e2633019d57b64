"""Features on disk: equal to the teacher's, resumable, and separate for each setting."""

from pathlib import Path

import pytest
import torch
from tiny_teacher import tiny_teacher
from torch import Tensor

from vavae.errors import UserError
from vavae.teachers import FeatureCache, Teacher, cache

_COUNT = 23
_IMAGES = torch.rand(_COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


class _Loader:
    """Load images and record their indices; stop the run at image `stop`."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked: list[int] = []
        self.stop = stop

    def __call__(self, indices: Tensor) -> Tensor:
        if self.stop is not None and self.stop in indices:
            raise KeyboardInterrupt
        self.asked += indices.tolist()
        return _IMAGES[indices]


@pytest.fixture(params=["mapped", "in memory"], autouse=True)
def _small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use blocks of five images (float16, 6 x 2 x 2)."""
    monkeypatch.setattr(cache, "_BLOCK_BYTES", 5 * 6 * 2 * 2 * 2)
    if request.param == "mapped":
        monkeypatch.setattr(cache, "_IN_MEMORY_BYTES", 0)


def _new(folder: Path, teacher: Teacher | None = None, **changes: object) -> FeatureCache:
    settings: dict = {"grid": (2, 2), "image_set": "images", "count": _COUNT} | changes
    return FeatureCache(folder, teacher or tiny_teacher(), **settings)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cached_features_equal_the_teachers(dtype: torch.dtype, workers: int, tmp_path: Path) -> None:
    features = _new(tmp_path, dtype=dtype)
    features.fill(_Loader(), batch_size=2, workers=workers)
    expected = tiny_teacher().features_at(_IMAGES, (2, 2)).to(dtype)
    indices = torch.tensor([22, 0, 7, 7, 4, 5, 21])
    found = features.get(indices)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected[indices], rtol=torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(_new(tmp_path, dtype=dtype).get(range(_COUNT)), expected, rtol=1e-2, atol=1e-6)
    assert features.get([]).shape == (0, 6, 2, 2)
    assert features.size_bytes == expected.numel() * dtype.itemsize


_ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=_ON_GPU)])
def test_resident_features_equal_stored_ones(device: str, tmp_path: Path) -> None:
    features = _new(tmp_path)
    features.fill(_Loader())
    indices = torch.tensor([22, 0, 7, 7, 4])
    expected = features.get(indices)
    features.to_device(device)
    for block in features.folder.glob("*.safetensors"):
        block.unlink()
    found = features.get(indices)
    assert found.device.type == device and torch.equal(found.cpu(), expected)
    with pytest.raises(IndexError):
        features.get([_COUNT])


@pytest.mark.parametrize("workers", [0, 3])
def test_stopped_run_resumes_with_the_next_block(workers: int, tmp_path: Path) -> None:
    first, second, third = _Loader(stop=12), _Loader(), _Loader()
    with pytest.raises(KeyboardInterrupt):
        _new(tmp_path).fill(first, batch_size=2, workers=workers)
    with pytest.raises(UserError, match="missing; call `fill` first"):
        _new(tmp_path).get([0])
    resumed = _new(tmp_path)
    resumed.fill(second, batch_size=2, workers=workers)
    assert (sorted(second.asked) if workers else second.asked) == list(range(10, _COUNT))  # threads load in any order
    resumed.fill(third)
    assert third.asked == []
    whole = _new(tmp_path / "whole")
    whole.fill(_Loader(), batch_size=2)
    assert torch.equal(resumed.get(range(_COUNT)), whole.get(range(_COUNT)))


def test_half_written_block_does_not_count(tmp_path: Path) -> None:
    features = _new(tmp_path)
    features.fill(_Loader())
    block = sorted(features.folder.glob("*.safetensors"))[1]
    block.rename(block.with_name(f".{block.name}.{'0' * 16}.tmp"))
    loader = _Loader()
    features.fill(loader)
    assert loader.asked == list(range(5, 10))
    assert not list(features.folder.glob("*.tmp"))


@pytest.mark.parametrize(
    "changes", [{"image_set": "others"}, {"count": _COUNT - 1}, {"grid": (4, 4)}, {"dtype": torch.bfloat16}]
)
def test_other_settings_use_another_folder(changes: dict, tmp_path: Path) -> None:
    assert _new(tmp_path).folder != _new(tmp_path, **changes).folder


def test_another_teacher_uses_another_folder(tmp_path: Path) -> None:
    assert _new(tmp_path).folder == _new(tmp_path, tiny_teacher(0)).folder
    assert _new(tmp_path).folder != _new(tmp_path, tiny_teacher(1)).folder


@pytest.mark.parametrize("damage", ["truncated", "other shape"])
def test_damaged_block_is_named(damage: str, tmp_path: Path) -> None:
    features = _new(tmp_path)
    features.fill(_Loader())
    blocks = sorted(features.folder.glob("*.safetensors"))
    content = blocks[0].read_bytes()
    blocks[1].write_bytes(content[:-7] if damage == "truncated" else blocks[-1].read_bytes())
    with pytest.raises(UserError, match=rf"{blocks[1].name} are damaged"):
        features.get([0])


def test_indices_out_of_range(tmp_path: Path) -> None:
    features = _new(tmp_path)
    features.fill(_Loader())
    for wrong in (-1, _COUNT):
        with pytest.raises(IndexError):
            features.get([0, wrong])


def test_features_must_fit_the_stored_type(tmp_path: Path) -> None:
    teacher = tiny_teacher()
    with torch.no_grad():
        teacher.backbone.layer.bias.fill_(1e5)  # type: ignore[union-attr]
    features = _new(tmp_path, teacher)
    with pytest.raises(UserError, match="must be finite, got others for images 0 to 4 as float16"):
        features.fill(_Loader())
    assert not list(features.folder.glob("*.safetensors"))
