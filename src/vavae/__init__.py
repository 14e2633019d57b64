"""vavae: visual tokenizers aligned with vision foundation models, and fast latent diffusion transformers.

The names below load on first use, so that `import vavae` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vavae.version import __version__

if TYPE_CHECKING:
    from vavae import data, flow, losses, metrics, models, teachers, tokenizer, transformer
    from vavae.errors import UserError
    from vavae.models import Generator, RepresentationAutoencoder, SamplingConfig, Tokenizer
    from vavae.stages.functions import encode, evaluate, sample, train_dit, train_joint, train_tokenizer
    from vavae.tokenizer import AutoencoderKL, ViTDecoder
    from vavae.transformer import DiTDH, LightningDiT

# Name -> module; `checkpoints.networks` gives the networks their `from_pretrained`. All other names are rooms.
_EXPORTS = {
    "AutoencoderKL": "vavae.checkpoints.networks",
    "LightningDiT": "vavae.checkpoints.networks",
    "Tokenizer": "vavae.models",
    "Generator": "vavae.models",
    "SamplingConfig": "vavae.models",
    "RepresentationAutoencoder": "vavae.models",
    "ViTDecoder": "vavae.tokenizer",
    "DiTDH": "vavae.checkpoints.networks",
    "UserError": "vavae.errors",
    **dict.fromkeys(
        ("train_tokenizer", "encode", "train_dit", "train_joint", "sample", "evaluate"), "vavae.stages.functions"
    ),
}

__all__ = ["AutoencoderKL", "DiTDH", "Generator", "LightningDiT", "RepresentationAutoencoder", "SamplingConfig"]
__all__ += ["Tokenizer", "UserError", "ViTDecoder", "__version__"]
__all__ += ["encode", "evaluate", "sample", "train_dit", "train_joint", "train_tokenizer"]
__all__ += ["data", "flow", "losses", "metrics", "models", "teachers", "tokenizer", "transformer"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in __all__:
        return importlib.import_module(f"vavae.{name}")
    raise AttributeError(f"module 'vavae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
