"""Encode images to latent shards, with the statistics of their channels."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vavae import rng
from vavae.config.image_size import Size, format_size, height_width
from vavae.data import (
    ImageSource,
    LatentDataset,
    LatentSettings,
    LatentWriter,
    Shard,
    flip_horizontally,
    load_images,
    loaded_ahead,
)
from vavae.data.images import ImagesConfig, note_source
from vavae.data.latent_writer import LEFT_OVER, holds_latents
from vavae.device import Precision, autocast, resolve_device, resolve_precision
from vavae.errors import UserError, errors_name
from vavae.io.files import check_not_foreign
from vavae.models import RepresentationAutoencoder, Tokenizer
from vavae.models.representation import Autoencoder
from vavae.progress import Bar, track
from vavae.teachers import Teacher, load_teacher
from vavae.teachers.registry import name_and_side
from vavae.training.parallel import held_folder, processes
from vavae.training.signals import StopRequest, stop_on_signal

_Batch = tuple[Tensor | None, ...]  # as `LatentWriter.write` takes them


@dataclass(frozen=True)
class Config:
    """Encode images.

    Attributes:
        tokenizer: Folder of a tokenizer, its hub id, a short name of `vavae models`, or a published checkpoint.
        output: Folder for the shards; complete shards that it has already are kept.
        data: The images; they are center-cropped.
        split: Which part of the images.
        posterior: Store a sample of the posterior, as published, or its mean.
        flips: Store the latents of the mirrored images too.
        dtype: Type in which latents are stored.
        seed: Seed of the posterior's samples: each is a function of the seed and the image's index.
        shard_size: Images per shard.
        batch_size: Images encoded at once.
        device: auto, cpu, cuda, mps, …
        precision: Compute precision of the encoder.
        class_token: Also store the class token of this teacher, as it is, for `transformer.class_token` of
            `train-dit` (REG): a short name (`dinov2-base`, …), local folder or hub id, with `@SIDE` after it for
            another input size than the teacher's own; null stores none. The teacher computes in float32.
    """

    tokenizer: str = "runs/tokenizer/tokenizer"
    output: str = "runs/latents"
    data: ImagesConfig = field(default_factory=ImagesConfig)
    split: Literal["train", "test"] = "train"
    posterior: Literal["sample", "mean"] = "sample"
    flips: bool = True
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    seed: int = 0
    shard_size: int = 10_000
    batch_size: int = 128
    device: str = "auto"
    precision: Precision = "fp32"
    class_token: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.data.crop != "center" or self.data.flip:
            raise UserError(
                "data.crop must be center and data.flip false for encoding; 'flips' stores the mirrored images too"
            )


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return a hexadecimal hash of a tokenizer's weights and shape; latents of two tokenizers must not be mixed.

    Of a representation autoencoder only the encoder counts: all its decoders have the same latents.
    """
    autoencoder = tokenizer.autoencoder
    if isinstance(autoencoder, RepresentationAutoencoder):
        return autoencoder.encoder_fingerprint()
    digest = hashlib.sha256(repr(autoencoder.config).encode())
    for name, value in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_grid(autoencoder: Autoencoder, grid: tuple[int, int], size: Size) -> None:
    """Raise UserError if images of `size` do not have the only grid of latents that the autoencoder has."""
    only = autoencoder.latent_grid
    if only is not None and only != grid:
        height, width = (side * autoencoder.factor for side in only)
        raise UserError(
            f"data.size must be {height} x {width}, the {only[0]} x {only[1]} patches of the teacher times "
            f"representation.patch_size {autoencoder.factor}, got {format_size(size)}"
        )


def run(config: Config) -> LatentDataset:
    """Encode what is missing and write index and statistics. Under torchrun the processes share the shards.

    Raises:
        UserError: The tokenizer or the images are wrong, or the folder has latents of other settings or other files.
        KeyboardInterrupt: A stop was asked for; complete shards are kept.
    """
    folder = Path(config.output)
    # Shards hold latents as the network gives them, so a published one can be used before its statistics are known.
    tokenizer = Tokenizer.from_pretrained(config.tokenizer, resolve_device(config.device), statistics="identity")
    grid = config.data.latent_size(tokenizer.factor)  # refuses sizes that do not divide, before the folder is made
    check_grid(tokenizer.autoencoder, grid, config.data.size)
    teacher = None if config.class_token is None else _teacher(config, tokenizer.device)
    beginnings = {*LEFT_OVER, "images.json", "unreadable.txt"}
    check = partial(check_not_foreign, folder, holds_latents, "latents of this command", beginnings)
    with processes(config.device) as world, held_folder(folder, world, check):
        source = world.once(lambda: config.data.open(config.split, folder))
        settings = LatentSettings(
            image_size=config.data.size,
            posterior=config.posterior,
            seed=config.seed,
            dtype=config.dtype,
            flips=config.flips,
            tokenizer=fingerprint(tokenizer),
            source=world.once(source.fingerprint),
            class_names=source.class_names,
            statistics="channel" if tokenizer.autoencoder.latent_grid is None else "position",
            class_token=None if teacher is None else teacher.fingerprint(),
            precision=resolve_precision(config.precision, tokenizer.device),
        )
        writer = LatentWriter(folder, len(source), settings, config.shard_size, world.rank, world.size)
        world.once(lambda: note_source(folder, source))
        missing = writer.missing()
        todo = sum(shard.count for shard in missing)
        if missing:
            total = sum(shard.count for shard in writer.shards[world.rank :: world.size])
            with track("encoding", total, "images", total - todo) as bar, stop_on_signal() as stop:
                for shard in missing:
                    writer.write(shard, _encoded(config, tokenizer, teacher, source, shard, bar, stop))
        world.wait()
        world.once(writer.finish)
        if world.first:
            print(f"latents: {folder}")
        return LatentDataset(folder)


def _teacher(config: Config, device: torch.device) -> Teacher:
    """Return the teacher of the class tokens; raise UserError if it has no feature of the whole image."""
    name, side = name_and_side(str(config.class_token))
    with errors_name("class_token"):
        teacher = load_teacher(name, input_size=side, image_size=config.data.size).to(device)
    if teacher(torch.zeros(1, 3, *height_width(config.data.size), device=device)).pooled is None:
        raise UserError(f"class_token must be a teacher with a feature of the whole image, got {config.class_token}")
    return teacher


def _encoded(
    config: Config,
    tokenizer: Tokenizer,
    teacher: Teacher | None,
    source: ImageSource,
    shard: Shard,
    bar: Bar,
    stop: StopRequest,
) -> Iterator[_Batch]:
    """Yield the batches of a shard; at a stop, raise KeyboardInterrupt and give up the shard, however long it is."""
    device = tokenizer.device
    precision = resolve_precision(config.precision, device)
    shape = (tokenizer.latent_channels, *config.data.latent_size(tokenizer.factor))

    autoencoder = tokenizer.autoencoder
    sampled = config.posterior == "sample" and not isinstance(autoencoder, RepresentationAutoencoder)

    @torch.inference_mode()
    def latents(images: Tensor, indices: Tensor, stream: str) -> Tensor:
        noise = rng.normal(config.seed, stream, indices, shape, device) if sampled else None
        with autocast(precision, device):
            return autoencoder.latents(images, noise).float().cpu()

    load = partial(load_images, source, size=config.data.size)
    for indices, decoded in loaded_ahead(shard.batches(config.batch_size), load, config.data.workers):
        images = decoded.to(device)
        mirrored = flip_horizontally(images) if config.flips else None
        plain = latents(images, indices, "posterior")
        flipped = None if mirrored is None else latents(mirrored, indices, "posterior of the mirrored image")
        tokens = () if teacher is None else [None if one is None else teacher(one).pooled for one in (images, mirrored)]
        if stop:
            raise KeyboardInterrupt(
                f"stopped; the finished shards are in {config.output}, and the same command resumes"
            )
        yield plain, flipped, torch.tensor([source.label(int(i)) for i in indices]), *tokens
        bar.advance(len(indices))
