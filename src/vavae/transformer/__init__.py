"""The diffusion transformer: LightningDiT, its layers and its sizes."""

from vavae.transformer.model import ActivationCheckpointing, LightningDiT, LightningDiTConfig
from vavae.transformer.sizes import SIZES, size_names

__all__ = ["SIZES", "ActivationCheckpointing", "LightningDiT", "LightningDiTConfig", "size_names"]
