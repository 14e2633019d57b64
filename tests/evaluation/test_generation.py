"""Reference statistics of other FID programs: the network they are taken for, and files that are refused."""

from pathlib import Path

import numpy as np
import pytest
from evaluate_models import color_network, use_colors

from vavae.cli import run
from vavae.errors import UserError
from vavae.evaluation.generation import read_statistics

GRAPH, PYTORCH, CLEAN = (color_network(f"inception{end}") for end in ("", "-pytorch-fid", "-clean"))
TEACHER = color_network("teacher:a")
PLAIN = {"mu": np.full(12, 0.5), "sigma": np.eye(12) / 9}
ADM = {**PLAIN, "mu_s": np.full(6, 0.5), "sigma_s": np.eye(6) / 9}
FILES = {
    "of pytorch-fid": ("ref.npz", PLAIN, [PYTORCH, TEACHER], ["inception-pytorch-fid"], "the file does not record it"),
    "of EDM": ("ref.npz", PLAIN, [GRAPH], ["inception"], "the file does not record it"),
    "of several": ("ref.npz", PLAIN, [CLEAN, GRAPH], ["inception"], "the file does not record it"),
    "without an Inception": ("ref.npz", PLAIN, [TEACHER], [], ""),
    "of ADM": ("ref.npz", ADM, [GRAPH, TEACHER], ["inception"], "ADM"),
    "of ADM for others": ("ref.npz", ADM, [CLEAN], [], ""),
    "of clean-fid": ("mine_clean_custom_na.npz", PLAIN, [CLEAN, GRAPH], ["inception-clean"], "mode clean"),
    "of its second mode": ("ffhq_legacy_pytorch_trainval_256.npz", PLAIN, [PYTORCH], ["inception-pytorch-fid"], "mode"),
    "of its third mode": ("cifar10_legacy_tensorflow_train_32.npz", PLAIN, [GRAPH], ["inception"], "mode"),
    "of a named network": (
        "ref.npz",
        {**PLAIN, "network": "teacher:a"},
        [GRAPH, TEACHER],
        ["teacher:a"],
        "the file has its name",
    ),
    "of its mode for others": ("mine_clean_custom_na.npz", PLAIN, [GRAPH], [], ""),
}


@pytest.mark.parametrize("kind", FILES)
def test_network_of_statistics(kind: str, tmp_path: Path) -> None:
    name, arrays, networks, expected, origin = FILES[kind]
    np.savez(tmp_path / name, **arrays)  # type: ignore[arg-type]
    found = read_statistics(tmp_path / name, networks)
    assert list(found) == expected
    assert all(origin in statistics.origin for statistics in found.values())


def test_mean_without_covariance_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "ref.npz", mu=PLAIN["mu"])
    with pytest.raises(UserError, match=r"ref\.npz must have mu and sigma, and does not have sigma"):
        read_statistics(tmp_path / "ref.npz", [GRAPH])


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a command that measures samples; a test appends the reference."""
    use_colors(monkeypatch.setattr)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=pixels)
    given = ["evaluate", "samples", str(tmp_path / "samples.npz"), "--features", str(tmp_path / "features")]
    return [*given, "--device", "cpu", "--output", str(tmp_path / "result.json")]


def test_assumed_network_is_printed(samples: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = str(tmp_path / "ref.npz")
    np.savez(reference, **PLAIN)  # type: ignore[arg-type]
    assert run([*samples, "--reference", reference, "--network", "inception-pytorch-fid"]) == 0
    printed = capsys.readouterr().out
    assert f"reference: the statistics in {reference} are taken to be of inception-pytorch-fid: the file" in printed


HALF = {"mu": np.zeros(12), "sigma": np.eye(12, dtype=np.float16)}
UNUSABLE = {
    "huge": ({**PLAIN, "mu": np.full(12, 1e200)}, "mu holds numbers that are not finite or above 1e+100"),
    "half precision": (HALF, "sigma must be float32 or float64, got float16"),
    "no covariance": ({**PLAIN, "sigma": np.arange(144.0).reshape(12, 12)}, "not symmetric and positive semi-definite"),
    "neither": (
        {"features": np.zeros((3, 12))},
        "ref.npz must have images (arr_0), or statistics of the network inception (mu, sigma)",
    ),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_unusable_statistics_are_refused_in_one_line(
    fault: str, samples: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, message = UNUSABLE[fault]
    reference = str(tmp_path / "ref.npz")
    np.savez_compressed(reference, **arrays)  # type: ignore[arg-type]
    assert run([*samples, "--reference", reference, "--network", "inception"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reference in line and message in line
