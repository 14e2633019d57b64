"""Runs that measure a Fréchet distance with a network that costs nothing."""

from dataclasses import replace
from pathlib import Path

import torch
from tiny_runs import tokenizer_recipe, transformer_recipe
from torch import Tensor

from vavae.evaluation.validation import FrechetConfig, ReconstructionFrechetConfig
from vavae.metrics import FeatureNetwork, RunningMoments
from vavae.stages import train_dit, train_tokenizer


def colors(pixels: Tensor) -> Tensor:
    """Return mean and deviation of each channel, (B, 6), in place of a network's features."""
    wide = pixels.double().flatten(1, 2)
    return torch.cat([wide.mean(1), wide.std(1)], 1).float()


def color_moments(pixels: Tensor) -> RunningMoments:
    found = RunningMoments(6)
    found.update(colors(pixels))
    return found


def measured_tokenizer_recipe(folder: Path) -> train_tokenizer.Config:
    recipe = tokenizer_recipe(folder, images=32, validation_images=16)
    data = replace(recipe.data, size=16)
    return replace(recipe, data=data, frechet=ReconstructionFrechetConfig(20, "tiny", batch_size=6))


def measured_transformer_recipe(folder: Path, data: Path) -> train_dit.Config:
    recipe = transformer_recipe(folder, data, images=32, validation_images=16)
    return replace(recipe, frechet=FrechetConfig(20, "tiny", "demo", steps=5, batch_size=6))


def tiny_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    return FeatureNetwork(name, "none", torch.device(device), colors)
