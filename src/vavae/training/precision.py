"""Devices and compute precision, chosen explicitly."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from vavae.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]


def resolve_device(device: str) -> torch.device:
    """`auto` is a GPU where there is one, else the CPU. Under torchrun each process has the GPU of its local rank.

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
        raise UserError(f"device: '{device}' is not a device; use auto, cpu or cuda") from error
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"device: '{device}' is not supported; use auto, cpu or cuda")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: '{device}' is not on this machine; use auto or cpu")
    return chosen


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 where the hardware multiplies bf16 matrices (Ampere GPUs or newer, AMX CPUs), else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "fp32"


def autocast(precision: Literal["fp32", "bf16"], device: torch.device) -> AbstractContextManager[None]:
    """Autocast to bf16 compute with fp32 parameters, or nothing."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def fits_on(device: torch.device, size: int, share: float) -> bool:
    """Whether `size` bytes take less than `share` of the memory that is free on a GPU; false on a CPU."""
    return device.type == "cuda" and size < torch.cuda.mem_get_info(device)[0] * share


def image_memory_format(precision: Literal["fp32", "bf16"], device: torch.device) -> torch.memory_format:
    """The order of numbers in which convolutions are fast: channels last on GPUs and for bf16.

    In fp32 on CPUs the plain order is: a small tokenizer's step took 0.585 s so, and 0.631 s with channels last
    (2 cores, batch of 16, medians of 8 in turns).
    """
    return torch.contiguous_format if device.type == "cpu" and precision == "fp32" else torch.channels_last
