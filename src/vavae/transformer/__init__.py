"""Diffusion transformers: LightningDiT, DiT^DH with its wide head, their layers and sizes."""

from vavae.transformer.ditdh import DiTDH, DiTDHConfig
from vavae.transformer.model import LightningDiT, LightningDiTConfig
from vavae.transformer.output import TransformerOutput
from vavae.transformer.sizes import SIZES, size_names

Transformer = LightningDiT | DiTDH
TransformerShape = LightningDiTConfig | DiTDHConfig


def build_transformer(config: TransformerShape) -> Transformer:
    """Return a freshly initialized network of the shape `config`."""
    return DiTDH(config) if isinstance(config, DiTDHConfig) else LightningDiT(config)


__all__ = [
    "SIZES",
    "DiTDH",
    "DiTDHConfig",
    "LightningDiT",
    "LightningDiTConfig",
    "Transformer",
    "TransformerOutput",
    "TransformerShape",
    "build_transformer",
    "size_names",
]
