"""Measure throughput and memory of each stage on this machine."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vavae import rng
from vavae.config import to_plain
from vavae.data import LatentDataset, LatentSettings, LatentWriter, load_images
from vavae.data.images import ImagesConfig, printed_once
from vavae.device import Precision, autocast, image_memory_format, resolve_device, resolve_precision
from vavae.errors import UserError
from vavae.evaluation.records import check_writable
from vavae.flow import Guidance, flow_matching_loss, sample
from vavae.io.files import read_json_object, written_whole
from vavae.losses import AdversarialConfig, AlignmentConfig, ObjectiveConfig, TokenizerObjective
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL
from vavae.training.gpus import peak_tflops
from vavae.training.optimizer import OptimizerConfig, build_optimizer
from vavae.training.run_log import versions
from vavae.training.throughput import count_flops, measured_tflops, peak_memory_gb
from vavae.transformer import LightningDiT, LightningDiTConfig


@dataclass(frozen=True)
class Config:
    """Measure this machine.

    Attributes:
        scale: `small` measures the demo's networks on 32-pixel images; `published` the f16d32 tokenizer at 256 px and
            the transformer named by `size` on its latents.
        size: Transformer for the published scale.
        batch_size: Images per step; null is 64 for small, 16 for published.
        repeats: Timed steps of each stage, after two untimed ones; the result is the median.
        device: auto, cpu, cuda, mps, …
        precision: Compute precision.
        output: JSON file to write, new or with an earlier record; null prints only.
    """

    scale: Literal["small", "published"] = "small"
    size: str = "XL/1"
    batch_size: int | None = None
    repeats: int = 5
    device: str = "auto"
    precision: Precision = "auto"
    output: str | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"repeats must be at least 1, got {self.repeats}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Result:
    """The measurement of one stage."""

    stage: str
    images_per_second: float  # median over the repeats
    spread: tuple[float, float]  # slowest and fastest
    peak_memory_gb: float  # of all stages so far, of an NVIDIA GPU or else of the process
    tflops: float  # TFLOP/s of matrix products, convolutions and attention; 0 if a stage has none
    mfu: float  # their share of the device's peak in its data sheet, or else of one large product in the same precision


class _Bench:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        self.dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        small = config.scale == "small"
        self.batch = config.batch_size or (64 if small else 16)
        self.side = 32 if small else 256
        self.autoencoder = AutoencoderConfig(16, 32, (1, 2, 4), 1, ()) if small else AutoencoderConfig()
        latent = self.side // self.autoencoder.factor
        self.latent_shape = (self.autoencoder.latent_channels, latent, latent)
        size = "S/2" if small else config.size
        self.transformer = LightningDiTConfig.from_size(size, latent_channels=self.latent_shape[0], latent_size=latent)
        self.peak = peak_tflops(self.device) or measured_tflops(self.device, self.dtype)

    def _time(self, stage: str, step: Callable[[], object]) -> Result:
        rates = []
        flops = count_flops(step) / self.batch  # the first of two untimed steps
        for repeat in range(-1, self.config.repeats):
            began = time.perf_counter()
            step()
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
            if repeat >= 0:
                rates.append(self.batch / (time.perf_counter() - began))
        rate = statistics.median(rates)
        tflops = rate * flops / 1e12
        memory = peak_memory_gb(self.device)
        return Result(stage, rate, (min(rates), max(rates)), memory, tflops, tflops / self.peak)

    def _images(self) -> torch.Tensor:
        source = ImagesConfig("demo", self.side).open("train")
        return load_images(source, range(self.batch), self.side).to(self.device)

    def tokenizer_step(self) -> Result:
        """One training step with LPIPS and discriminator, without a teacher."""
        settings = ObjectiveConfig(
            alignment=AlignmentConfig(enabled=False), adversarial=AdversarialConfig(start_images=0)
        )
        layout = image_memory_format(self.precision, self.device)
        model = AutoencoderKL(self.autoencoder)
        objective = TokenizerObjective(settings, self.latent_shape[0])
        for module in (model, objective):
            module.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        trained = (list(model.parameters()), objective.discriminator_parameters())
        optimizers = [build_optimizer(OptimizerConfig("adam"), parameters) for parameters in trained]
        images = self._images().contiguous(memory_format=layout)
        noise = rng.normal(0, "bench", range(self.batch), self.latent_shape, self.device)

        def step() -> None:
            objective.accumulate_gradients(model, images, noise, compute_dtype=self.dtype)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return self._time("tokenizer step", step)

    def encode(self) -> Result:
        """Images to latents."""
        model = AutoencoderKL(self.autoencoder).eval().to(self.device)
        images = self._images()

        @torch.inference_mode()
        def step() -> None:
            with autocast(self.precision, self.device):
                model.encode(images)

        return self._time("encode", step)

    def _transformer(self) -> tuple[LightningDiT, torch.Tensor, torch.Tensor]:
        """Return a transformer, latents and labels."""
        model = LightningDiT(self.transformer).to(self.device)
        latents = rng.normal(0, "bench", range(self.batch), self.latent_shape, self.device)
        return model, latents, torch.arange(self.batch, device=self.device) % self.transformer.num_classes

    def transformer_step(self) -> Result:
        """One training step on latents."""
        model, latents, labels = self._transformer()
        optimizer = build_optimizer(OptimizerConfig(), list(model.parameters()))

        def step() -> None:
            with autocast(self.precision, self.device):
                terms = flow_matching_loss(model, latents, labels)
            terms["total"].mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return self._time("transformer step", step)

    def sampling(self) -> Result:
        """Ten guided Euler evaluations per image."""
        model, noise, labels = self._transformer()

        def step() -> None:
            with autocast(self.precision, self.device):
                sample(model, noise, labels, steps=11, guidance=Guidance(4.0))

        return self._time("sampling, 10 guided Euler steps", step)

    def reading(self) -> Result:
        """Batches of latents from shards on the disk."""
        with tempfile.TemporaryDirectory() as name:
            count = 64 * self.batch
            writer = LatentWriter(name, count, LatentSettings(image_size=self.side, flips=False), shard_size=count)
            for shard in writer.missing():
                latents = rng.normal(0, "bench", range(shard.count), self.latent_shape)
                writer.write(shard, [(latents, None, torch.zeros(shard.count, dtype=torch.int64))])
            writer.finish()
            dataset = LatentDataset(name)
            order = rng.permutation(0, "bench", count)
            return self._time("latent reading", lambda: dataset.get(order[: self.batch]))


def measure(config: Config) -> list[Result]:
    """Measure every stage."""
    bench, results = _Bench(config), []
    for stage in (bench.tokenizer_step, bench.encode, bench.transformer_step, bench.sampling, bench.reading):
        print(f"measuring: {(stage.__doc__ or '').rstrip('.')}", file=sys.stderr, flush=True)
        results.append(stage())
    return results


def _check_output(path: Path) -> None:
    """Raise UserError if the record could not be written, or would replace another file."""
    check_writable("output", path)
    if path.suffix != ".json":
        raise UserError(f"output must end in .json, got {path}")
    try:
        ours = not path.exists() or str(read_json_object(path).get("command")).startswith("vavae bench")
    except UserError:
        ours = False
    if not ours:
        raise UserError(f"output must be new or a record of 'vavae bench', got {path}, another file, which is kept")


@printed_once()
def run(config: Config) -> None:
    """Measure, print a table, and write the JSON.

    Raises:
        UserError: The device does not exist, the size is unknown, `output` cannot be written, or it is a file of
            another kind.
    """
    from rich.console import Console
    from rich.table import Table

    if config.output is not None:
        _check_output(Path(config.output))
    results = measure(config)
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "images/s", "slowest", "fastest", "peak memory", "TFLOP/s", "MFU"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for r in results:
        rates = [f"{rate:,.1f}" for rate in (r.images_per_second, *r.spread)]
        products = (f"{r.tflops:,.3g}", f"{r.mfu:.0%}") if r.tflops else ()
        table.add_row(r.stage, *rates, f"{r.peak_memory_gb:.2f} GB", *products)
    Console().print(table)
    if config.output is not None:
        record = {
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["vavae", "bench", *sys.argv[2:]]),
            "versions": versions(),
            "config": to_plain(config),
            "results": to_plain(results),
        }
        path = Path(config.output)
        with written_whole(path) as partial:
            partial.write_text(json.dumps(record, indent=1) + "\n")
        print(f"results: {path}")
