"""A process of test_torchrun.py: trains the tiny transformer until it is stopped."""

import os
import sys
from pathlib import Path

import torch
from tiny_runs import transformer_recipe

from vavae.stages import train_dit

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    try:
        train_dit.run(transformer_recipe(folder / "run", Path(sys.argv[2]), images=10_000_000))
    except KeyboardInterrupt as stopped:
        (folder / f"stopped-{rank}").write_text(str(stopped))
        sys.exit(1)
