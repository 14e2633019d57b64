"""Compare training steps with token routing to plain ones, alternating in one process.

    python benchmarks/routing.py --threads 2 --pairs 5

A step is noise, times, kept tokens, forward, backward and AdamW of a LightningDiT on latents of 16 x 16, 256 tokens. A
pair times plain, routed, routed, plain; its speed-up is the quotient of the sums, and the result is the median over
pairs. It writes `benchmarks/results/<date>-routing-<device>.json`.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from paired import seconds
from record import RESULTS, started, write
from vavae import rng
from vavae.device import autocast
from vavae.flow import FlowConfig
from vavae.stages.costs import TransformerCosts
from vavae.training.optimizer import OptimizerConfig, build_optimizer
from vavae.transformer import LightningDiT, LightningDiTConfig
from vavae.transformer.routing import RoutingConfig

TOKENS = 256
AIM = 1.6


def training_step(shape: LightningDiTConfig, options: argparse.Namespace) -> Callable[[], object]:
    """Return one step of training with the shape's routing."""
    device, routing, flow = torch.device(options.device), shape.routing, FlowConfig()
    model = LightningDiT(shape).to(device)
    optimizer = build_optimizer(OptimizerConfig(), list(model.parameters()))
    positions = torch.arange(options.batch)
    latents = rng.normal(0, "latents", positions, (shape.latent_channels, 16, 16), device)
    labels = positions.to(device) % shape.num_classes

    def step() -> None:
        extra = {}
        if (count := routing.kept(TOKENS, 0)) < TOKENS:
            order = rng.uniform(0, "kept tokens", positions, (TOKENS,), device).argsort(dim=1, stable=True)
            extra["kept"] = order[:, :count].sort(dim=1).values
        if routing.kind == "sprint":
            extra["path_drop"] = rng.uniform(0, "path drop", positions, device=device) < routing.path_drop
        noise = rng.normal(0, "noise", positions, tuple(latents.shape[1:]), device)
        drop = rng.uniform(0, "label drop", positions, device=device) < 0.1
        with autocast(options.precision, device):
            times = flow.draw_times(0, positions, device)
            terms = flow.loss(partial(model, **extra), latents, labels, noise, times, drop)
        terms["total"].mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(kind: str, options: argparse.Namespace) -> dict[str, object]:
    """Return the speed-up by one kind of routing."""
    routings = (RoutingConfig(), RoutingConfig(kind, drop=options.drop))  # type: ignore[arg-type]
    shapes = [LightningDiTConfig.from_size(options.size, latent_size=16, routing=routing) for routing in routings]
    plain, routed = (training_step(shape, options) for shape in shapes)
    flops = [TransformerCosts(shape, FlowConfig(), "fp32", "none").work(1).flops or 0.0 for shape in shapes]
    plain(), routed()
    pairs = []
    for _ in range(options.pairs):
        took = [seconds(work, torch.device(options.device)) for work in (plain, routed, routed, plain)]
        pairs.append((took[0] + took[3], took[1] + took[2]))
    ratios = [first / second for first, second in pairs]
    result = {
        "kind": f"{kind} {options.size}, drop {options.drop:g}",
        "times as fast": statistics.median(ratios),
        "from": min(ratios),
        "to": max(ratios),
        "pairs": len(ratios),
        "operations": flops[0] / flops[1],
        "aim": AIM,
        "seconds": pairs,
    }
    print(f"{result['kind']}: {result['times as fast']:.2f} times as fast, {flops[0] / flops[1]:.2f} by operations")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--size", default="S/1")
    parser.add_argument("--drop", type=float, default=0.75)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    record = started("routing.py") | {
        "threads": torch.get_num_threads(),
        "precision": options.precision,
        "batch": options.batch,
        "results": [measure(kind, options) for kind in ("sprint", "tread")],
    }
    write(record, options.output, f"routing-{torch.device(options.device).type}")


if __name__ == "__main__":
    main()
