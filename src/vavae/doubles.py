"""Numbers in float64, where the device has them: Apple's GPUs have not, and the CPU takes their place."""

import torch
from torch import Tensor


def has_doubles(device: torch.device) -> bool:
    """Whether a device computes in float64. Of what no test has seen it is not assumed."""
    return device.type in ("cpu", "cuda", "meta")


def device_of_doubles(device: torch.device | str) -> torch.device:
    """`device` itself, or the CPU where it has no float64."""
    device = torch.device(device)
    return device if has_doubles(device) else torch.device("cpu")


def as_double(tensor: Tensor) -> Tensor:
    """`tensor` in float64, on the `device_of_doubles` of its device; as it is where it already is so."""
    return tensor.to(device_of_doubles(tensor.device)).double()
