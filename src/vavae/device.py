"""Choice of device and compute precision, and what a device supports.

CPUs and NVIDIA GPUs support float64, products of 64-bit integers, work from two threads at once, and non-blocking
copies. Apple GPUs have no float64, and no test has run the rest there: the CPU does that work, or the call waits.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vavae.errors import UserError

# Options of training, options of inference, and what `auto` resolves to.
Precision = Literal["auto", "fp32", "bf16"]
InferencePrecision = Literal["auto", "fp32", "tf32", "bf16"]
Compute = Literal["fp32", "tf32", "bf16"]

# TF32 is a switch of the whole process, and evaluation samples in one thread while another computes features.
_TF32_SWITCH = threading.RLock()
_DEVICE_LOCK = threading.RLock()


class _SkipInitialization(TorchFunctionMode):
    """Let the functions that draw initial weights return their tensor as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Create the tensors of the block on torch's meta device, which have a shape and no values.

    Initial weights are not drawn: on this device that has no effect, is most of the time in which a network is built,
    and imports torch's compiler, which takes seconds.
    """
    with torch.device("meta"), _SkipInitialization():
        yield


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; `auto` is an NVIDIA GPU if there is one, else the CPU.

    Under torchrun `cuda` is the GPU of the process's local rank. Other accelerators, such as Apple's GPU (`mps`), are
    used only if named.

    Raises:
        UserError: The device does not exist on this machine, or needs a newer torch.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = named_device(device, "auto")
    if chosen.type == "meta":
        raise UserError(f"device must be one that computes, got '{device}', which is not on this machine")
    if not supports_float64(chosen) and torch.__version__ < "2.13":
        # Older fused Adam kernels for Apple GPUs ignore `found_inf`, which skips bad steps.
        raise UserError(f"device: '{device}' needs torch 2.13 or newer, got torch {torch.__version__}")
    return chosen


def named_device(device: torch.device | str, *besides: str) -> torch.device:
    """Return a device by its name; `besides` are further names that the caller knows, for the message.

    Raises:
        UserError: It is not the name of a device, or of one that is not on this machine.
    """
    other = None if str(device) == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    counts = {"cpu": 1} | ({} if other is None else {other.type: torch.accelerator.device_count()})
    known = " or ".join(", ".join((*besides, *counts)).rsplit(", ", 1))
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device must be {known}, got '{device}', which is not a device") from error
    if chosen.type != "meta" and (chosen.index or 0) >= counts.get(chosen.type, 0):
        raise UserError(f"device must be {known}, got '{device}', which is not on this machine")
    return chosen


def device_name(device: torch.device) -> str:
    """Return the device's name for pages and logs: the model of an NVIDIA GPU, else its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def resolve_precision(precision: InferencePrecision, device: torch.device) -> Compute:
    """Resolve `auto`: bf16 if an NVIDIA GPU (Ampere or newer) or a CPU (AMX) multiplies bf16 matrices, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


def autocast(precision: Compute, device: torch.device) -> AbstractContextManager[None]:
    """Return a context for compute in `precision`: bf16 autocast, TF32 in float32 products on GPUs, or nothing.

    TF32 is a switch of the whole process: the block waits for other threads in `tf32` or in `without_tf32`.
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return _tf32() if precision == "tf32" and device.type == "cuda" else nullcontext()


@contextmanager
def _tf32() -> Iterator[None]:
    """Compute matrix products and convolutions of float32 in TF32 in the block."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with _TF32_SWITCH:
        former = products.fp32_precision, convolutions.fp32_precision
        # The older switch also sets the newer one; where the two disagree, compilation fails.
        if former[0] != "tf32":
            products.allow_tf32 = True
        convolutions.fp32_precision = "tf32"
        try:
            yield
        finally:
            convolutions.fp32_precision = former[1]
            if former[0] != "tf32":
                products.allow_tf32 = False
                products.fp32_precision = former[0]


def without_tf32() -> AbstractContextManager[object]:
    """Return a context in which no other thread computes in `tf32`, whose switch holds for all threads."""
    return _TF32_SWITCH


def fits_on(device: torch.device, size: int, share: float) -> bool:
    """Return whether `size` bytes are less than `share` of the free memory of a GPU; false on a CPU."""
    return device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] * share


def image_memory_format(precision: Compute, device: torch.device) -> torch.memory_format:
    """Return the memory format in which convolutions are fast: channels last on NVIDIA GPUs, and for bf16 on CPUs."""
    # For fp32 on CPUs contiguous is faster: 0.585 s against 0.631 s for a small tokenizer's step (2 cores, batch 16).
    last = device.type == "cuda" or (device.type == "cpu" and precision == "bf16")
    return torch.channels_last if last else torch.contiguous_format


def supports_float64(device: torch.device) -> bool:
    """Return whether a device supports float64, and the rest of the list at the top of this module."""
    return device.type in ("cpu", "cuda", "meta")


def float64_device(device: torch.device | str) -> torch.device:
    """Return `device`, or the CPU if the device lacks float64; also for products of 64-bit integers."""
    device = torch.device(device)
    return device if supports_float64(device) else torch.device("cpu")


def to_float64(tensor: Tensor) -> Tensor:
    """Convert to float64, on the CPU if the device lacks it."""
    return tensor.to(float64_device(tensor.device)).double()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy `tensor` to `device`, without waiting for an NVIDIA GPU."""
    # On Apple GPUs a non-blocking copy may read memory that has been freed (torch 2.13, pytorch issue 189690).
    return tensor.to(device, non_blocking=device.type == "cuda")


def device_lock(device: torch.device) -> AbstractContextManager[object]:
    """Return a lock for work from several threads, which may crash the process on Apple GPUs (pytorch issue 197805)."""
    return nullcontext() if supports_float64(device) else _DEVICE_LOCK
