"""Activation checkpointing: blocks compute activations again in the backward pass instead of keeping them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vavae.errors import UserError

Recomputation = Literal["none", "selective", "full"]

_aten = torch.ops.aten
# Results of matrix products and attention: costly to compute, small to keep.
_KEPT = frozenset(
    {
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _selective() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def apply_activation_checkpointing(units: Sequence[nn.Module], mode: Recomputation) -> None:
    """Set what each unit keeps for its backward pass. Names of parameters do not change.

    Args:
        units: Modules such as the blocks of a transformer.
        mode: "none" keeps all activations. "selective" keeps the results of matrix products and attention, and computes
            norms, activations and modulations again. "full" keeps the unit's inputs only, for about a third more
            computation.

    Raises:
        UserError: The mode is unknown.
    """
    if mode not in get_args(Recomputation):
        raise UserError(f"activation_checkpointing must be one of {', '.join(get_args(Recomputation))}, got {mode!r}")
    for unit in units:
        unit.__dict__.pop("forward", None)
        if mode != "none":
            unit.forward = _recomputed(unit.forward, mode)


def _recomputed(forward: Callable[..., Any], mode: Recomputation) -> Callable[..., Any]:
    options: dict[str, Any] = {"context_fn": _selective} if mode == "selective" else {}

    def run(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options)

    return run
