"""The command, the code and the text in the PNG make the images of the page again."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vavae
from vavae.cli import run
from vavae.data import demo_pixels
from vavae.models import Generator, SamplingConfig
from vavae.serve.again import changes, described, image_code, sample_code, sample_command, seeds_code
from vavae.serve.studio import Studio

FEW = SamplingConfig(steps=4, guidance_scale=2.0, guidance_start=0.1)


def test_command_draws_the_same_samples(studio: Studio, generator: Generator, tmp_path: Path) -> None:
    settings = changes(FEW, generator.sampling)
    assert settings == {"steps": 4, "guidance_scale": 2.0}
    command = shlex.split(sample_command("demo", [3, 7], 5, settings, "fp32"))
    assert command[:2] == ["vavae", "sample"]
    assert run([*command[1:], "--output", str(tmp_path / "samples"), "--device", "cpu"]) == 0
    for number, image in enumerate(studio.sample([3, 7], 5, FEW)):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "samples" / f"{number:06}.png")), image)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_code_calls_the_generator(generator: Generator, monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    called: list[Any] = []

    class Recorder:
        tokenizer = generator.tokenizer

        def __call__(self, labels: list[int], seed: int, **settings: Any) -> None:
            called.append((labels, seed, replace(generator.sampling, **settings)))

    monkeypatch.setattr(vavae.Generator, "from_pretrained", lambda source: Recorder())
    code = sample_code("demo", [3, 7], 5, changes(FEW, generator.sampling), precision)
    exec(code, {})
    assert ("bf16" in code) == (precision == "bf16")
    assert called == [([3, 7], 5, FEW)]


def test_code_of_images_and_seeds(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = [Image.fromarray(demo_pixels("test")[number]) for number in (0, 1)]
    for name, picture in zip(("image", "first", "second"), (pictures[0], *pictures), strict=True):
        picture.save(f"{name}.png")
    names: dict[str, Any] = {}
    exec(image_code("demo", "Generator", 32), names)
    np.testing.assert_array_equal(names["made"].image, studio.reconstruct(pictures[0], 32).image)
    exec(image_code("demo", "Generator", 32, 3), names)
    np.testing.assert_array_equal(names["images"], studio.between_images(*pictures, 32, 3))
    exec(seeds_code("demo", 4, (0, 1), 2, FEW), names)
    np.testing.assert_array_equal(names["images"], studio.between_seeds(4, 0, 1, 2, FEW))
    assert "vavae.Tokenizer" in image_code("demo", "Tokenizer", 32)


def test_line_names_seed_and_settings() -> None:
    assert described(5, FEW) == "seed 5 · 4 euler grid points, time shift 0.3, guidance 2 from time 0.1 to 1"
    assert described(5, SamplingConfig()).endswith(", no guidance")
