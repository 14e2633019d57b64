"""What devices are trusted with: float64, products of 64-bit integers, copies that nobody waits for.

CPUs and NVIDIA's GPUs are. Apple's GPUs have no float64, and of what no test has seen nothing is assumed: the CPU takes
their place.
"""

import torch
from torch import Tensor


def has_doubles(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    return device.type in ("cpu", "cuda", "meta")


def device_of_doubles(device: torch.device | str) -> torch.device:
    """`device` itself, or the CPU where it has no float64."""
    device = torch.device(device)
    return device if has_doubles(device) else torch.device("cpu")


def as_double(tensor: Tensor) -> Tensor:
    """`tensor` in float64, on the `device_of_doubles` of its device; as it is where it already is so."""
    return tensor.to(device_of_doubles(tensor.device)).double()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; an NVIDIA GPU is not waited for.

    On Apple's GPUs such a copy may read memory that has been given back meanwhile (torch 2.13, pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
