"""Generators that are guided by a weaker one (autoguidance), as commands read them."""

from collections.abc import Sequence

import torch

from vavae.errors import UserError
from vavae.models.generator import Generator
from vavae.models.sampling import SamplingConfig


def open_generator(name: str, weak_model: str | None, device: torch.device) -> Generator:
    """Read a generator, and with `weak_model` the weaker one that guides it, on a device.

    Raises:
        UserError: One cannot be read, or they do not fit together.
    """
    generator = Generator.from_pretrained(name, device)
    if weak_model is None:
        return generator
    return generator.with_weak_model(Generator.from_pretrained(weak_model, device))


def check_weak_model(weak_model: str | None, settings: Sequence[SamplingConfig]) -> None:
    """Raise UserError for a weak model that no settings use."""
    if weak_model is not None and all(sampling.guidance is None for sampling in settings):
        raise UserError(f"guidance_scale must not be 1 with weak_model, which then has no effect, got {weak_model}")
