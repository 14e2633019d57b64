"""Runs that measure a Fréchet distance with a network that costs nothing."""

from dataclasses import replace
from pathlib import Path

import torch
from tiny_runs import tokenizer_recipe
from torch import Tensor

from vavae.evaluation.validation import ReconstructionFrechetConfig
from vavae.metrics import FeatureNetwork, RunningMoments
from vavae.stages import train_tokenizer


def colors(pixels: Tensor) -> Tensor:
    """Mean and deviation of each channel, in place of a network."""
    wide = pixels.double().flatten(1, 2)
    return torch.cat([wide.mean(1), wide.std(1)], 1).float()


def moments(pixels: Tensor) -> RunningMoments:
    found = RunningMoments(6)
    found.update(colors(pixels))
    return found


def measured_tokenizer_recipe(folder: Path) -> train_tokenizer.Config:
    recipe = tokenizer_recipe(folder, images=32, validation_images=16)
    return replace(recipe, frechet=ReconstructionFrechetConfig(20, "tiny", batch_size=6))


def tiny_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    return FeatureNetwork(name, "none", torch.device(device), colors)
