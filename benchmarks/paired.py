"""Our steps beside plain ones: the same work on the same device, in turns, in one process.

    python benchmarks/paired.py --threads 2 --pairs 7
    python benchmarks/paired.py --device cuda --scale published --precision bf16 --pairs 5

Each measurement times plain, ours, plain, ours, …; the ratio of a pair is ours / plain, and the median over pairs
counts. Writes `benchmarks/results/<date>-paired-<device>.json` with every pair, so that a noisy machine shows.
Targets: tokenizer step 0.65, transformer step 0.9, guided sampling 0.85, latent reading 1/20.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from plain import reading, tokenizer_step, transformer
from vavae import counter
from vavae.data import LatentDataset, LatentSettings, LatentWriter
from vavae.flow import Guidance, flow_matching_loss, sample
from vavae.losses import LPIPS, AdversarialConfig, DiscriminatorConfig, ObjectiveConfig, TokenizerObjective
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL
from vavae.training.averages import MovingAverage, exponential
from vavae.training.optimizer import OptimizerConfig, build_optimizer
from vavae.training.precision import autocast, resolve_device
from vavae.training.tracking import versions
from vavae.transformer import LightningDiT, LightningDiTConfig

Pair = tuple[Callable[[], object], Callable[[], object]]
TARGETS = {"tokenizer step": 0.65, "transformer step": 0.9, "guided sampling": 0.85, "latent reading": 0.05}


class Measurements:
    """What is measured, at one scale on one device."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = resolve_device(options.device)
        self.precision = options.precision
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

    def tokenizer(self) -> Pair:
        """With LPIPS, discriminator, adaptive weights and the alignment to features of ViT-L's width.

        The teacher's forward pass is left out: it would add the same seconds to both. gpu.py measures with it.
        """
        torch.manual_seed(0)
        config = replace(
            ObjectiveConfig(), adversarial=AdversarialConfig(start_images=0, discriminator=self.discriminator)
        )
        ours = AutoencoderKL.from_config(self.autoencoder).to(self.device, memory_format=torch.channels_last)
        plain = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
        objective = TokenizerObjective(config, self.latent[0], 1024, LPIPS()).to(self.device)
        plain_objective = copy.deepcopy(objective)
        images = counter.uniform(0, "images", range(self.batch), (3, self.side, self.side), self.device) * 2 - 1
        noise = counter.normal(0, "noise", range(self.batch), self.latent, self.device)
        features = counter.normal(0, "features", range(self.batch), (1024, *self.latent[1:]), self.device)

        def parameters(model: torch.nn.Module, terms: TokenizerObjective) -> list[list[torch.nn.Parameter]]:
            return [[*model.parameters(), *terms.projection_parameters()], terms.discriminator_parameters()]

        adam = OptimizerConfig("adam", 1e-4, (0.5, 0.9))
        fused = [build_optimizer(adam, group) for group in parameters(ours, objective)]
        loops = [torch.optim.Adam(group, lr=1e-4, betas=(0.5, 0.9)) for group in parameters(plain, plain_objective)]
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32

        def step() -> None:
            batch = images.contiguous(memory_format=torch.channels_last)
            objective.accumulate_gradients(ours, batch, noise, features, compute_dtype=dtype)
            for optimizer in fused:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        def plain_step() -> None:
            with autocast(self.precision, self.device):
                tokenizer_step.plain_step(config, plain_objective, plain, images, noise, features, True)
            for optimizer in loops:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)

        return plain_step, step

    def transformer(self) -> Pair:
        """Loss, gradients, AdamW and the moving average."""
        latents = counter.normal(0, "latents", range(self.batch), self.latent, self.device)
        labels = torch.arange(self.batch, device=self.device) % self.shape.num_classes
        ours = LightningDiT.from_config(self.shape).to(self.device)
        model = torch.compile(ours, fullgraph=True)
        optimizer = build_optimizer(OptimizerConfig(), list(ours.parameters()))
        average = MovingAverage(ours, exponential(0.9999))

        def step() -> None:
            with autocast(self.precision, self.device):
                terms = flow_matching_loss(model, latents, labels)
            terms["total"].mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            average.update(1)

        plain = transformer.PlainDiT(self.shape).to(self.device)
        copied = copy.deepcopy(plain)
        loop = torch.optim.AdamW(plain.parameters(), lr=2e-4, betas=(0.9, 0.95))

        def plain_step() -> None:
            with autocast(self.precision, self.device):
                total = transformer.loss(plain, latents, labels)
            total.backward()
            loop.step()
            loop.zero_grad()
            transformer.update_average(copied, plain)

        return plain_step, step

    def sampling(self) -> Pair:
        """Guided Euler with the interval from 0.125 on: 25 grid points, shift 0.3."""
        noise = counter.normal(0, "noise", range(self.batch), self.latent, self.device)
        labels = torch.arange(self.batch, device=self.device) % self.shape.num_classes
        ours = LightningDiT.from_config(self.shape).to(self.device).eval()
        plain = transformer.PlainDiT(self.shape).to(self.device).eval()

        def step() -> None:
            with autocast(self.precision, self.device):
                sample(ours, noise, labels, steps=25, guidance=Guidance(4.0))

        def plain_step() -> None:
            with autocast(self.precision, self.device):
                transformer.guided_euler(plain, noise, labels, 25, 4.0)

        return plain_step, step

    def reading(self, folder: Path) -> Pair:
        """A batch of 256 latents of f16d32 at random places of four shards of 1,000."""
        writer = LatentWriter(folder, 4000, LatentSettings(image_size=256, flips=False), 1000)
        for shard in writer.missing():
            latents = counter.normal(0, "bench", range(shard.first, shard.first + shard.count), (32, 16, 16))
            writer.write(shard, [(latents, None, torch.zeros(shard.count, dtype=torch.int64))])
        writer.finish()
        order = counter.permutation(0, "order", 4000)[:256]
        ours, plain = LatentDataset(folder), reading.PerItemLatents(folder)

        def plain_step() -> None:
            items = [plain[int(index)] for index in order]
            torch.stack([item[0] for item in items]), torch.stack([item[1] for item in items])

        return plain_step, lambda: ours.get(order, normalize=False)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def measure(name: str, pair: Pair, pairs: int, device: torch.device) -> dict[str, object]:
    plain, ours = pair
    for work in (plain, ours, plain, ours):
        work()
    times = [(seconds(plain, device), seconds(ours, device)) for _ in range(pairs)]
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
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Measurements(options)
    load = os.getloadavg()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        makers = {
            "tokenizer step": bench.tokenizer,
            "transformer step": bench.transformer,
            "guided sampling": bench.sampling,
            "latent reading": lambda: bench.reading(Path(folder)),
        }
        for name in options.only or makers:
            results.append(measure(name, makers[name](), options.pairs, bench.device))
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "benchmarks/paired.py", *sys.argv[1:]]),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "precision": options.precision,
        "scale": options.scale,
        "batch": bench.batch,
        "results": results,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{record['date']}-paired-{bench.device.type}-{options.scale}-{options.precision}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"results: {path}")


if __name__ == "__main__":
    main()
