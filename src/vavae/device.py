"""What devices are trusted with: float64, products of 64-bit integers, two threads at once, copies nobody waits for.

CPUs and NVIDIA's GPUs are. Apple's GPUs have no float64, and of what no test has seen nothing is assumed: the CPU takes
their place, or the work waits.
"""

import threading
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_ALONE = threading.RLock()


def trusted(device: torch.device) -> bool:
    """Whether a device does all of that, and right."""
    return device.type in ("cpu", "cuda", "meta")


def device_of_doubles(device: torch.device | str) -> torch.device:
    """`device` itself, or the CPU where float64 or products of 64-bit integers are not trusted to it."""
    device = torch.device(device)
    return device if trusted(device) else torch.device("cpu")


def as_double(tensor: Tensor) -> Tensor:
    """`tensor` in float64, on the `device_of_doubles` of its device; as it is where it already is so."""
    return tensor.to(device_of_doubles(tensor.device)).double()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; an NVIDIA GPU is not waited for.

    On Apple's GPUs such a copy may read memory that has been given back meanwhile (torch 2.13, pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def one_at_a_time(device: torch.device) -> AbstractContextManager[object]:
    """For work on a device in one of several threads: where two at once are not trusted to it, others wait.

    Apple's GPUs may end the process then (pytorch issue 197805).
    """
    return nullcontext() if trusted(device) else _ALONE
