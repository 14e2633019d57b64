"""Checkpoints and assets of others, and the folders our own models are saved in."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vavae.pretrained.generator import Generator, SamplingConfig
    from vavae.pretrained.latent_statistics import read_statistics, scaling_statistics
    from vavae.pretrained.published import LoadReport
    from vavae.pretrained.tokenizer import Tokenizer

_EXPORTS = {
    "Tokenizer": "vavae.pretrained.tokenizer",
    "Generator": "vavae.pretrained.generator",
    "SamplingConfig": "vavae.pretrained.generator",
    "LoadReport": "vavae.pretrained.published",
    "read_statistics": "vavae.pretrained.latent_statistics",
    "scaling_statistics": "vavae.pretrained.latent_statistics",
}

__all__ = ["Generator", "LoadReport", "SamplingConfig", "Tokenizer", "read_statistics", "scaling_statistics"]


def __getattr__(name: str) -> Any:
    # Assets are used by rooms that the models here are built from, so the models load only when asked for.
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'vavae.pretrained' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
