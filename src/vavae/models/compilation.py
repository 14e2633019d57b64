"""Compile a generator's transformer while it samples."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from vavae.models.generator import Generator
from vavae.training.compile import CompileOption, InferenceCompilation


def compile_while_sampling(
    generator: Generator, option: CompileOption, evaluations: int = 0, say: Callable[[str], object] = print
) -> None:
    """Compile the blocks of a generator's transformer and of its weak model while it samples.

    See `InferenceCompilation`; `evaluations` counts calls of the transformer.
    """
    compilation = InferenceCompilation("transformer", generator.blocks, option, generator.device, evaluations, say=say)

    def before(transformer: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        compilation.before(partial(transformer.forward, *arguments, **options), len(arguments[0]))

    if not compilation.decided:
        generator.transformer.register_forward_pre_hook(before, with_kwargs=True)
