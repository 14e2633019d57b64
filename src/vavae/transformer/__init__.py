"""The diffusion transformer: LightningDiT, its layers and its sizes."""

from vavae.transformer.model import LightningDiT, LightningDiTConfig
from vavae.transformer.sizes import SIZES, size_names

__all__ = ["SIZES", "LightningDiT", "LightningDiTConfig", "size_names"]
