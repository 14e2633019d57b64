"""fp8 matrix products through torchao, for GPUs of compute capability 8.9 and above."""

from collections.abc import Sequence

import torch
from torch import nn

from vavae.errors import UserError
from vavae.extras import require_extra


def use_float8(units: Sequence[nn.Module], device: torch.device) -> None:
    """Turn the linear layers of `units` into torchao's fp8 layers, in place; parameters and names do not change.

    Layers whose sides are not multiples of 16 stay as they are, since the hardware does not support them.

    Raises:
        UserError: The device does not support fp8, or torchao is not installed.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError("fp8 needs a GPU of compute capability 8.9 or above (Ada, Hopper, Blackwell)")
    require_extra("fp8", "precision fp8")
    from torchao.float8 import convert_to_float8_training

    for unit in units:
        convert_to_float8_training(unit, module_filter_fn=_fits)


def _fits(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not module.in_features % 16 and not module.out_features % 16
