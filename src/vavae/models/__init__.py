"""The public classes: `Tokenizer`, `Generator`, how a generator samples, and the representation autoencoder."""

from vavae.models.generator import Generator
from vavae.models.representation import RepresentationAutoencoder
from vavae.models.sampling import SamplingConfig
from vavae.models.tokenizer import Tokenizer

__all__ = ["Generator", "RepresentationAutoencoder", "SamplingConfig", "Tokenizer"]
