"""Reference statistics in npz files: arrays that are not a covariance, half precision, files that fill memory."""

from pathlib import Path

import numpy as np
import pytest

from vavae.errors import UserError
from vavae.evaluation.images import npz_images
from vavae.metrics import RunningMoments
from vavae.metrics.npz import read_npz

Arrays = dict[str, np.ndarray]
LOWER = np.array([[1.0, 0.0], [0.9, 1.0]])
WRONG: dict[str, tuple[Arrays, str]] = {
    "half precision": ({"sigma": np.eye(2, dtype=np.float16)}, "sigma must be float32 or float64, got float16"),
    "half a mean": ({"mu": np.zeros(2, dtype=np.float16)}, "mu must be float32 or float64, got float16"),
    "not symmetric": ({"sigma": LOWER}, "sigma is not symmetric and positive semi-definite"),
    "negative": ({"sigma": -np.eye(2)}, "sigma is not symmetric and positive semi-definite"),
    "deviations": ({"sigma": np.ones(2)}, "sigma (2,)"),
    "pickled": ({"mu": np.array([None, None], dtype=object)}, "allow_pickle"),
}


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **({"mu": np.zeros(2), "sigma": np.eye(2)} | arrays))  # type: ignore[arg-type]
    return path


def load(path: Path) -> RunningMoments:
    return RunningMoments.from_arrays(read_npz(path), str(path))


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_statistics_are_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    arrays, message = WRONG[fault]
    path = save(tmp_path / "reference.npz", **arrays)
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value).startswith(str(path)) and message in str(error.value) and "\n" not in str(error.value)


def test_float32_statistics_are_read(tmp_path: Path) -> None:
    sigma = np.cov(np.random.default_rng(0).normal(size=(8, 200))).astype(np.float32)
    path = save(tmp_path / "reference.npz", mu=np.zeros(8, np.float32), sigma=sigma)
    assert load(path).distance(load(path)) < 1e-6


def test_other_arrays_are_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "reference.npz", features=np.array([None], dtype=object))
    assert read_npz(path).keys() == {"mu", "sigma"}


def test_npz_that_fills_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, mu=np.zeros(2000), sigma=np.zeros((2000, 2000)))
    with pytest.raises(UserError, match=r"bomb\.npz .*sigma\.npy unpacks 31,\d+ bytes to 32,000,128; .*numpy\.savez"):
        read_npz(path)
    np.savez_compressed(path, arr_0=np.zeros((1000, 64, 64, 3), np.uint8))
    with pytest.raises(UserError, match=r"bomb\.npz: .*arr_0\.npy unpacks .* to 12,288,128"):
        npz_images(path)
    np.savez(path, arr_0=np.zeros((1000, 64, 64, 3), np.uint8))
    assert npz_images(path) is not None


def test_compressed_images_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 2, (100, 64, 64, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "images.npz", arr_0=pixels)
    assert (tmp_path / "images.npz").stat().st_size < pixels.nbytes / 5
    assert npz_images(tmp_path / "images.npz") is not None
