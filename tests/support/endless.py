"""A process of test_torchrun.py: trains the tiny transformer until it is stopped."""

import os
import sys
from pathlib import Path

import torch
from estimates import skip_estimates
from tiny_runs import transformer_recipe

from vavae.stages import train_dit


def train(folder: str, data: str) -> None:
    """Train, and write this process's id and the message of a stop into the folder."""
    torch.set_num_threads(1)
    skip_estimates()
    rank = os.environ["RANK"]
    (Path(folder) / f"pid-{rank}").write_text(str(os.getpid()))
    try:
        train_dit.run(transformer_recipe(Path(folder) / "run", Path(data), images=10_000_000))
    except KeyboardInterrupt as stopped:
        (Path(folder) / f"stopped-{rank}").write_text(str(stopped))
        sys.exit(1)


def launch(folder: str, data: str) -> None:
    """Do what the command `torchrun` does; its processes are forked, so they need not import everything again."""
    from torch.distributed.run import main

    forked = ["--start-method", "fork", "--run-path"]
    main(["--standalone", "--nproc-per-node", "2", *forked, __file__, folder, data])


if __name__ == "__main__":
    train(*sys.argv[1:])
