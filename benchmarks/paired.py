"""Compare our steps with plain ones: the same work on the same device, alternating in one process.

    python benchmarks/paired.py --threads 2 --pairs 7
    python benchmarks/paired.py --device cuda --scale published --precision bf16 --pairs 5

Each measurement times plain, ours, ours, plain, …; the ratio of a pair is ours / plain, and the result is the median
over pairs. Both run in one process with the same threads, precision and teacher. Ours includes all that the trainer
does in a step: random numbers by position, gradient norms, skipping, the average. In "tokenizer step, features kept"
ours reads the teacher's features and plain computes them.

The plain transformer compiles its blocks, as the published code does; "not compiled" compares both without it. "As
shipped" is each side's own precision too: the published training multiplies in bf16 (`--mixed_precision bf16`), its
sampling in fp32 with both halves of guidance at every step; ours takes bf16 where the hardware multiplies it. It writes
`benchmarks/results/<date>-paired-….json` with every pair, so that noise of the machine is visible.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from plain import reading, tokenizer_step, transformer
from record import RESULTS, started, write
from vavae import rng
from vavae.data import LatentDataset, LatentSettings, LatentWriter
from vavae.device import autocast, image_memory_format, resolve_device, resolve_precision
from vavae.flow import FlowConfig, Guidance, flow_matching_loss, sample
from vavae.losses import LPIPS, AdversarialConfig, DiscriminatorConfig, ObjectiveConfig, TokenizerObjective
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL
from vavae.training.ema import MovingAverage, exponential
from vavae.training.optimizer import Optimizer, OptimizerConfig
from vavae.training.throughput import count_flops
from vavae.transformer import LightningDiT, LightningDiTConfig

Pair = tuple[Callable[[], object], Callable[[], object]]
TARGETS = {
    "tokenizer step": 0.65,
    "tokenizer step, features kept": 0.65,
    "transformer step": 0.97,
    "transformer step, not compiled": 1.0,
    "transformer step in bf16, plain in fp32": 0.5,
    "guided sampling": 0.86,
    "guided sampling, not compiled": 0.86,
    "guided sampling as shipped": 0.5,
    "latent reading": 0.05,
}

# Rows whose operations torch can count, with the tokenizer's and the transformer's arithmetic.
NOT_COMPILED = ("tokenizer step", "transformer step, not compiled", "guided sampling, not compiled")
PRODUCTS = tuple(
    f"aten::{name}"
    for name in ("convolution", "mkldnn_convolution", "cudnn_convolution", "mm", "addmm", "bmm", "_scaled_dot_product")
)


class Measurements:
    """The measurements at one scale on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = resolve_device(options.device)
        self.precision = options.precision
        self.scale = options.scale
        small = options.scale == "small"
        self.batch = options.batch or (16 if small else 32)
        self.side = 32 if small else 256
        self.autoencoder = AutoencoderConfig(16, 32, (1, 2, 4), 1, ()) if small else AutoencoderConfig()
        latent = self.side // self.autoencoder.factor
        self.latent = (self.autoencoder.latent_channels, latent, latent)
        size = "S/1" if small else "B/1"
        self.shape = LightningDiTConfig.from_size(size, latent_channels=self.latent[0], latent_size=latent)
        if small:
            self.shape = replace(self.shape, depth=6)
        self.discriminator = DiscriminatorConfig(64, 2 if small else 3)

    def tokenizer(self, features_kept: bool = False) -> Pair:
        """Return steps with LPIPS, discriminator, adaptive weights, and a DINOv2 teacher (ViT-S; published: ViT-L).

        With `features_kept` our step reads precomputed teacher features, like `teacher.cache_features` for images that
        are the same in every epoch; the plain step runs the teacher.
        """
        torch.manual_seed(0)
        config = replace(
            ObjectiveConfig(), adversarial=AdversarialConfig(start_images=0, discriminator=self.discriminator)
        )
        order = image_memory_format(self.precision, self.device)
        ours = AutoencoderKL(self.autoencoder).to(self.device, memory_format=order)
        plain = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
        teacher, width = self._teacher()
        objective = TokenizerObjective(config, self.latent[0], width, LPIPS()).to(self.device, memory_format=order)
        plain_objective = copy.deepcopy(objective).to(memory_format=torch.contiguous_format)
        images = rng.uniform(0, "images", range(self.batch), (3, self.side, self.side), self.device) * 2 - 1
        positions = torch.arange(self.batch)

        def parameters(model: torch.nn.Module, terms: TokenizerObjective) -> list[list[torch.nn.Parameter]]:
            return [[*model.parameters(), *terms.projection_parameters()], terms.discriminator_parameters()]

        adam = OptimizerConfig("adam", 1e-4, (0.5, 0.9))
        fused = [Optimizer(adam, group, set()) for group in parameters(ours, objective)]
        loops = [torch.optim.Adam(group, lr=1e-4, betas=(0.5, 0.9)) for group in parameters(plain, plain_objective)]
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        kept = teacher(images)

        def step() -> None:
            batch = images.contiguous(memory_format=order)
            noise = rng.normal(0, "noise", positions, self.latent, self.device)
            features = kept if features_kept else teacher(images)
            terms = objective.accumulate_gradients(ours, batch, noise, features, compute_dtype=dtype)
            engine_step(fused, terms["total"])

        def plain_step() -> None:
            noise = torch.randn(self.batch, *self.latent, device=self.device)
            with autocast(self.precision, self.device):
                tokenizer_step.plain_step(config, plain_objective, plain, images, noise, teacher(images), True)
            for optimizer in loops:
                optimizer.step()
                optimizer.zero_grad()

        return plain_step, step

    def _teacher(self) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
        """Return a function from images to features on the latents' grid, and their width; weights are random."""
        from transformers import Dinov2Config, Dinov2Model

        large = self.scale == "published"
        width, layers, heads, side = (1024, 24, 16, 224) if large else (384, 12, 6, 112)
        shape = Dinov2Config(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, patch_size=14, image_size=side
        )
        network = Dinov2Model(shape).eval().requires_grad_(False).to(self.device)

        @torch.no_grad()
        def features(images: torch.Tensor) -> torch.Tensor:
            pixels = F.interpolate(images, (side, side), mode="bilinear")
            with autocast(self.precision, self.device):
                tokens = network(pixels).last_hidden_state[:, 1:]
            grid = tokens.transpose(1, 2).unflatten(2, (side // 14, side // 14)).float()
            return F.interpolate(grid, self.latent[1:], mode="bilinear") if grid.shape[2:] != self.latent[1:] else grid

        return features, width

    def transformer(self, ours_precision: Literal["fp32", "bf16"] | None = None, compiled: bool = True) -> Pair:
        """Return steps with random numbers, loss, gradients, norm, AdamW and the moving average."""
        latents = rng.normal(0, "latents", range(self.batch), self.latent, self.device)
        labels = torch.arange(self.batch, device=self.device) % self.shape.num_classes
        ours = LightningDiT(self.shape).to(self.device)
        model = torch.compile(ours, fullgraph=True) if compiled else ours
        optimizer = Optimizer(OptimizerConfig(), list(ours.parameters()), set())
        positions, flow = torch.arange(self.batch), FlowConfig()
        average = MovingAverage(ours, exponential(0.9999))

        def step() -> None:
            noise = rng.normal(0, "noise", positions, self.latent, self.device)
            drop = rng.uniform(0, "label drop", positions, device=self.device) < 0.1
            t = flow.draw_times(0, positions, self.device)
            with autocast(ours_precision or self.precision, self.device):
                terms = flow_matching_loss(model, latents, labels, noise=noise, t=t, label_drop=drop)
            total = terms["total"].mean()
            total.backward()
            engine_step([optimizer], total.detach())
            average.update(1)

        plain = transformer.PlainDiT(self.shape, compiled).to(self.device)
        copied = copy.deepcopy(transformer.PlainDiT(self.shape)).to(self.device)
        loop = torch.optim.AdamW(plain.parameters(), lr=2e-4, betas=(0.9, 0.95))

        def plain_step() -> None:
            with autocast(self.precision, self.device):
                total = transformer.loss(plain, latents, labels)
            total.backward()
            loop.step()
            loop.zero_grad()
            transformer.update_average(copied, plain)

        return plain_step, step

    def sampling(self, ours_precision: Literal["fp32", "bf16"] | None = None, compiled: bool = True) -> Pair:
        """Return guided Euler sampling from time 0.125 on: 25 grid points, shift 0.3."""
        noise = rng.normal(0, "noise", range(self.batch), self.latent, self.device)
        labels = torch.arange(self.batch, device=self.device) % self.shape.num_classes
        ours = LightningDiT(self.shape).to(self.device).eval()
        model = torch.compile(ours, fullgraph=True) if compiled else ours
        plain = transformer.PlainDiT(self.shape, compiled).to(self.device).eval()

        def step() -> None:
            with autocast(ours_precision or self.precision, self.device):
                sample(model, noise, labels, steps=25, guidance=Guidance(4.0), null_label=self.shape.num_classes)

        def plain_step() -> None:
            with autocast(self.precision, self.device):
                transformer.guided_euler(plain, noise, labels, 25, 4.0)

        return plain_step, step

    def reading(self, folder: Path) -> Pair:
        """Return readers of 20 batches of 256 f16d32 latents at random places of four shards of 1,000."""
        writer = LatentWriter(folder, 4000, LatentSettings(image_size=256, flips=False), 1000)
        for shard in writer.missing():
            latents = rng.normal(0, "bench", range(shard.first, shard.first + shard.count), (32, 16, 16))
            writer.write(shard, [(latents, None, torch.zeros(shard.count, dtype=torch.int64))])
        writer.finish()
        batches = [rng.permutation(number, "order", 4000)[:256] for number in range(20)]
        ours, plain = LatentDataset(folder), reading.PerItemLatents(folder)

        def step() -> None:
            for batch in batches:
                ours.get(batch, normalize=False)

        def plain_step() -> None:
            for batch in batches:
                items = [plain[int(index)] for index in batch]
                torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items])

        return plain_step, step


def engine_step(optimizers: list[Optimizer], total: torch.Tensor) -> None:
    """Do what the trainer does with gradients: norms, the decision to skip, the step."""
    for optimizer in optimizers:
        norm = optimizer.clip()
        optimizer.step(1.0, ~(torch.isfinite(norm) & torch.isfinite(total)))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def peak(device: torch.device) -> float:
    """Return the FLOP/s of the machine's own float32 product of two 2048×2048 matrices, the best of ten."""
    matrix = torch.randn(2048, 2048, device=device)
    return 2 * 2048**3 / min(seconds(lambda: matrix @ matrix, device) for _ in range(10))


def share_of_products(work: Callable[[], object], device: torch.device) -> float:
    """Return the part of the time of all operations that convolutions, matrix products and attention take."""
    kind = "cpu" if device.type == "cpu" else "device"
    with torch.profiler.profile() as profile:
        work()
    times = {event.key: getattr(event, f"self_{kind}_time_total") for event in profile.key_averages()}
    return sum(time for name, time in times.items() if name.startswith(PRODUCTS)) / sum(times.values())


def measure(name: str, pair: Pair, pairs: int, device: torch.device) -> dict[str, object]:
    plain, ours = pair
    for work in (plain, ours, plain, ours):
        work()
    times = []
    for number in range(pairs):
        took = {work: seconds(work, device) for work in ((plain, ours) if number % 2 == 0 else (ours, plain))}
        times.append((took[plain], took[ours]))
    ratios = [ours / plain for plain, ours in times]
    result = {
        "name": name,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "plain_seconds": [plain for plain, _ in times],
        "our_seconds": [ours for _, ours in times],
        "target": TARGETS[name],
    }
    print(
        f"{name}: {result['ratio']:.3f} of plain (target {TARGETS[name]}), from {min(ratios):.3f} to {max(ratios):.3f}"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", choices=("small", "published"), default="small")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", choices=tuple(TARGETS), action="append")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Measurements(options)
    record = started("paired.py")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        makers = {
            "tokenizer step": bench.tokenizer,
            "tokenizer step, features kept": lambda: bench.tokenizer(features_kept=True),
            "transformer step": bench.transformer,
            "transformer step, not compiled": lambda: bench.transformer(compiled=False),
            "guided sampling": bench.sampling,
            "guided sampling, not compiled": lambda: bench.sampling(compiled=False),
            "latent reading": lambda: bench.reading(Path(folder)),
        }
        if options.precision == "fp32" and resolve_precision("auto", bench.device) == "bf16":
            makers["transformer step in bf16, plain in fp32"] = lambda: bench.transformer("bf16")
            makers["guided sampling as shipped"] = lambda: bench.sampling("bf16")
        best = peak(bench.device)
        for name in options.only or makers:
            pair = makers[name]()
            row = measure(name, pair, options.pairs, bench.device)
            if name in NOT_COMPILED:
                rate = count_flops(pair[1]) / statistics.median(row["our_seconds"])
                row["of_peak"] = rate / best
                row["products"] = share_of_products(pair[1], bench.device)
                print(f"  {rate / 1e9:,.0f} GFLOP/s, {row['of_peak']:.0%} of the machine's product of float32 matrices")
                print(f"  {row['products']:.0%} of the time in convolutions, matrix products and attention")
            results.append(row)
    record |= {
        "threads": torch.get_num_threads(),
        "peak_gflops": best / 1e9,
        "precision": options.precision,
        "scale": options.scale,
        "batch": bench.batch,
        "results": results,
    }
    write(record, options.output, f"paired-{bench.device.type}-{options.scale}-{options.precision}")


if __name__ == "__main__":
    main()
