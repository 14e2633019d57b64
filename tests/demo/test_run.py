"""The whole path by the command line on real images: files, numbers, page, and resuming after a stop."""

import contextlib
import io
import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from html_page import Page
from PIL import Image

from vavae.cli import run
from vavae.data import open_images
from vavae.demo import measure, plan
from vavae.demo import run as demo_run
from vavae.demo.contents import DemoReport
from vavae.demo.page import write_page
from vavae.demo.plan import QUICK, SAMPLING, Config
from vavae.losses import LPIPS
from vavae.models import Tokenizer
from vavae.stages import train_tokenizer
from vavae.teachers import load_teacher
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics

pytestmark = pytest.mark.slow

HEADLINE = (
    "PSNR of reconstructions",
    "Linear probe on latents",
    "Alignment with the teacher",
    "LPIPS of reconstructions",
    "Fréchet distance of samples",
)
# A small part of the work of --quick; the t-SNE needs more than 30 test images.
FEW = replace(
    QUICK,
    train_images=40,
    test_images=32,
    tokenizer_images=128,
    generator_images=640,
    samples=10,
    samples_per_class=1,
    width=64,
    depth=1,
)
Demo = tuple[Path, str, str]


def here(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process, and return exit code, output and errors."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        code = run(arguments)
    return code, output.getvalue(), error.getvalue()


@pytest.fixture(scope="module", autouse=True)
def few() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "QUICK", FEW)
        patch.setattr(Config, "teacher_size", 28)  # 5 tokens in place of 65
        patch.setattr(measure, "SAMPLING", replace(SAMPLING, steps=5))
        patch.setattr(measure, "SHOWN", 4)  # images and classes on the page
        gallery = cache(partial(demo_run.shipped_gallery, Config(quick=True)))  # the same for all these demos
        patch.setattr(demo_run, "shipped_gallery", lambda _: gallery())
        patch.setattr(LPIPS, "pretrained", cache(LPIPS.pretrained))
        teacher = cache(load_teacher)
        for module in (demo_run, train_tokenizer):
            patch.setattr(module, "load_teacher", teacher)
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, few: object) -> Demo:
    """Return the folder, output and errors of one demo, stopped once in the middle by Ctrl-C and resumed."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    log = folder / "aligned/tokenizer/metrics.jsonl"

    def stop() -> None:
        until = time.monotonic() + 240
        while time.monotonic() < until and not (log.exists() and len(log.read_text().splitlines()) >= 2):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    code, _, error = here("demo", "--quick", "--output", str(folder))
    assert code == 1, error
    assert "same command to resume" in error.splitlines()[-1] and "Traceback" not in error
    code, output, error = here("demo", "--quick", "--output", str(folder))
    assert code == 0, error
    return folder, output, error


def write_page_without_curves(path: Path, report: DemoReport) -> None:
    """Write the page without curves, whose drawing takes most of its time."""
    write_page(path, replace(report, runs=[replace(run, tokenizer_log=[], generator_log=[]) for run in report.runs]))


def test_summary_shows_page_and_numbers(demo: Demo) -> None:
    folder, output, _ = demo
    lines = output.splitlines()
    assert f"page: {folder / 'report.html'}" in lines
    for label in HEADLINE:
        assert any(line.startswith(f"  {label}: ") for line in lines), label


def test_progress_in_plain_lines(demo: Demo) -> None:
    error = demo[2]
    assert "\x1b" not in error and "\r" not in error
    assert re.search(r"^tokenizer: \d+/128 images \(\d+\.\d/s.*\)  loss \S+$", error, re.MULTILINE)


def test_results_contain_every_number(demo: Demo) -> None:
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


def test_losses_are_finite_and_fall(demo: Demo) -> None:
    for stage, terms, images in (
        ("tokenizer", ("pixel", "perceptual"), 128),
        ("generator", ("total", "mse", "direction"), 640),
    ):
        lines = [json.loads(line) for line in (demo[0] / "aligned" / stage / "metrics.jsonl").read_text().splitlines()]
        seen = [line["images"] for line in lines]
        assert seen == sorted(set(seen)) and seen[-1] == images  # no gaps after the stop, no repeats
        for term in terms:
            values = [line[term] for line in lines]
            assert all(value is not None and np.isfinite(value) for value in values), term
            assert values[-1] < values[0], term


def test_page_is_self_contained_and_shows_the_numbers(demo: Demo) -> None:
    page = Page((demo[0] / "report.html").read_text())
    assert len([source for source in page.sources if source.startswith("data:image/")]) > 20
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    results = json.loads((demo[0] / "results.json").read_text())
    psnr = next(r["value"] for r in results["runs"]["aligned"] if r["name"] == "PSNR")
    assert f"{psnr:.2f}" in page.text
    assert "CIFAR-10" in page.text and "saliency" in page.text  # origin of images and teacher


def test_second_call_trains_nothing(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_run, "write_page", lambda *_: None)  # takes as long as the rest of this call
    folder, first, _ = demo
    before = (folder / "aligned/tokenizer/metrics.jsonl").read_bytes()
    sizes = {p: p.stat().st_mtime_ns for p in folder.rglob("model.safetensors")}
    code, output, _ = here("demo", "--quick", "--output", str(folder))
    assert code == 0
    assert (folder / "aligned/tokenizer/metrics.jsonl").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("model.safetensors")} == sizes
    numbers = first.partition("done in")[2].splitlines()[1:]
    assert len(numbers) > 5 and output.partition("done in")[2].splitlines()[1:] == numbers


def test_other_settings_are_refused(demo: Demo) -> None:
    code, _, error = here("demo", "--quick", "--seed", "1", "--output", str(demo[0]))
    assert code == 2
    assert "seed = 0, not 1" in error and len(error.strip().splitlines()) == 1


def test_samples_do_not_depend_on_the_batch_size(demo: Demo, tmp_path: Path) -> None:
    generator = str(demo[0] / "aligned/generator/generator")
    common = ["sample", "--generator", generator, "--count", "6", "--steps", "5"]
    assert here(*common, "--batch_size", "1", "--output", str(tmp_path / "one"), "--npz")[0] == 0
    assert here(*common, "--batch_size", "6", "--output", str(tmp_path / "six"))[0] == 0
    for i in range(6):
        a, b = (np.asarray(Image.open(tmp_path / n / f"{i:06d}.png")).astype(int) for n in ("one", "six"))
        assert np.abs(a - b).max() <= 1
    arrays = np.load(tmp_path / "one/samples.npz")["arr_0"]
    assert arrays.shape == (6, 32, 32, 3) and arrays.dtype == np.uint8
    assert np.array_equal(arrays[3], np.asarray(Image.open(tmp_path / "one/000003.png")))
    code, _, error = here(
        "sample", "--generator", generator, "--labels", "[0, 10, 11]", "--output", str(tmp_path / "w")
    )
    assert code == 2 and "labels must be from 0 to 10, got 11" in error


def test_tokenizer_of_another_width_is_refused(demo: Demo, tmp_path: Path) -> None:
    """Wrong latent dimension for a generator: one line that names both numbers."""
    model = AutoencoderKL(AutoencoderConfig(8, 32, (1, 2, 4), 1, ()))
    Tokenizer(model, LatentStatistics(torch.zeros(8), torch.ones(8))).save_pretrained(tmp_path / "tokenizer")
    code, _, error = here(
        "train-dit",
        "--latents", str(demo[0] / "aligned/latents"),
        "--tokenizer", str(tmp_path / "tokenizer"),
        "--transformer.size", "S/2",
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 2
    assert "16 channels" in error and "8" in error and len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_folder_of_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class folders, other sizes and formats, one damaged file; a tenth is held out for testing."""
    monkeypatch.setattr(plan, "QUICK", replace(FEW, train_images=80, tokenizer_images=32, generator_images=128))
    monkeypatch.setattr(demo_run, "write_page", write_page_without_curves)
    source = open_images("demo", "test")
    for i in range(80):
        name = source.class_names[source.label(i)]
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        source.image(i).resize((40, 32)).save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    (tmp_path / "images/airplane/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n0000")
    code, output, _ = here("demo", "--quick", "--images", str(tmp_path / "images"), "--output", str(tmp_path / "run"))
    assert code == 0
    assert output.count("images: 72 in 10 classes") == 1 and "test images: 8 in 10 classes" in output
    assert "broken.png" in (tmp_path / "run/unreadable.txt").read_text()
    page = (tmp_path / "run/report.html").read_text()
    assert "CIFAR" not in page
