"""Speed of a run relative to the peak of its device, and an estimate of its cost before it starts."""

import resource
import shutil
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from vavae.device import device_name, resolve_precision
from vavae.training.config import TrainingConfig
from vavae.training.gpus import peak_tflops
from vavae.training.signals import signals_later

# Share of the peak that a training step of large matrix products reaches in practice.
USUAL_MFU = 0.4


class _Counter(TorchDispatchMode):
    """Add up torch's FLOP formulas. Its own FlopCounterMode also tracks modules, which autograd.grad forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = flop_registry.get(operation._overloadpacket)
        if formula is None and operation is not torch.ops.prim.device.default:
            with self:  # in inference mode, linear layers and convolutions are not decomposed yet
                parts = operation.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        result = operation(*args, **(kwargs or {}))
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(work: Callable[[], object]) -> float:
    """Return the floating-point operations of the matrix products, convolutions and attention in `work`.

    On the meta device, or with fake tensors, this takes little time and no memory.
    """
    with signals_later(), _Counter() as counter:
        work()
    return float(counter.flops)


class _Allocations(TorchDispatchMode):
    """Track the memory of the tensors that operations create, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):  # a view shares its argument's storage
            self._known.setdefault(storage, None)
        result = operation(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self._known:
                self._known[storage] = None
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes()).atexit = False
        return result

    def _add(self, count: int) -> None:
        self.live += count
        self.peak = max(self.peak, self.live)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def count_peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak memory of the tensors created in `work`, in bytes, without the workspaces of kernels.

    With fake tensors this takes little time and no memory.
    """
    with signals_later(), _Allocations() as found:
        work()
    return found.peak


@dataclass(frozen=True)
class StepWork:
    """Cost of one image."""

    # Floating-point operations of one image in one training step, without recomputation; None if unknown.
    flops: float | None = None
    tokens: int | None = None  # tokens per image; None if the model has no tokens


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory in use so far: of the device on an NVIDIA GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measured_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the device's TFLOP/s on one large matrix product, for devices that `peak_tflops` does not know."""
    side = {"cpu": 1024, "cuda": 8192}.get(device.type, 2048)
    a = torch.ones(side, side, dtype=dtype, device=device)
    fastest = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * side**3 / fastest / 1e12


def rates(images_per_second: float, work: StepWork, device: torch.device, processes: int) -> dict[str, float]:
    """Return the numbers of the timing log: images and tokens per second over all processes; the rest per device."""
    numbers = {"images_per_second": images_per_second}
    if work.tokens is not None:
        numbers["tokens_per_second"] = images_per_second * work.tokens
    numbers["memory_gb"] = peak_memory_gb(device)
    if work.flops is not None:
        numbers["tflops"] = images_per_second * work.flops / processes / 1e12
        peak = peak_tflops(device)
        if peak is not None:
            numbers["mfu"] = numbers["tflops"] / peak
    return numbers


def training_seconds(config: TrainingConfig, flops: float, tflops: float, processes: int) -> float:
    """Return the time of a run with `flops` operations per image on devices that each do `tflops` TFLOP/s."""
    return config.steps * config.batch_size * flops / (tflops * 1e12) / processes


def estimate(
    config: TrainingConfig,
    *,
    state_bytes: int,
    step_bytes: int | None,
    at_once: int,
    work: StepWork,
    device: torch.device,
    processes: int,
    folder: Path,
) -> str:
    """Return one line on what a run needs, before its first step: steps, memory, disk, time.

    The memory of a step (`step_bytes`, for `at_once` images) is an estimate, in addition to the memory of the state.
    The time counts matrix operations only, at the share of the device's peak that such training usually reaches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    parts = [
        f"{config.steps:,} steps of {config.batch_size:,} images",
        f"{format_bytes(state_bytes)} of parameters, averages and optimizer",
        f"up to {format_bytes((config.keep_checkpoints + 1) * state_bytes)} of checkpoints ({format_bytes(free)} free)",
    ]
    if step_bytes is not None:
        parts.insert(2, f"an estimated {format_bytes(step_bytes)} more for a step of {at_once:,} images at once")
    if work.flops is not None:
        half = resolve_precision(config.precision, device) == "bf16"
        peak = peak_tflops(device) or measured_tflops(device, torch.bfloat16 if half else torch.float32)
        seconds = training_seconds(config, work.flops, USUAL_MFU * peak, processes)
        parts.append(f"{work.flops / 1e9:,.3g} GFLOP per image")
        where = f"{processes} x {device_name(device)} at {USUAL_MFU:.0%} of {peak:,.3g} TFLOP/s"
        parts.append(f"{format_seconds(seconds)} on {where}")
    return "; ".join(parts)


def format_seconds(seconds: float) -> str:
    """Format a duration to two digits."""
    if seconds < 60:
        return "less than a minute"
    count, unit = (seconds / 3600, "hours") if seconds >= 3600 else (seconds / 60, "minutes")
    return f"about {float(f'{count:.2g}'):,g} {unit}"


def format_bytes(count: float) -> str:
    """Format a number of bytes in MB or GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
