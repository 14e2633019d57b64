"""Apply torch.compile to methods of a module, to a whole network, or to its blocks."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

# True compiles a whole network as one graph.
Compilation = bool | Literal["blocks"]


def compile_methods(module: nn.Module, *names: str) -> None:
    """Compile methods of `module`, each as one graph without breaks, in place.

    Names of parameters do not change. A backward pass may run more than once (`retain_graph`), so torch's donated
    buffers, which forbid it, are switched off for the whole process.

    Args:
        module: The module.
        names: Its methods; each is compiled on its first call, and again for another kind of input.
    """
    torch._functorch.config.donated_buffer = False
    for name in names:
        setattr(module, name, torch.compile(getattr(module, name), fullgraph=True))


def compile_network(network: nn.Module, blocks: Sequence[nn.Module], how: Compilation) -> nn.Module:
    """Return the module to call instead of `network`; names of parameters do not change.

    Args:
        network: The network.
        blocks: Its repeated parts, which differ in their parameters only.
        how: False compiles nothing. True makes one graph of the whole network, without breaks. "blocks" compiles the
            blocks in place: all share the graph of the first, so compile time does not grow with depth, and another
            network with blocks of this width shares it too. In one process torch keeps eight graphs per function
            (`torch._dynamo.config.recompile_limit`): blocks of many widths, or many kinds of batches, need
            `torch.compiler.reset()` in between.
    """
    if how == "blocks":
        for block in blocks:
            block.compile(fullgraph=True)
        return network
    return torch.compile(network, fullgraph=True) if how else network  # type: ignore[return-value]
