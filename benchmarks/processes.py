"""Measure how long several processes take for a step that averages gradients during, or after, the backward pass.

    python benchmarks/processes.py --processes 2 4 --pairs 7

gloo on CPUs, one thread per process: LightningDiT on 16×8×8 latents, 8 images per process, forward pass, backward pass
and mean of the gradients. Each process times A B B A …: A averages after the backward pass
(`World.average_`), B while it runs (`GradientAverager`, as training does). The slowest process counts. It writes
`benchmarks/results/<date>-processes.json`.
"""

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing

from record import RESULTS, started, write
from vavae import LightningDiT
from vavae.training.gradients import GradientAverager
from vavae.training.parallel import World, processes

_IMAGES = 8
_STEPS = 3  # in one measurement


def step_kinds(world: World) -> dict[str, Callable[[], None]]:
    """Return one step of each kind, on the same network."""
    torch.manual_seed(0)
    model = LightningDiT(latent_size=8, latent_channels=16, width=384, depth=12, heads=6, num_classes=10)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    averager = GradientAverager(world, [parameters])
    x, t, y = torch.randn(_IMAGES, 16, 8, 8), torch.rand(_IMAGES), torch.zeros(_IMAGES, dtype=torch.int64)

    def gradients() -> None:
        for parameter in parameters:
            parameter.grad = None
        model(x, t, y, label_drop=torch.zeros(_IMAGES, dtype=torch.bool)).square().mean().backward()

    def after() -> None:
        gradients()
        world.average_([parameter.grad for parameter in parameters if parameter.grad is not None])

    def during() -> None:
        with averager.averaging():
            gradients()

    return {"alone": gradients, "after": after, "during": during}


def measure(rank: int, count: int, port: int, pairs: int, folder: str) -> None:
    """Time the steps in one process, and write its seconds per step as JSON."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with processes("cpu") as world:
        kinds = step_kinds(world)
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        order = [name for pair in range(pairs) for name in (["after", "during"], ["during", "after"])[pair % 2]]
        for name in ["alone", "after", "during"] + ["alone"] * 3 + order:  # the first three warm up
            world.wait()
            began = time.perf_counter()
            for _ in range(_STEPS):
                kinds[name]()
            world.wait()
            seconds[name].append((time.perf_counter() - began) / _STEPS)
        Path(folder, f"{rank}.json").write_text(json.dumps({name: values[1:] for name, values in seconds.items()}))


def result(count: int, pairs: int) -> dict[str, float | int]:
    """Return the medians of a number of processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(measure, (count, port, pairs, folder), nprocs=count)
        every = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    slowest = {name: [max(times) for times in zip(*(one[name] for one in every), strict=True)] for name in every[0]}
    ratios = [during / after for during, after in zip(slowest["during"], slowest["after"], strict=True)]
    return {
        "processes": count,
        "seconds_without_average": statistics.median(slowest["alone"]),
        "seconds_after": statistics.median(slowest["after"]),
        "seconds_during": statistics.median(slowest["during"]),
        "during_by_after": statistics.median(ratios),
        "least": min(ratios),
        "largest": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = started("processes.py")
    record["results"] = [result(count, options.pairs) for count in options.processes]
    print(json.dumps(record["results"], indent=1))
    write(record, options.output, "processes")


if __name__ == "__main__":
    main()
