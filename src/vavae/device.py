"""Devices and compute precision, chosen explicitly, and what a device can do.

CPUs and NVIDIA's GPUs compute in float64, multiply 64-bit integers, work for two threads at once and copy without
waiting. Apple's GPUs have no float64, and no test has run the rest there: the CPU takes their place, or the work waits.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from vavae.errors import UserError

# What training can be asked for, what a model that is only used can be, and what it then computes in.
Precision = Literal["auto", "fp32", "bf16"]
InferencePrecision = Literal["auto", "fp32", "tf32", "bf16"]
Compute = Literal["fp32", "tf32", "bf16"]

# TF32 is switched for the whole process, and evaluation draws in one thread while another computes features.
_TF32_SWITCH = threading.RLock()
_ALONE = threading.RLock()


def resolve_device(device: str) -> torch.device:
    """`auto` is an NVIDIA GPU where there is one, else the CPU. Under torchrun each process has that of its local rank.

    What else torch knows as this machine's accelerator, such as Apple's GPU (`mps`), is taken when it is named.

    Raises:
        UserError: The device does not exist on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device: '{device}' is not a device; use {_devices()}") from error
    if (chosen.index or 0) >= _count(chosen.type):
        raise UserError(f"device: '{device}' is not on this machine; use {_devices()}")
    if not supports_float64(chosen) and torch.__version__ < "2.13":
        # Before it Apple's kernels of Adam took no notice of steps that were to be skipped.
        raise UserError(f"device: '{device}' needs torch 2.13 or newer; this is {torch.__version__}")
    return chosen


def _count(kind: str) -> int:
    """How many devices of a kind there are."""
    if kind == "cpu":
        return 1
    if kind == "cuda":
        return torch.cuda.device_count()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.accelerator.device_count() if accelerator is not None and kind == accelerator.type else 0


def _devices() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "auto or cpu" if accelerator is None else f"auto, cpu or {accelerator.type}"


def device_name(device: torch.device) -> str:
    """What a page or a log calls the device: the model of an NVIDIA GPU, else its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def resolve_precision(precision: InferencePrecision, device: torch.device) -> Compute:
    """`auto` is bf16 where an NVIDIA GPU (Ampere or newer) or a CPU (AMX) multiplies bf16 matrices, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


def autocast(precision: Compute, device: torch.device) -> AbstractContextManager[None]:
    """Autocast to bf16 compute with fp32 parameters, or TF32 in float32 products on GPUs, or nothing.

    `tf32` is a switch of the whole process, put back afterwards: what computes in it waits for other threads that do,
    and for those in `without_tf32`. On CPUs it is nothing.
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return _tf32() if precision == "tf32" and device.type == "cuda" else nullcontext()


@contextmanager
def _tf32() -> Iterator[None]:
    """TF32 in matrix products and convolutions of float32."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with _TF32_SWITCH:
        usual = products.fp32_precision, convolutions.fp32_precision
        # By torch's older switch, which moves the newer one along: where the two disagree, compilation fails.
        if usual[0] != "tf32":
            products.allow_tf32 = True
        convolutions.fp32_precision = "tf32"
        try:
            yield
        finally:
            convolutions.fp32_precision = usual[1]
            if usual[0] != "tf32":
                products.allow_tf32 = False
                products.fp32_precision = usual[0]


def without_tf32() -> AbstractContextManager[object]:
    """For computing while no other thread computes in `tf32`, whose switch would be felt here."""
    return _TF32_SWITCH


def fits_on(device: torch.device, size: int, share: float) -> bool:
    """Whether `size` bytes take less than `share` of the memory that is free on a GPU; false on a CPU."""
    return device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] * share


def image_memory_format(precision: Compute, device: torch.device) -> torch.memory_format:
    """The order of numbers in which convolutions are fast: channels last on NVIDIA's GPUs, and for bf16 on CPUs.

    In fp32 on CPUs the plain order is: a small tokenizer's step took 0.585 s so, and 0.631 s with channels last
    (2 cores, batch of 16, medians of 8 in turns).
    """
    last = device.type == "cuda" or (device.type == "cpu" and precision == "bf16")
    return torch.channels_last if last else torch.contiguous_format


def supports_float64(device: torch.device) -> bool:
    """Whether a device does all of that, and right."""
    return device.type in ("cpu", "cuda", "meta")


def float64_device(device: torch.device | str) -> torch.device:
    """`device` itself, or the CPU where float64 or products of 64-bit integers are not trusted to it."""
    device = torch.device(device)
    return device if supports_float64(device) else torch.device("cpu")


def to_float64(tensor: Tensor) -> Tensor:
    """`tensor` in float64, on the `float64_device` of its device; as it is where it already is so."""
    return tensor.to(float64_device(tensor.device)).double()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; an NVIDIA GPU is not waited for.

    On Apple's GPUs such a copy may read memory that has been given back meanwhile (torch 2.13, pytorch issue 189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def device_lock(device: torch.device) -> AbstractContextManager[object]:
    """For work on a device in one of several threads: where two at once are not trusted to it, others wait.

    Apple's GPUs may end the process then (pytorch issue 197805).
    """
    return nullcontext() if supports_float64(device) else _ALONE
