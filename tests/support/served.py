"""What the server of children.py has before it forks: modules, the embedded images, and no search for garbage in them.

A child would search all that it inherits, and so copy its memory.
"""

import gc
import os

gc.disable()

# Training and `workers` import these late: together they take longer than a tiny run.
import huggingface_hub.repocard
import pytest
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
import tiny_commands
import workers

from vavae.data.sources import demo_pixels

_, _, path = os.environ.pop("PYTHONPATH").partition(os.pathsep)  # which Child.start extended
if path:
    os.environ["PYTHONPATH"] = path
demo_pixels("train")
demo_pixels("test")
gc.freeze()
gc.enable()
