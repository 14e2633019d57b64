"""Random numbers as functions of (seed, stream, index).

Training, encoding and sampling give the same numbers however the work is split over batches, processes and devices,
and after any resume. The k-th number of image `index` in `stream` is a hash of (seed, stream, index, k): the finalizer
of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014), applied twice, once
over the key and once over the counter. Integer arithmetic is exact on CPUs and NVIDIA GPUs, and the normal transform
agrees up to the rounding of `log` and `cos`. Other devices get the CPU's numbers.
"""

import hashlib
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from vavae.device import float64_device

Indices = Tensor | Sequence[int]
Device = torch.device | str | None
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit integers, which wrap around in torch
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's `>>` on int64 keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def stream_key(seed: int, stream: str) -> int:
    """Return a signed 64-bit key of an integer `seed` and a `stream`, which may be any text."""
    digest = hashlib.blake2b(f"{operator.index(seed)}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _bits(seed: int, stream: str, indices: Tensor, count: int, device: torch.device | str) -> Tensor:
    """(B,) indices -> (B, count) int64 with all 64 bits random, on `float64_device(device)`."""
    indices = indices.to(device=float64_device(device), dtype=torch.int64)
    keys = _mix(indices * _GOLDEN + stream_key(seed, stream))
    counters = torch.arange(1, count + 1, device=indices.device, dtype=torch.int64)
    return _mix(keys[:, None] + counters[None, :] * _GOLDEN)


def _as_indices(indices: Indices, device: Device) -> tuple[Tensor, torch.device | str]:
    """Return indices as a tensor of integers, and the device of the numbers, by default the indices' own."""
    found = indices if isinstance(indices, Tensor) else torch.tensor(indices)
    if found.is_floating_point() and found.numel():  # an empty list is a tensor of floats
        raise TypeError(f"indices must be integers, got {found.dtype}")
    return found, found.device if device is None else device


def uniform(seed: int, stream: str, indices: Indices, shape: Sequence[int] = (), device: Device = None) -> Tensor:
    """Return uniform numbers in [0, 1), float32, of shape (len(indices), *shape); row i depends on indices[i] only."""
    indices, device = _as_indices(indices, device)
    bits = _bits(seed, stream, indices, math.prod(shape), device)
    numbers = _shift_right(bits, 40).to(torch.float32) * 2.0**-24
    return numbers.view(len(indices), *shape).to(device)


def normal(seed: int, stream: str, indices: Indices, shape: Sequence[int] = (), device: Device = None) -> Tensor:
    """Return standard normal numbers, float32, of shape (len(indices), *shape); row i depends on indices[i] only.

    Box-Muller: both numbers of a pair come from one 64-bit hash, 32 bits for the radius (so the tails reach
    6.6 standard deviations) and 32 for the angle.
    """
    indices, device = _as_indices(indices, device)
    count = math.prod(shape)
    bits = _bits(seed, stream, indices, (count + 1) // 2, device)
    high = _shift_right(bits, 32).to(torch.float32)
    low = (bits & 0xFFFFFFFF).to(torch.float32)
    radius = torch.sqrt(-2.0 * torch.log((high + 0.5) * 2.0**-32).clamp(max=0.0))
    angle = low * (2.0 * math.pi * 2.0**-32)
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)  # (B, pairs, 2)
    return pairs.flatten(1)[:, :count].reshape(len(indices), *shape).to(device)


def integers(seed: int, stream: str, indices: Indices, high: int, device: Device = None) -> Tensor:
    """Return integers in [0, high), int64, of shape (len(indices),); `high` at most 2**31."""
    indices, device = _as_indices(indices, device)
    bits = _shift_right(_bits(seed, stream, indices, 1, device)[:, 0], 32)
    return ((bits * high) >> 32).to(device)


def permutation(seed: int, stream: str, length: int) -> Tensor:
    """Return a permutation of range(length), int64, that depends on (seed, stream, length) only."""
    bits = _bits(seed, stream, torch.arange(length), 1, "cpu")[:, 0]
    return torch.argsort(bits, stable=True)
