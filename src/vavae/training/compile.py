"""Apply torch.compile: before training to methods, networks or blocks, and in the midst of inference where it pays."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from vavae.errors import UserError, one_line

# Options of training and of inference. True compiles a whole network as one graph.
Compilation = bool | Literal["blocks"]
CompileOption = Literal["auto"] | bool

# Seconds of evaluations for which `auto` compiles; it compiles on no other device. Compiling a block took 7 to 30 s. It
# saved some 20 % of sampling on a CPU, and 37 % of small training steps on an H200.
_WORTH = {"cpu": 300.0, "cuda": 60.0}
_MEASURED = 8  # evaluations whose time decides


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


class InferenceCompilation:
    """Decide at an evaluation of a network whether to compile it, compile it, and print what that brought.

    Args:
        what: Name of the evaluations in messages.
        parts: Modules that are compiled in place; names of parameters do not change. The batch size is dynamic, so a
            doubled or incomplete batch has the same graph.
        option: Whether to compile; `auto` compiles if the evaluations take longer than a time that depends on the
            device.
        device: Device of the network.
        evaluations: Least number of evaluations that will be made; 0 if it is not known. Then `auto` compiles when as
            much time has passed in them.
        say: Prints a message.
        cost: How many times as long as a transformer's block the parts take to compile.
    """

    def __init__(
        self,
        what: str,
        parts: Sequence[nn.Module],
        option: CompileOption,
        device: torch.device,
        evaluations: int = 0,
        say: Callable[[str], object] = print,
        cost: float = 1.0,
    ) -> None:
        self.what, self.parts, self.option, self.device = what, parts, option, device
        self.evaluations, self._say = evaluations, say
        self._worth = cost * _WORTH.get(device.type, math.inf)
        self.decided = not parts or option is False or (option == "auto" and self._worth == math.inf)
        self._count, self._began, self._seconds = 0, 0.0, math.inf

    def before(self, evaluate: Callable[[], object], images: int) -> None:
        """Decide; called before each evaluation of `images` images, with a function that does the same."""
        if self.decided:
            return
        self._count += 1
        if self.option == "auto" and not self._pays():
            return
        self.decided = True
        self._compile(evaluate, images)

    def _pays(self) -> bool:
        if self._count <= _MEASURED + 2:  # the first evaluation warms up
            now = self._now()
            if self._count > 2:
                self._seconds = min(self._seconds, now - self._began)
            self._began = now
        if self._count < _MEASURED + 2:
            return False
        return self._seconds * max(self.evaluations, self._count) > self._worth

    def _compile(self, evaluate: Callable[[], object], images: int) -> None:
        plain = min(self._time(evaluate) for _ in range(2))
        for part in self.parts:
            part.compile(dynamic=True)
        try:
            first = self._time(evaluate)
        except Exception as error:  # no C++ compiler, for example; torch raises errors of many kinds
            self._undo()
            failed = f"torch.compile failed ({one_line(error)[:200]})"
            if self.option is True:
                raise UserError(f"compile must be false here: {failed}") from error
            self._say(f"compile: {self.what} is not compiled, since {failed}")
            return
        compiled = min(self._time(evaluate) for _ in range(2))
        kept = self.option is True or compiled < plain
        if not kept:
            self._undo()
        times = f"{images} images: {1000 * plain:.4g} -> {1000 * compiled:.4g} ms"
        self._say(
            f"compile: {self.what}, {times}; compiling took {first - compiled:.1f} s{'' if kept else ', and is undone'}"
        )

    def _undo(self) -> None:
        for part in self.parts:
            part._compiled_call_impl = None

    def _time(self, work: Callable[[], object]) -> float:
        began = self._now()
        work()
        return self._now() - began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
