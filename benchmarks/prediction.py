"""Compare transformers that predict velocities with those that predict data, on aligned and on teacher's latents.

    python benchmarks/prediction.py [--seeds 3] [--steps 250]

Both latents of 3,000 images of CIFAR-10 become 16 tokens: of the demo's aligned tokenizer (16 channels, patch 2), and
of DINOv2-S itself at 56 px (384 channels). The transformers are a LightningDiT of width 64, and a DiT^DH of the same
width with a wide head (128 for the aligned latents, 384 for the teacher's). Each pair of
runs differs in the prediction alone: same weights at the start, images, noise, times and optimizer. Predicted data are
compared in velocity space with a floor of 0.05 (JLT). Held out: the mean squared error of velocities on 500 images,
by thirds of the times from 0 to 0.95, above which the floor acts. No guidance, no sampling, no average of weights.

The dated JSON in benchmarks/results is written after every run, and a stopped call resumes with the next.
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vavae import rng
from vavae.data import load_images
from vavae.data.images import ImagesConfig
from vavae.flow import TimeDistribution
from vavae.flow.config import FlowConfig
from vavae.flow.paths import path_by_name
from vavae.io.files import write_json
from vavae.models import Tokenizer
from vavae.teachers import LatentEncoder, load_teacher
from vavae.transformer import DiTDH, LightningDiT

RESULTS = Path(__file__).parent / "results"
LATENTS = {"aligned": "aligned f4d16, patch 2", "teacher": "DINOv2-S, 4×4×384"}
TRANSFORMERS = {"LightningDiT": "LightningDiT, width 64", "DiTDH": "DiT^DH, width 64 and wide head"}
PREDICTIONS = ("velocity", "data")
THIRDS = ((0.0, 0.95 / 3), (0.95 / 3, 1.9 / 3), (1.9 / 3, 0.95))
HELD_OUT, IMAGES, BATCH = 500, 3000, 32


def latents(kind: str) -> tuple[Tensor, Tensor]:
    """Return latents (3000, C, h, w), normalized per channel and position, and labels (3000,)."""
    source = ImagesConfig("cifar10", 32, limit=IMAGES).open("train")
    encode = (
        Tokenizer.from_pretrained("demo").encode
        if kind == "aligned"
        else LatentEncoder(load_teacher("dinov2-small-focus", input_size=56))
    )
    parts = torch.arange(IMAGES).split(100)
    values = torch.cat([encode(load_images(source, part, 32)) for part in parts])
    return (values - values.mean(0)) / values.std(0), torch.as_tensor(source.labels)


def build(transformer: str, channels: int) -> nn.Module:
    """Return a transformer of latents of `channels` channels in 16 tokens."""
    patch = 2 if channels == 16 else 1
    shared: dict[str, Any] = {"latent_channels": channels, "latent_size": 4 * patch, "patch_size": patch}
    shared |= {"num_classes": 10, "label_dropout": 0.0}
    if transformer == "LightningDiT":
        return LightningDiT(width=64, depth=3, heads=2, **shared)
    return DiTDH(widths=(64, max(128, channels)), depths=(3, 1), heads=(2, 4), **shared)


def flow_of(prediction: str, shape: Sequence[int]) -> FlowConfig:
    """Return the flow, with RAE's shift of times for latents of at least 4,096 numbers."""
    shift: Any = "dimension" if np.prod(shape) >= 4096 else 1.0
    space: dict[str, Any] = {"prediction": "data", "space": "velocity", "floor": 0.05} if prediction == "data" else {}
    return FlowConfig(times=TimeDistribution(shift=shift), direction_weight=0.0, **space).for_latents(shape)


def trained(values: Tensor, labels: Tensor, transformer: str, prediction: str, seed: int, steps: int) -> nn.Module:
    """Train a transformer with Adam, 50 steps of warm-up and a linear decay to zero."""
    torch.manual_seed(seed)
    model, flow = build(transformer, values.shape[1]), flow_of(prediction, values.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * min((step + 1) / 50, 1 - step / steps)
        positions = torch.arange(step * BATCH, (step + 1) * BATCH)
        chosen = rng.integers(seed, "images", positions, len(values))
        noise = torch.randn((BATCH, *values.shape[1:]), generator=generator)
        times, kept = flow.draw_times(seed, positions, noise.device), torch.zeros(BATCH, dtype=torch.bool)
        loss = flow.loss(model, values[chosen], labels[chosen], noise, times, kept)["mse"].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def held_out(model: nn.Module, values: Tensor, labels: Tensor, prediction: str) -> list[float]:
    """Return the mean squared error of velocities in each third of the times; noise and times are the same for all."""
    flow, errors = flow_of(prediction, values.shape[1:]), []
    path = path_by_name(flow.path, flow.floor)
    noise = rng.normal(0, "held-out noise", range(len(values)), values.shape[1:])
    for low, high in THIRDS:
        t = torch.linspace(low, high, len(values))
        x, velocity = path.interpolate(t, noise, values)
        parts = zip(x.split(100), t.split(100), labels.split(100), strict=True)
        output = torch.cat([model(*part) for part in parts])
        errors.append((path.convert(output, x, t, flow.prediction, "velocity") - velocity).square().mean().item())
    return errors


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row of means and standard deviations over seeds for each latent, transformer and prediction."""
    rows = []
    for names in product(LATENTS, TRANSFORMERS, PREDICTIONS):
        own = [run["mse"] for run in runs if (run["latents"], run["transformer"], run["prediction"]) == names]
        if not own:
            continue
        row = {"latents": LATENTS[names[0]], "transformer": TRANSFORMERS[names[1]], "prediction": names[2]}
        columns = {f"t to {high:.2f}": np.array(own)[:, i] for i, (_, high) in enumerate(THIRDS)}
        columns["all t"] = np.array(own).mean(1)
        for name, numbers in columns.items():
            spread = f" ± {numbers.std(ddof=1):.4f}" if len(own) > 1 else ""
            row[name] = f"{numbers.mean():.4f}{spread}"
        rows.append({**row, "seeds": len(own)})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / f"{datetime.date.today()}-prediction.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs: list[dict[str, Any]] = json.loads(arguments.output.read_text())["runs"] if arguments.output.exists() else []
    data = {kind: latents(kind) for kind in LATENTS}
    for seed, *names in product(range(arguments.seeds), LATENTS, TRANSFORMERS, PREDICTIONS):
        key = dict(zip(("latents", "transformer", "prediction"), names, strict=True)) | {"seed": seed}
        if any(key.items() <= run.items() for run in runs):
            continue
        (values, labels), began = data[names[0]], time.perf_counter()
        model = trained(values[HELD_OUT:], labels[HELD_OUT:], names[1], names[2], seed, arguments.steps)
        mse = held_out(model, values[:HELD_OUT], labels[:HELD_OUT], names[2])
        runs.append({**key, "mse": mse, "seconds": round(time.perf_counter() - began, 1)})
        print(*key.values(), *(f"{error:.4f}" for error in mse), f"{runs[-1]['seconds']} s", flush=True)
        content = {
            "date": str(datetime.date.today()),
            "command": f"python benchmarks/prediction.py --seeds {arguments.seeds} --steps {arguments.steps}",
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "threads": arguments.threads,
            "batch": BATCH,
            "versions": {"torch": torch.__version__},
            "note": f"Mean squared error of velocities on {HELD_OUT} held-out images, mean ± standard deviation.",
            "results": summary(runs),
            "runs": runs,
        }
        write_json(arguments.output, content)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
