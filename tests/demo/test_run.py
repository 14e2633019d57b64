"""The whole path by the command line on real images: files, numbers, page, and resuming after a stop."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_page import Page
from PIL import Image

from vavae.cli import run
from vavae.data import open_images
from vavae.demo import plan
from vavae.demo.plan import QUICK

pytestmark = pytest.mark.timeout(900)  # two minutes on two idle cores
COMMAND = [sys.executable, "-c", "from vavae.cli import main; main()"]
HEADLINE = (
    "PSNR of reconstructions",
    "Linear probe on latents",
    "Alignment with the teacher",
    "LPIPS of reconstructions",
    "Fréchet distance of samples",
)


def vavae(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One `vavae demo --quick`, stopped once in the middle by Ctrl-C and resumed."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    arguments = ["demo", "--quick", "--output", str(folder)]
    first = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = folder / "aligned/tokenizer/metrics.jsonl"
    while first.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=120)
    assert first.returncode == 1, error
    assert "same command to resume" in error.splitlines()[-1] and "Traceback" not in error
    done = vavae(*arguments)
    return folder, done


def test_exit_code_and_summary(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = demo
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"page: {folder / 'report.html'}" in lines
    for label in HEADLINE:
        assert any(line.startswith(f"  {label}: ") for line in lines), label


def test_progress_in_plain_lines(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    error = demo[1].stderr
    assert "\x1b" not in error and "\r" not in error
    assert re.search(r"^tokenizer: \d+/512 images \(\d+\.\d/s.*\)  loss \S+$", error, re.MULTILINE)


def test_results_contain_every_number(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    results = json.loads((demo[0] / "results.json").read_text())
    records = {record["name"]: record for record in results["runs"]["aligned"]}
    for name in ("PSNR", "SSIM", "LPIPS", "linear probe", "Fréchet distance of samples", "uniformity: Gini"):
        assert np.isfinite(records[name]["value"]), name
        assert records[name]["protocol"]["samples"] > 0
    assert 8 < records["PSNR"]["value"] < 40
    samples = records["Fréchet distance of samples"]["protocol"]
    assert {"solver", "steps", "shift", "guidance_scale", "seed", "feature_network_hash", "dtype"} <= samples.keys()
    assert {step["name"] for step in results["steps"]} >= {"train the aligned tokenizer", "encode (aligned)"}
    assert {"torch", "vavae", "python"} <= results["versions"].keys()
    assert not (demo[0] / "features").exists()


def test_losses_are_finite_and_fall(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    for stage, terms, images in (
        ("tokenizer", ("pixel", "perceptual"), 512),
        ("generator", ("total", "mse", "direction"), 1280),
    ):
        lines = [json.loads(line) for line in (demo[0] / "aligned" / stage / "metrics.jsonl").read_text().splitlines()]
        seen = [line["images"] for line in lines]
        assert seen == sorted(set(seen)) and seen[-1] == images  # no gaps after the stop, no repeats
        for term in terms:
            values = [line[term] for line in lines]
            assert all(value is not None and np.isfinite(value) for value in values), term
            assert values[-1] < values[0], term


def test_page_is_self_contained_and_shows_the_numbers(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    page = Page((demo[0] / "report.html").read_text())
    assert len([source for source in page.sources if source.startswith("data:image/")]) > 20
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    results = json.loads((demo[0] / "results.json").read_text())
    psnr = next(r["value"] for r in results["runs"]["aligned"] if r["name"] == "PSNR")
    assert f"{psnr:.2f}" in page.text
    assert "CIFAR-10" in page.text and "saliency" in page.text  # origin of images and teacher


def test_second_call_trains_nothing(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, first = demo
    before = (folder / "aligned/tokenizer/metrics.jsonl").read_bytes()
    sizes = {p: p.stat().st_mtime_ns for p in folder.rglob("model.safetensors")}
    again = vavae("demo", "--quick", "--output", str(folder))
    assert again.returncode == 0
    assert (folder / "aligned/tokenizer/metrics.jsonl").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("model.safetensors")} == sizes
    numbers = first.stdout.partition("done in")[2].splitlines()[1:]
    assert len(numbers) > 5 and again.stdout.partition("done in")[2].splitlines()[1:] == numbers


def test_other_settings_are_refused(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    other = vavae("demo", "--quick", "--seed", "1", "--output", str(demo[0]))
    assert other.returncode == 2
    assert "seed = 0, not 1" in other.stderr and len(other.stderr.strip().splitlines()) == 1


def test_samples_do_not_depend_on_the_batch_size(
    demo: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    generator = str(demo[0] / "aligned/generator/generator")
    common = ["sample", "--generator", generator, "--count", "6", "--steps", "5"]
    one = vavae(*common, "--batch_size", "1", "--output", str(tmp_path / "one"), "--npz")
    six = vavae(*common, "--batch_size", "6", "--output", str(tmp_path / "six"))
    assert one.returncode == six.returncode == 0, one.stderr + six.stderr
    for i in range(6):
        a, b = (np.asarray(Image.open(tmp_path / n / f"{i:06d}.png")).astype(int) for n in ("one", "six"))
        assert np.abs(a - b).max() <= 1
    arrays = np.load(tmp_path / "one/samples.npz")["arr_0"]
    assert arrays.shape == (6, 32, 32, 3) and arrays.dtype == np.uint8
    assert np.array_equal(arrays[3], np.asarray(Image.open(tmp_path / "one/000003.png")))
    wrong = vavae("sample", "--generator", generator, "--labels", "[0, 10, 11]", "--output", str(tmp_path / "w"))
    assert wrong.returncode == 2 and "labels must be from 0 to 10, got 11" in wrong.stderr


def test_tokenizer_of_another_width_is_refused(
    demo: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Wrong latent dimension for a generator: one line that names both numbers."""
    import torch

    from vavae.models import Tokenizer
    from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics

    model = AutoencoderKL.from_config(AutoencoderConfig(8, 32, (1, 2, 4), 1, ()))
    Tokenizer(model, LatentStatistics(torch.zeros(8), torch.ones(8))).save_pretrained(tmp_path / "tokenizer")
    done = vavae(
        "train-dit",
        "--latents", str(demo[0] / "aligned/latents"),
        "--tokenizer", str(tmp_path / "tokenizer"),
        "--transformer.size", "S/2",
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "16 channels" in done.stderr and "8" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_folder_of_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class folders, other sizes and formats, one damaged file; a tenth is held out for testing."""
    few = replace(QUICK, tokenizer_images=256, adversarial_from=128, generator_images=512, samples=20)
    monkeypatch.setattr(plan, "QUICK", few)
    source = open_images("demo", "test")
    for i in range(80):
        name = source.class_names[source.label(i)]
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        source.image(i).resize((40, 32)).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    (tmp_path / "images/airplane/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n0000")
    assert run(["demo", "--quick", "--images", str(tmp_path / "images"), "--output", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert output.count("images: 72 in 10 classes") == 1 and "test images: 8 in 10 classes" in output
    assert "broken.png" in (tmp_path / "run/unreadable.txt").read_text()
    page = (tmp_path / "run/report.html").read_text()
    assert "CIFAR" not in page
