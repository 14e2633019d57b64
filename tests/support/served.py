"""What the server of children.py has before it forks: modules, the embedded images, and no search for garbage in them.

A child would search all that it inherits, and so copy its memory.
"""

import gc
import os
from importlib import import_module

# Training and `workers` import the last ones late: together they take longer than a tiny run.
_MODULES = ["workers", "evaluate_models", "frontier_grid", "huggingface_hub.repocard", "pytest", "torch._dynamo"]
_MODULES += ["torch.distributed.checkpoint", "torch.distributed.fsdp"]

gc.disable()
for name in _MODULES:
    import_module(name)
for split in ("train", "test"):
    import_module("vavae.data.sources").demo_pixels(split)
gc.freeze()
gc.enable()

_, _, path = os.environ.pop("PYTHONPATH").partition(os.pathsep)  # which Child.start extended
if path:
    os.environ["PYTHONPATH"] = path
