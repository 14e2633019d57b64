"""torch.compile from outside: chosen methods of a module, in place."""

import torch
from torch import nn


def compile_methods(module: nn.Module, *names: str) -> None:
    """Compile methods of `module`, each as one graph without breaks, in place.

    Names of parameters do not change. A backward pass may run more than once (`retain_graph`): torch's donated
    buffers, which forbid that, are switched off for the whole process.

    Args:
        module: The module.
        names: Its methods; compiled when first called, and again for another kind of input.
    """
    torch._functorch.config.donated_buffer = False
    for name in names:
        setattr(module, name, torch.compile(getattr(module, name), fullgraph=True))
