"""How fast a run is, beside what the device can do, and what a run will need before it begins."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Dense bf16 TFLOP/s of the data sheets, first match of the device's name. Variants with other clocks come first.
_PEAKS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("A6000", 155.0),
    ("RTX 5090", 209.0),
    ("RTX 4090", 165.0),
    ("RTX 3090", 71.0),
)


def peak_tflops(device: torch.device) -> float | None:
    """Dense bf16 matrix peak of a GPU in TFLOP/s, or None for a device that the table does not know."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS if part in name), None)


class _Counter(TorchDispatchMode):
    """Adds up what torch's own formulas say; its FlopCounterMode also follows modules, which autograd.grad forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        formula = flop_registry.get(operation._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(work: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products, convolutions and attention that `work` does.

    On the meta device, or with fake tensors, it costs little time and no memory.
    """
    with _Counter() as counter:
        work()
    return float(counter.flops)


@dataclass(frozen=True)
class Work:
    """What one image costs.

    Attributes:
        flops: Floating-point operations of one image in one training step, recomputation not counted; None unknown.
        tokens: Tokens per image; None where there are none.
    """

    flops: float | None = None
    tokens: int | None = None


def rates(images_per_second: float, work: Work, device: torch.device, processes: int) -> dict[str, float]:
    """Numbers for the timing log: images and tokens per second over all processes; the rest per device."""
    numbers = {"images_per_second": images_per_second}
    if work.tokens is not None:
        numbers["tokens_per_second"] = images_per_second * work.tokens
    if device.type == "cuda":
        numbers["memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    if work.flops is not None:
        numbers["tflops"] = images_per_second * work.flops / processes / 1e12
        peak = peak_tflops(device)
        if peak is not None:
            numbers["mfu"] = numbers["tflops"] / peak
    return numbers


def estimate(
    *, steps: int, batch_size: int, state_bytes: int, checkpoints: int, work: Work, device: torch.device, folder: Path
) -> str:
    """What a run will need, in one line, before its first step."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    parts = [
        f"{steps:,} steps of {batch_size:,} images",
        f"{_size(state_bytes)} of parameters, averages and optimizer",
        f"up to {_size((checkpoints + 1) * state_bytes)} of checkpoints ({_size(free)} free)",
    ]
    if work.flops is not None:
        parts.append(f"{work.flops / 1e9:,.3g} GFLOP per image")
        peak = peak_tflops(device)
        if peak is not None:
            hours = steps * batch_size * work.flops / (peak * 1e12) / 3600
            parts.append(f"{hours:,.1f} device hours at peak")
    return "; ".join(parts)


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
