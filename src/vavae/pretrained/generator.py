"""`Generator`: a diffusion transformer with the tokenizer it was trained on and its sampling defaults."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from vavae import __version__, counter
from vavae.config import from_plain, to_plain
from vavae.errors import UserError
from vavae.flow import Guidance, PathName, path_by_name, sample
from vavae.pretrained import folder as files
from vavae.pretrained.tokenizer import Tokenizer
from vavae.tokenizer import LatentStatistics
from vavae.transformer import LightningDiT, LightningDiTConfig


@dataclass(frozen=True)
class SamplingConfig:
    """How noise becomes latents.

    Attributes:
        solver: Integration method of the flow's differential equation.
        steps: Grid points of the solver, as published: 250 points are 249 Euler evaluations.
        shift: Time shift s: grid t' = s·t / (1 + (s − 1)·t); 0 or 1 leaves the grid even.
        guidance_scale: Classifier-free guidance scale; 1 turns guidance off.
        guidance_start: Guidance acts from this time on (0 is noise, 1 is data).
        guidance_stop: Guidance acts up to this time.
        guidance_channels: How many leading channels are guided; null guides all. The published FIDs use 3.
    """

    solver: Literal["euler", "heun", "midpoint", "rk4", "dopri5"] = "euler"
    steps: int = 250
    shift: float = 0.3
    guidance_scale: float = 1.0
    guidance_start: float = 0.125
    guidance_stop: float = 1.0
    guidance_channels: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2 grid points, not {self.steps}")

    @property
    def guidance(self) -> Guidance | None:
        """The guidance these numbers describe; None where the scale is 1."""
        if self.guidance_scale == 1.0:
            return None
        return Guidance(self.guidance_scale, self.guidance_start, self.guidance_stop, self.guidance_channels)


class Generator:
    """Labels -> images.

    Args:
        transformer: The trained network; it is put in eval mode.
        tokenizer: The tokenizer whose latents it was trained on.
        statistics: The statistics those latents were normalised with; the tokenizer's own by default.
        sampling: Defaults for `__call__`.
        path: The path between noise and data that it was trained on.
        class_names: Names of the labels, where they are known.
        provenance: How it was trained and on what, for the model card.

    Raises:
        UserError: Transformer and tokenizer do not fit: the message names both numbers of latent channels.
    """

    def __init__(
        self,
        transformer: LightningDiT,
        tokenizer: Tokenizer,
        statistics: LatentStatistics | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        path: PathName = "linear",
        class_names: Sequence[str] = (),
        provenance: dict[str, Any] | None = None,
    ) -> None:
        channels = transformer.config.latent_channels
        if channels != tokenizer.latent_channels:
            raise UserError(
                f"a transformer for latents of {channels} channels does not fit a tokenizer "
                f"with {tokenizer.latent_channels}"
            )
        self.transformer = transformer.eval()
        self.tokenizer = tokenizer
        if statistics is not None:
            self.tokenizer = Tokenizer(tokenizer.autoencoder, statistics, tokenizer.provenance)
        self.sampling = sampling
        self.path: PathName = path
        self.class_names = tuple(class_names)
        self.provenance = provenance or {}

    @property
    def num_classes(self) -> int:
        """Labels run from 0 to this number − 1; the number itself means "no label"."""
        return self.transformer.config.num_classes

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent at the size the transformer was trained on."""
        return self.transformer.config.latent_channels, *self.transformer.config.latent_hw

    def to(self, device: torch.device | str) -> Self:
        """Move both networks to `device`."""
        self.transformer.to(device)
        self.tokenizer.to(device)
        return self

    def noise(self, indices: Sequence[int], seed: int = 0) -> Tensor:
        """The starting noise of samples number `indices`: a function of (seed, index) alone."""
        return counter.normal(seed, "sample", list(indices), self.latent_shape, self.tokenizer.device)

    def latents(
        self,
        labels: Sequence[int],
        seed: int = 0,
        indices: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
        callback: Callable[..., None] | None = None,
    ) -> Tensor:
        """Normalised latents (B, C, h, w), one per label; see `__call__`."""
        indices = range(len(labels)) if indices is None else indices
        if len(indices) != len(labels):
            raise UserError(f"indices: {len(indices)} for {len(labels)} labels")
        wrong = [label for label in labels if not 0 <= label <= self.num_classes]
        if wrong:
            raise UserError(f"labels: {wrong[0]} is not in 0..{self.num_classes - 1} ({self.num_classes} is no label)")
        settings = sampling or self.sampling
        return sample(
            self.transformer,
            self.noise(indices, seed),
            torch.tensor(list(labels), device=self.tokenizer.device),
            solver=settings.solver,
            steps=settings.steps,
            shift=settings.shift,
            guidance=settings.guidance,
            path=path_by_name(self.path),
            callback=callback,
        )

    def __call__(
        self,
        labels: Sequence[int],
        seed: int = 0,
        indices: Sequence[int] | None = None,
        sampling: SamplingConfig | None = None,
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], one per label.

        Args:
            labels: Class of each image; `num_classes` means no label.
            seed: Seed of the noise.
            indices: Number of each sample under this seed, 0, 1, 2, … by default. Sample number i is the same image
                whatever else is in the batch.
            sampling: Other settings than the generator's defaults.

        Raises:
            UserError: A label out of range.
        """
        return self.tokenizer.decode(self.latents(labels, seed, indices, sampling))

    def save_pretrained(self, path: str | Path) -> None:
        """Write the folder that `from_pretrained` reads; it holds the tokenizer too."""
        folder = Path(path)
        config = {
            "kind": "generator",
            "vavae_version": __version__,
            "transformer": to_plain(self.transformer.config),
            "sampling": to_plain(self.sampling),
            "path": self.path,
            "class_names": list(self.class_names),
            "provenance": to_plain(self.provenance),
        }
        files.write_folder(folder, config, self.transformer, self._card())
        self.tokenizer.save_pretrained(folder / "tokenizer")

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, device: torch.device | str = "cpu") -> Self:
        """Read a folder that `save_pretrained` wrote, here or on the hub.

        Raises:
            UserError: Names the file or key that is missing or wrong.
        """
        folder = files.resolve(path_or_hub_id)
        config = files.read_config(folder, "generator")
        try:
            shape = from_plain(LightningDiTConfig, config["transformer"])
            sampling = from_plain(SamplingConfig, config["sampling"])
        except KeyError as error:
            raise UserError(f"{folder / files.CONFIG}: no key {error}") from error
        transformer = LightningDiT.from_config(shape)
        files.load_strictly(transformer, files.read_tensors(folder / files.WEIGHTS), folder / files.WEIGHTS)
        tokenizer = Tokenizer.from_pretrained(folder / "tokenizer")
        names = config.get("class_names", ())
        path = config.get("path", "linear")
        return cls(transformer, tokenizer, None, sampling, path, names, config.get("provenance")).to(device)

    def _card(self) -> str:
        config = self.transformer.config
        trained = "\n".join(f"- {key}: {value}" for key, value in self.provenance.items())
        return (
            "---\nlibrary_name: vavae\ntags: [image-generation, flow-matching, LightningDiT]\n---\n\n"
            f"# LightningDiT, depth {config.depth}, width {config.width}, {config.num_classes} classes\n\n"
            "The tokenizer and the statistics of its latents are in `tokenizer/`.\n\n"
            "```python\nimport vavae\n\n"
            'generator = vavae.Generator.from_pretrained("this folder or its hub id")\n'
            "images = generator(labels=[0, 1], seed=0)  # (2, 3, H, W) in [-1, 1]\n```\n"
            + (f"\n## Training\n\n{trained}\n" if trained else "")
        )
