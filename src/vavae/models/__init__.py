"""The public classes: `Tokenizer`, `Generator`, and how a generator samples."""

from vavae.models.generator import Generator
from vavae.models.sampling import SamplingConfig
from vavae.models.tokenizer import Tokenizer

__all__ = ["Generator", "SamplingConfig", "Tokenizer"]
