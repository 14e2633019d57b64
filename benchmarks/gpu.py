"""Measure speed and memory on a GPU, in pieces of at most nine minutes each.

    python benchmarks/gpu.py frontier           # steps of the recipe frontier/cifar10, compiled or not
    python benchmarks/gpu.py transformer        # XL/1 and B/1: images/s, MFU, graph breaks; compiled blocks and whole
    python benchmarks/gpu.py memory             # peak memory of each size, with and without activation checkpointing
    python benchmarks/gpu.py tokenizer          # f16d32 with a ViT-L teacher and LPIPS at 256 px, and the plain step
    python benchmarks/gpu.py precision          # XL/1 in fp32, bf16 and fp8 (torchao); optimizers
    python benchmarks/gpu.py sampling           # guided sampling, with and without the interval

Each piece writes `<output>/<date>-gpu-<piece>.json` after every measurement, so a time limit keeps finished ones.
Weights and data are random; speed does not depend on them. The teacher is a ViT-L/14 of DINOv2's shape.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from plain import tokenizer_step
from vavae import rng
from vavae.config import load_recipe
from vavae.device import Precision, autocast
from vavae.errors import UserError
from vavae.flow import Guidance, flow_matching_loss, sample
from vavae.frontier.config import Config
from vavae.frontier.grid import Grid, TokenizerCell
from vavae.losses import LPIPS, AdversarialConfig, ObjectiveConfig, TokenizerObjective
from vavae.stages.train_tokenizer import compile_tokenizer
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL
from vavae.training.activation_checkpointing import Recomputation, apply_activation_checkpointing
from vavae.training.compile import Compilation, compile_network
from vavae.training.ema import MovingAverage, exponential
from vavae.training.float8 import use_float8
from vavae.training.gpus import peak_tflops
from vavae.training.optimizer import Optimizer, OptimizerConfig, linear_matrices
from vavae.training.run_log import versions
from vavae.training.throughput import count_flops
from vavae.transformer import LightningDiT

DEVICE = torch.device("cuda")
LATENT = (32, 16, 16)
RECIPE = "frontier/cifar10"


class Record:
    """The measurements so far, written to disk after each one."""

    def __init__(self, piece: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.strftime('%Y-%m-%d')}-gpu-{piece}.json"
        self.content: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "command": f"python benchmarks/gpu.py {piece}",
            "versions": versions(),
            "peak_bf16_tflops": peak_tflops(DEVICE),
            "results": [],
        }

    def add(self, **numbers: Any) -> None:
        self.content["results"].append(numbers)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")
        print(json.dumps(numbers), flush=True)


def clear() -> None:
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def rate(step: Callable[[], object], batch: int, repeats: int = 10, began: float | None = None) -> dict[str, float]:
    """Return images per second of the median step, seconds of three warm-up steps, and peak memory.

    `began` is the start of building the step, if that may compile already.
    """
    began = time.perf_counter() if began is None else began
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    warm_up = time.perf_counter() - began
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {
        "images_per_second": batch / statistics.median(times),
        "slowest": batch / max(times),
        "fastest": batch / min(times),
        "warm_up_seconds": warm_up,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def flops_per_image(size: str, latent: tuple[int, int, int] = LATENT) -> float:
    with torch.device("meta"):
        model = LightningDiT.from_size(size, latent_channels=latent[0], latent_size=latent[1])
        x, t, y = torch.empty(1, *latent), torch.empty(1), torch.zeros(1, dtype=torch.int64)
    return count_flops(lambda: model(x, t, y).sum().backward())


def transformer_step(
    size: str,
    batch: int,
    precision: Precision = "bf16",
    recompute: Recomputation = "none",
    compiled: Compilation = True,
    fp8: bool = False,
    optimizer: OptimizerConfig | None = None,
    latent: tuple[int, int, int] = LATENT,
) -> Callable[[], None]:
    """Return a whole training step: noise and times by position, loss, gradients, clipping, optimizer, average."""
    torch.manual_seed(0)
    model = LightningDiT.from_size(size, latent_channels=latent[0], latent_size=latent[1]).to(DEVICE)
    apply_activation_checkpointing(list(model.blocks), recompute)
    if fp8:
        use_float8(list(model.blocks), DEVICE)
    called = compile_network(model, list(model.blocks), compiled)
    config = optimizer or OptimizerConfig(gradient_clip=1.0)
    steps = Optimizer(config, list(model.parameters()), linear_matrices([model]))
    average = MovingAverage(model, exponential(0.9999))
    latents = rng.normal(0, "latents", range(batch), latent, DEVICE)
    labels = torch.arange(batch, device=DEVICE) % 1000
    positions = torch.arange(batch)

    def step() -> None:
        noise = rng.normal(0, "noise", positions, latent, DEVICE)
        drop = rng.uniform(0, "drop", positions, device=DEVICE) < 0.1
        t = torch.sigmoid(rng.normal(0, "t", positions, (1,), DEVICE)[:, 0])
        with autocast("fp32" if precision == "fp32" else "bf16", DEVICE):
            terms = flow_matching_loss(called, latents, labels, noise=noise, t=t, label_drop=drop)
        total = terms["total"].mean()
        total.backward()
        norm = steps.clip()
        steps.step(1.0, ~torch.isfinite(norm + total.detach()))
        average.update(1)

    return step


def measured(record: Record, size: str, batch: int, repeats: int = 10, **options: Any) -> bool:
    """Measure one setting; return False if it does not fit into memory."""
    clear()
    settings = {name: value.kind if isinstance(value, OptimizerConfig) else value for name, value in options.items()}
    if "latent" in settings:
        settings["latent"] = "×".join(map(str, settings["latent"]))
    try:
        began = time.perf_counter()
        numbers = rate(transformer_step(size, batch, **options), batch, repeats, began)
    except torch.OutOfMemoryError:
        record.add(size=size, batch=batch, **settings, fits=False)
        return False
    except UserError as error:
        record.add(size=size, batch=batch, **settings, refused=str(error))
        return False
    tflops = numbers["images_per_second"] * flops_per_image(size, options.get("latent", LATENT)) / 1e12
    peak = peak_tflops(DEVICE)
    record.add(size=size, batch=batch, **settings, **numbers, tflops=tflops, mfu=tflops / peak if peak else None)
    return True


def transformer(record: Record) -> None:
    every: list[tuple[str, int, Compilation]] = [
        ("XL/1", 256, "blocks"),
        ("B/1", 1024, "blocks"),
        ("XL/1", 256, False),
        ("XL/1", 256, True),
        ("XL/1", 512, "blocks"),
        ("XL/1", 128, "blocks"),
        ("B/1", 1024, True),
        ("B/1", 256, "blocks"),
    ]
    for size, batch, compiled in every:
        measured(record, size, batch, compiled=compiled)
    clear()
    model = LightningDiT.from_size("XL/1").to(DEVICE)
    x, t = torch.randn(2, *LATENT, device=DEVICE), torch.rand(2, device=DEVICE)
    explained = torch._dynamo.explain(model)(x, t, torch.zeros(2, dtype=torch.int64, device=DEVICE))
    record.add(size="XL/1", graphs=explained.graph_count, graph_breaks=explained.graph_break_count)


def frontier_tokenizer(grid: Grid, compiled: bool, adversarial: bool) -> Callable[[], None]:
    """Return a step of the recipe's tokenizer with 16 channels, aligned with the features of a ViT-S."""
    recipe = grid.tokenizer(TokenizerCell(16, "dinov2-small-focus", "full", 0))
    batch, size, side = recipe.training.batch_size, recipe.data.size, grid.side
    torch.manual_seed(0)
    start = replace(recipe.objective.adversarial, start_images=0 if adversarial else 10**12)
    objective = TokenizerObjective(replace(recipe.objective, adversarial=start), 16, 384, LPIPS())
    model = AutoencoderKL(recipe.tokenizer)
    for module in (model, objective):
        module.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        compile_tokenizer(model, objective)
    groups = [[*model.parameters(), *objective.projection_parameters()], objective.discriminator_parameters()]
    kinds = (recipe.optimizer, recipe.discriminator_optimizer)
    optimizers = [Optimizer(kind, group, set()) for kind, group in zip(kinds, groups, strict=True)]
    average = MovingAverage(model, exponential(0.999))
    images = rng.uniform(0, "images", range(batch), (3, size, size), DEVICE) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    features = rng.normal(0, "features", range(batch), (384, side, side), DEVICE)
    positions = torch.arange(batch)
    fine = torch.zeros((), dtype=torch.bool, device=DEVICE)

    def step() -> None:
        noise = rng.normal(0, "noise", positions, (16, side, side), DEVICE)
        objective.accumulate_gradients(model, images, noise, features, 0, compute_dtype=torch.bfloat16)
        for optimizer in optimizers:
            optimizer.clip()
            optimizer.step(1.0, fine)
        average.update(1)

    return step


def frontier(record: Record) -> None:
    grid = Grid(load_recipe(Config, RECIPE), ("", ""))
    ways: list[Compilation] = ["blocks", False, True]
    latent = (16, grid.side, grid.side)
    for compiled in ways:
        measured(record, "S/1", grid.config.generator.training.batch_size, 50, compiled=compiled, latent=latent)
    for compiled in (False, True):
        for adversarial in (False, True):
            clear()
            began = time.perf_counter()
            batch = grid.config.tokenizer.training.batch_size
            numbers = rate(frontier_tokenizer(grid, compiled, adversarial), batch, 50, began)
            record.add(tokenizer="d 16", compiled=compiled, adversarial=adversarial, **numbers)


def memory(record: Record) -> None:
    for size in ("B/1", "L/1", "XL/1", "1p0B/1", "1p6B/1"):
        for recompute in ("none", "selective", "full"):
            measured(record, size, 64, 3, recompute=recompute)


def precision(record: Record) -> None:
    measured(record, "XL/1", 128, precision="fp32")
    measured(record, "XL/1", 256, fp8=True)
    for kind in ("adamw", "muon"):
        measured(record, "XL/1", 256, optimizer=OptimizerConfig(kind, gradient_clip=1.0))


def tokenizer_steps(dtype: torch.dtype, batch: int) -> dict[str, Callable[[], None]]:
    """Return our step and the plain one on the same networks, both with the teacher's forward pass."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    large = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=224, patch_size=14)
    teacher = Dinov2Model(large).eval().requires_grad_(False).to(DEVICE, dtype)
    config = replace(ObjectiveConfig(), adversarial=AdversarialConfig(start_images=0))
    model = AutoencoderKL(AutoencoderConfig()).to(DEVICE, memory_format=torch.channels_last)
    objective = TokenizerObjective(config, 32, 1024, LPIPS()).to(DEVICE)
    groups = [[*model.parameters(), *objective.projection_parameters()], objective.discriminator_parameters()]
    optimizers = [Optimizer(OptimizerConfig("adam", 1e-4, (0.5, 0.9)), group, set()) for group in groups]
    images = rng.uniform(0, "images", range(batch), (3, 256, 256), DEVICE) * 2 - 1
    noise = rng.normal(0, "noise", range(batch), LATENT, DEVICE)
    fine = torch.zeros((), dtype=torch.bool, device=DEVICE)

    def features() -> torch.Tensor:
        with torch.no_grad():
            pixels = torch.nn.functional.interpolate(images, size=224, mode="bilinear").to(dtype)
            tokens = teacher(pixels).last_hidden_state[:, 1:]
        return tokens.transpose(1, 2).unflatten(2, (16, 16)).float()

    def ours() -> None:
        ordered = images.contiguous(memory_format=torch.channels_last)
        objective.accumulate_gradients(model, ordered, noise, features(), compute_dtype=dtype)
        for optimizer in optimizers:
            optimizer.step(1.0, fine)

    def plain() -> None:
        with autocast("bf16" if dtype == torch.bfloat16 else "fp32", DEVICE):
            tokenizer_step.plain_step(config, objective, model, images, noise, features(), True)
        for optimizer in optimizers:
            optimizer.step(1.0, fine)

    return {"ours": ours, "plain": plain}


def tokenizer(record: Record) -> None:
    """Measure both steps alternating, twice each, in bf16 and in fp32."""
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (8, 16, 32):
            clear()
            steps = tokenizer_steps(dtype, batch)
            for name in ("ours", "plain", "ours", "plain"):
                torch.cuda.reset_peak_memory_stats()
                settings = {"step": name, "dtype": str(dtype), "batch": batch}
                try:
                    record.add(**settings, **rate(steps[name], batch, 5))
                except torch.OutOfMemoryError:
                    record.add(**settings, fits=False)


def sampling(record: Record) -> None:
    clear()
    batch = 128
    model = LightningDiT.from_size("XL/1").to(DEVICE).eval()
    compiled = torch.compile(model, fullgraph=True)
    noise, labels = torch.randn(batch, *LATENT, device=DEVICE), torch.arange(batch, device=DEVICE)
    for start in (0.0, 0.125):
        guidance = Guidance(4.0, start)

        def step(guidance: Guidance = guidance) -> None:
            with autocast("bf16", DEVICE):
                sample(compiled, noise, labels, steps=50, guidance=guidance, null_label=1000)

        record.add(size="XL/1", batch=batch, steps=50, guidance_start=start, **rate(step, batch, 3))


PIECES = {f.__name__: f for f in (frontier, transformer, memory, tokenizer, precision, sampling)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("piece", choices=tuple(PIECES), nargs="+")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py needs a CUDA device")
    torch.set_float32_matmul_precision("high")
    for piece in options.piece:
        PIECES[piece](Record(piece, options.output))


if __name__ == "__main__":
    main()
