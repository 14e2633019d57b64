"""How to make the images of the page again: a command, Python, and the text in each PNG."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vavae.config import to_plain
from vavae.device import Compute
from vavae.models import SamplingConfig

KEY = "vavae"  # of the text in a PNG


def with_text(image: NDArray[np.uint8], **facts: Any) -> Image.Image:
    """Return an image whose PNG will have `facts` as JSON in a text chunk."""
    picture = Image.fromarray(image)
    picture.info[KEY] = json.dumps(facts)
    return picture


def changes(sampling: SamplingConfig, defaults: SamplingConfig) -> dict[str, Any]:
    """Return the settings that differ from a generator's own."""
    names = [field.name for field in fields(sampling)]
    return {name: getattr(sampling, name) for name in names if getattr(sampling, name) != getattr(defaults, name)}


def described(seed: int | str, sampling: SamplingConfig, weak_model: str | None = None) -> str:
    """Return seed and settings in one line."""
    return f"seed {seed} · {sampling.in_words(weak_model)}"


def sample_command(
    source: str,
    labels: Sequence[int],
    seed: int,
    settings: Mapping[str, Any],
    precision: Compute,
    weak_model: str | None = None,
) -> str:
    """Return the command line that writes these samples into `runs/samples`."""
    options = {"generator": source, "labels": ",".join(map(str, labels)), "seed": seed, **settings}
    if precision != "fp32":
        options["precision"] = precision
    if weak_model is not None:
        options["weak_model"] = weak_model
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["vavae", "sample", *words])


def _generator_code(source: str, weak_model: str | None) -> str:
    """Return the line of Python that reads a generator, with its weak model."""
    read = "vavae.Generator.from_pretrained({!r})".format
    guided = "" if weak_model is None else f".with_weak_model({read(weak_model)})"
    return f"generator = {read(source)}{guided}"


def sample_code(
    source: str,
    labels: Sequence[int],
    seed: int,
    settings: Mapping[str, Any],
    precision: Compute,
    weak_model: str | None = None,
) -> str:
    """Return Python that draws these samples."""
    keywords = "".join(f", {name}={value!r}" for name, value in settings.items())
    call = f"generator({list(labels)}, seed={seed}{keywords})"
    code = f"import vavae\n\n{_generator_code(source, weak_model)}\nimages = {call}"
    if precision == "fp32":
        return code
    return f"{code}\n# The page computed in {precision}: its images differ a little."


def seeds_code(
    source: str,
    label: int,
    seeds: Sequence[int],
    count: int,
    sampling: SamplingConfig,
    weak_model: str | None = None,
) -> str:
    """Return Python that draws the samples between two seeds."""
    settings = ", ".join(f"{name}={value!r}" for name, value in to_plain(sampling).items())
    return (
        "import vavae\nfrom vavae.serve.studio import Studio\n\n"
        f"{_generator_code(source, weak_model)}\n"
        f"sampling = vavae.SamplingConfig({settings})\n"
        "studio = Studio(generator.tokenizer, generator)\n"
        f"images = studio.between_seeds({label}, {seeds[0]}, {seeds[1]}, {count}, sampling)  # (N, H, W, 3) uint8"
    )


def image_code(source: str, kind: str, side: int, count: int | None = None) -> str:
    """Return Python that reconstructs an image, or with `count` interpolates between two.

    Args:
        source: Folder or hub id of the model.
        kind: "Generator" or "Tokenizer".
        side: Longer side of the crop in pixels.
        count: Number of images of the interpolation.
    """
    studio = "model.tokenizer, model" if kind == "Generator" else "model"
    call = (
        f'made = studio.reconstruct(Image.open("image.png"), {side})  # made.image is (H, W, 3) uint8'
        if count is None
        else f'images = studio.between_images(Image.open("first.png"), Image.open("second.png"), {side}, {count})'
    )
    return (
        "import vavae\nfrom PIL import Image\nfrom vavae.serve.studio import Studio\n\n"
        f"model = vavae.{kind}.from_pretrained({source!r})\nstudio = Studio({studio})\n{call}"
    )
