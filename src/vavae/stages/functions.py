"""The steps of the method as functions, with the keys, the checks and the results of the commands.

    vavae.train_tokenizer("small/tokenizer", output="runs/mine", data={"images": "photos"})
    vavae.train_tokenizer("small/tokenizer", **{"data.images": "photos", "optimizer.learning_rate": 1e-4})

The recipe is a file, the name of a recipe in the package, a mapping, or a `Config`; without one, the defaults hold.
Keywords override its keys. A group of keys is a mapping, which leaves its other keys as they are, or one key with dots.
A mistake raises `UserError`; Ctrl-C raises KeyboardInterrupt after finished work is saved, and the same call resumes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vavae.config import load_recipe
from vavae.data import LatentDataset
from vavae.metrics import MetricRecord
from vavae.models import Generator, Tokenizer
from vavae.stages import encode as encoding
from vavae.stages import evaluate as evaluation
from vavae.stages import sample as sampling
from vavae.stages import train_dit as stage_2
from vavae.stages import train_joint as both_stages
from vavae.stages import train_tokenizer as stage_1

Recipe = str | Path | Mapping[str, Any] | None  # a file, a name, or keys


def train_tokenizer(recipe: Recipe | stage_1.Config = None, /, **settings: Any) -> Tokenizer:
    """Train a tokenizer, as `vavae train-tokenizer` does, and return it; its folder is `<output>/tokenizer`."""
    return stage_1.run(load_recipe(stage_1.Config, recipe, settings, "train_tokenizer"))


def encode(recipe: Recipe | encoding.Config = None, /, **settings: Any) -> LatentDataset:
    """Encode images, as `vavae encode` does, and return the latents."""
    return encoding.run(load_recipe(encoding.Config, recipe, settings, "encode"))


def train_dit(recipe: Recipe | stage_2.Config = None, /, **settings: Any) -> Generator:
    """Train a transformer, as `vavae train-dit` does, and return its generator; its folder is `<output>/generator`."""
    return stage_2.run(load_recipe(stage_2.Config, recipe, settings, "train_dit"))


def train_joint(recipe: Recipe | both_stages.Config = None, /, **settings: Any) -> Generator:
    """Train tokenizer and transformer together, as `vavae train-joint` does, and return the generator."""
    return both_stages.run(load_recipe(both_stages.Config, recipe, settings, "train_joint"))


def sample(recipe: Recipe | sampling.Config = None, /, **settings: Any) -> Path:
    """Draw images into a folder, as `vavae sample` does, and return the folder."""
    return sampling.run(load_recipe(sampling.Config, recipe, settings, "sample"))


def evaluate(recipe: Recipe | evaluation.Config = None, /, **settings: Any) -> list[MetricRecord]:
    """Measure models or samples, as `vavae evaluate` does, and return the numbers, each with its protocol."""
    return evaluation.run(load_recipe(evaluation.Config, recipe, settings, "evaluate"))
