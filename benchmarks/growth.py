"""Measure how time and memory of each stage grow with images, resolution and processes: 1, 4 and 16 times as many.

    python benchmarks/growth.py [--only listing shuffle]

Each measurement runs in processes of its own. Time is CPU seconds of all their threads, so other work on the machine
changes it little. Memory is the peak above what Python, torch and vavae take. Work is counted: floating-point
operations of networks, pixels, files, pairs of images, n · log n of a shuffle. `exponent` is the logarithm of the
growth of time divided by that of work's, from 1 to 16 times; above 1 a stage grows faster than its work.
It needs 2 GB of memory and a million free inodes in the temporary folder, and writes
`benchmarks/results/<date>-growth.json`.
"""

import argparse
import json
import math
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # the first step of an optimizer would import it, in each process
from PIL import Image

from record import RESULTS, started, write
from vavae import rng
from vavae.data.folders import FolderImages, list_images
from vavae.data.readable import ReadOptions
from vavae.evaluation.features import Block, BlockStore, ImageSet, extract
from vavae.evaluation.images import pixel_block
from vavae.flow import Guidance, flow_matching_loss, sample
from vavae.losses import AdversarialConfig, AlignmentConfig, ObjectiveConfig, TokenizerObjective
from vavae.metrics import FeatureNetwork, kernel_distance, precision_recall
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, RunningStatistics
from vavae.training.optimizer import OptimizerConfig, build_optimizer
from vavae.training.parallel import World, processes
from vavae.training.throughput import count_flops, peak_memory_gb
from vavae.transformer import LightningDiT, LightningDiTConfig

FACTORS = (1, 4, 16)
_FACTOR = 4  # of the tokenizer
_FEATURES = 256
_CLASSES = 100


class Stage(NamedTuple):
    """A stage at one size: what it does, and how much work that is; None counts floating-point operations."""

    size: int  # images, files, or pixels a side
    run: Callable[[], object]
    work: float | None = None


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(AutoencoderConfig(16, 32, (1, 2, 4), 1, ()))


def _images(count: int, side: int) -> torch.Tensor:
    return rng.uniform(0, "images", range(count), (3, side, side)) * 2 - 1


def _tokenizer_step(count: int, side: int) -> Callable[[], object]:
    settings = ObjectiveConfig(alignment=AlignmentConfig(enabled=False), adversarial=AdversarialConfig(start_images=0))
    model, objective = _autoencoder(), TokenizerObjective(settings, 16)
    images, noise = _images(count, side), torch.zeros(count, 16, side // _FACTOR, side // _FACTOR)
    return lambda: objective.accumulate_gradients(model, images, noise)


def _encode(count: int, side: int) -> Callable[[], object]:
    model, images = _autoencoder().eval(), _images(count, side)
    return torch.inference_mode()(lambda: model.encode(images))


def _transformer(side: int) -> LightningDiT:
    shape = LightningDiTConfig(latent_size=side, latent_channels=16, width=192, depth=4, heads=4, num_classes=10)
    return LightningDiT(shape)


def _latents(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rng.normal(0, "latents", range(count), (16, side, side)), torch.arange(count) % 10


def _transformer_step(count: int, side: int) -> Callable[[], object]:
    model, (latents, labels) = _transformer(side), _latents(count, side)
    optimizer = build_optimizer(OptimizerConfig(), list(model.parameters()))

    def step() -> None:
        flow_matching_loss(model, latents, labels)["total"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _sample(count: int, side: int) -> Callable[[], object]:
    model, (noise, labels) = _transformer(side).eval(), _latents(count, side)
    return lambda: sample(model, noise, labels, steps=11, guidance=Guidance(4.0))


def _network() -> FeatureNetwork:
    """Return a cheap feature network, so that what surrounds the networks shows."""
    matrix = torch.randn(32 * 32 * 3, _FEATURES, generator=torch.Generator().manual_seed(0))
    return FeatureNetwork("growth", "growth", torch.device("cpu"), lambda pixels: pixels.flatten(1).float() @ matrix)


def _evaluate(count: int, folder: Path) -> Callable[[], object]:
    def block(indices: range) -> Block:
        return pixel_block(torch.randint(256, (len(indices), 32, 32, 3), dtype=torch.uint8))

    def run() -> None:
        images = ImageSet("samples", count, 32, block)
        found = extract(images, [_network()], BlockStore(folder), 64, World(), "samples")["growth"]
        moments = found.moments()
        moments.distance(moments)

    return run


def _neighbors(count: int) -> Callable[[], object]:
    real, fake = (torch.randn(count, _FEATURES, generator=torch.Generator().manual_seed(n)) for n in range(2))
    return lambda: (precision_recall(real, fake, k=3), kernel_distance(real, fake))


def make_files(folder: Path, count: int) -> None:
    """Make `count` images, hard links to few, in a folder for each class."""
    for number in range(_CLASSES):
        (folder / f"class{number:03d}").mkdir()
    for index in range(count):
        if index % 30_000 == 0:  # file systems limit the links to a file
            source = folder / f"source{index}.tmp"
            Image.new("RGB", (8, 8), (index % 256, 0, 0)).save(source, format="PNG")
        os.link(source, folder / f"class{index % _CLASSES:03d}" / f"{index:07d}.png")
    for source in folder.glob("source*.tmp"):
        source.unlink()


def _listing(count: int, folder: Path) -> Callable[[], object]:
    make_files(folder, count)
    return lambda: list_images(folder)


def _opening(count: int, folder: Path) -> Callable[[], object]:
    make_files(folder, count)
    os.environ["VAVAE_CACHE"] = str(folder.parent / "cache")
    return lambda: FolderImages(folder, ReadOptions(check="header")).fingerprint()


def _statistics(count: int) -> Callable[[], object]:
    latents, _ = _latents(1000, 8)

    def run() -> None:
        statistics = RunningStatistics(16)
        for _ in range(count // len(latents)):
            statistics.update(latents)

    return run


def _shuffle(count: int) -> Stage:
    return Stage(count, lambda: rng.permutation(0, "order", count), count * math.log(count))


def _sized(make: Callable[[int, int], Callable[[], object]], count: int, side: int) -> dict[str, Callable[..., Stage]]:
    """Return a stage of networks with more images, and with more pixels."""
    name = make.__name__.strip("_").replace("_", " ")
    return {
        f"{name}, images": lambda factor, _: Stage(count * factor, make(count * factor, side)),
        f"{name}, resolution": lambda factor, _: Stage(
            side * math.isqrt(factor), make(count, side * math.isqrt(factor))
        ),
    }


# (factor, empty folder) -> the stage. Pixels of one side grow with the root of the factor.
STAGES: dict[str, Callable[[int, Path], Stage]] = {
    **_sized(_tokenizer_step, 4, 32),
    **_sized(_encode, 16, 32),
    **_sized(_transformer_step, 8, 8),
    **_sized(_sample, 8, 8),
    "evaluate, images": lambda factor, folder: Stage(3125 * factor, _evaluate(3125 * factor, folder), factor),
    "precision, recall and KID, images": lambda factor, _: Stage(250 * factor, _neighbors(250 * factor), factor**2),
    "listing, files": lambda factor, folder: Stage(62_500 * factor, _listing(62_500 * factor, folder), factor),
    "opening, files": lambda factor, folder: Stage(3125 * factor, _opening(3125 * factor, folder), factor),
    "latent statistics, images": lambda factor, _: Stage(10_000 * factor, _statistics(10_000 * factor), factor),
    "shuffle, images": lambda factor, _: _shuffle(625_000 * factor),
}
PROCESSES = "transformer step, processes"


def memory_mb() -> float:
    return 1000 * peak_memory_gb(torch.device("cpu"))


def one(name: str, factor: int) -> dict[str, float]:
    """Measure a stage at one size in this process."""
    torch.set_num_threads(1)
    base = memory_mb()
    with tempfile.TemporaryDirectory() as folder:
        (inner := Path(folder, "data")).mkdir()
        stage = STAGES[name](factor, inner)
        work = stage.work
        if work is None:  # this run also warms up
            work = count_flops(stage.run)
        began = time.process_time()
        stage.run()
        seconds = time.process_time() - began
        return {"size": stage.size, "work": work, "seconds": seconds, "memory_mb": round(memory_mb() - base)}


def _of_process(rank: int, count: int, port: int) -> dict[str, float]:
    """Train on 16 latents in one of `count` processes, whose gradients are averaged."""
    torch.set_num_threads(1)
    base = memory_mb()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with processes("cpu") as world:
        model, (latents, labels) = _transformer(8), _latents(16, 8)
        optimizer = build_optimizer(OptimizerConfig(), list(model.parameters()))
        began = time.process_time()
        for step in range(6):
            if step == 1:  # the first warms up
                began = time.process_time()
            flow_matching_loss(model, latents, labels)["total"].mean().backward()
            world.average_([p.grad for p in model.parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
        return {"seconds": (time.process_time() - began) / 5, "memory_mb": memory_mb() - base}


def of_processes(count: int) -> dict[str, float]:
    """Return the sums over `count` processes that train together."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with ProcessPoolExecutor(count, get_context("fork")) as pool:
        every = list(pool.map(_of_process, range(count), [count] * count, [port] * count))
    seconds, memory = (sum(part[name] for part in every) for name in ("seconds", "memory_mb"))
    return {"size": count, "work": count, "seconds": seconds, "memory_mb": round(memory)}


def measured(name: str, factor: int) -> dict[str, float]:
    """Measure a stage at one size in a new process, which has imported all modules."""
    if name == PROCESSES:
        return of_processes(math.isqrt(factor))
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return pool.submit(one, name, factor).result()


def result(name: str) -> dict[str, Any]:
    """Measure a stage at all sizes."""
    every = [measured(name, factor) for factor in FACTORS]
    first, last = every[0], every[-1]
    exponent = math.log(last["seconds"] / first["seconds"]) / math.log(last["work"] / first["work"])
    found = {"stage": name, "work": last["work"] / first["work"], "exponent": exponent, "sizes": every}
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="WORD", help="stages whose name contains one of these words")
    parser.add_argument("--note", help="a sentence for the result, for example on other work of the machine")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    names = [n for n in (*STAGES, PROCESSES) if not options.only or any(word in n for word in options.only)]
    record = started("growth.py") | {"results": [result(name) for name in names]}
    if options.note:
        record["note"] = options.note
    write(record, options.output, "growth")


if __name__ == "__main__":
    main()
