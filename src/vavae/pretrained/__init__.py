"""Checkpoints and assets of others, and the folders our own models are saved in."""

import importlib
from typing import Any

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
