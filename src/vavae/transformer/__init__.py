"""Diffusion transformers: LightningDiT, DiT^DH with its wide head, their layers and sizes."""

from vavae.transformer.ditdh import DiTDH, DiTDHConfig
from vavae.transformer.model import LightningDiT, LightningDiTConfig
from vavae.transformer.sizes import SIZES, size_names

__all__ = ["SIZES", "DiTDH", "DiTDHConfig", "LightningDiT", "LightningDiTConfig", "size_names"]
