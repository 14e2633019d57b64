"""torch.compile from outside: chosen methods of a module, or a whole network or its blocks, in place."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

# True compiles a whole network as one graph.
Compilation = bool | Literal["blocks"]


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


def compile_network(network: nn.Module, blocks: Sequence[nn.Module], how: Compilation) -> nn.Module:
    """What to call instead of `network`; names of parameters do not change.

    Args:
        network: The network.
        blocks: Its repeated parts, alike in everything but their parameters.
        how: False compiles nothing; True makes one graph of all, without breaks; "blocks" makes one of each block,
            in place: as they are alike, the first one's graph serves them all, so compiling takes a fraction of the
            time, whatever the depth, and a graph serves every network of blocks of that width. In one process torch
            keeps eight graphs of one function (`torch._dynamo.config.recompile_limit`): blocks of many widths, or many
            kinds of batches, need `torch.compiler.reset()` in between.
    """
    if how == "blocks":
        for block in blocks:
            block.compile(fullgraph=True)
        return network
    return torch.compile(network, fullgraph=True) if how else network  # type: ignore[return-value]
