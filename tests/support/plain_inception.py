"""The Inception of pytorch-fid, written independently, with the names of its weights file."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vavae import rng


def _block_35(channels: int, pooled: int) -> dict[str, tuple[int, ...]]:
    return {
        "branch1x1": (64, channels, 1, 1),
        "branch5x5_1": (48, channels, 1, 1),
        "branch5x5_2": (64, 48, 5, 5),
        "branch3x3dbl_1": (64, channels, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
        "branch_pool": (pooled, channels, 1, 1),
    }


def _block_17(width: int) -> dict[str, tuple[int, ...]]:
    row, column = (1, 7), (7, 1)
    return {
        "branch1x1": (192, 768, 1, 1),
        "branch7x7_1": (width, 768, 1, 1),
        "branch7x7_2": (width, width, *row),
        "branch7x7_3": (192, width, *column),
        "branch7x7dbl_1": (width, 768, 1, 1),
        "branch7x7dbl_2": (width, width, *column),
        "branch7x7dbl_3": (width, width, *row),
        "branch7x7dbl_4": (width, width, *column),
        "branch7x7dbl_5": (192, width, *row),
        "branch_pool": (192, 768, 1, 1),
    }


def _block_8(channels: int) -> dict[str, tuple[int, ...]]:
    return {
        "branch1x1": (320, channels, 1, 1),
        "branch3x3_1": (384, channels, 1, 1),
        "branch3x3_2a": (384, 384, 1, 3),
        "branch3x3_2b": (384, 384, 3, 1),
        "branch3x3dbl_1": (448, channels, 1, 1),
        "branch3x3dbl_2": (384, 448, 3, 3),
        "branch3x3dbl_3a": (384, 384, 1, 3),
        "branch3x3dbl_3b": (384, 384, 3, 1),
        "branch_pool": (192, channels, 1, 1),
    }


_BLOCKS = {
    "Mixed_5b": _block_35(192, 32),
    "Mixed_5c": _block_35(256, 64),
    "Mixed_5d": _block_35(288, 64),
    "Mixed_6a": {
        "branch3x3": (384, 288, 3, 3),
        "branch3x3dbl_1": (64, 288, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
    },
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": {
        "branch3x3_1": (192, 768, 1, 1),
        "branch3x3_2": (320, 192, 3, 3),
        "branch7x7x3_1": (192, 768, 1, 1),
        "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1),
        "branch7x7x3_4": (192, 192, 3, 3),
    },
    "Mixed_7b": _block_8(1280),
    "Mixed_7c": _block_8(2048),
}
_STEM = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
}


def published_state() -> dict[str, Tensor]:
    """Return a state dict with the names and shapes of `pt_inception-2015-12-05-6726825d.pth`, filled by a rule."""
    shapes = dict(_STEM)
    for block, branches in _BLOCKS.items():
        shapes |= {f"{block}.{branch}": shape for branch, shape in branches.items()}
    state = {}
    for name, shape in shapes.items():
        n = rng.normal(0, name, [0], shape)[0]
        state[f"{name}.conv.weight"] = n * (2 / n[0].numel()) ** 0.5
        for part, base, scale in (("weight", 1.0, 0.1), ("bias", 0.0, 0.1), ("running_mean", 0.0, 0.1)):
            state[f"{name}.bn.{part}"] = base + scale * rng.normal(0, f"{name}.{part}", [0], shape[:1])[0]
        state[f"{name}.bn.running_var"] = 1 + 0.2 * rng.normal(0, f"{name}.var", [0], shape[:1])[0].abs()
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    state["fc.weight"] = rng.normal(0, "fc", [0], (1008, 2048))[0] * 0.02
    state["fc.bias"] = rng.normal(0, "fc bias", [0], (1008,))[0]
    return state


def plain_forward(state: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Network inputs (B, 3, 299, 299) -> pool, spatial grid (B, 7, 17, 17) and logits without bias."""

    def conv(x: Tensor, name: str, stride: int = 1, pad: bool = True) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        padding = (weight.shape[2] // 2, weight.shape[3] // 2) if pad else 0
        x = F.conv2d(x, weight, stride=stride, padding=padding)
        statistics = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *statistics, eps=0.001))

    def average(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def chain(x: Tensor, prefix: str, count: int) -> Tensor:
        for i in range(1, count + 1):
            x = conv(x, f"{prefix}_{i}")
        return x

    x = conv(x, "Conv2d_1a_3x3", 2, False)
    x = conv(conv(x, "Conv2d_2a_3x3", 1, False), "Conv2d_2b_3x3")
    x = conv(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1")
    x = F.max_pool2d(conv(x, "Conv2d_4a_3x3", 1, False), 3, 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        parts = conv(x, f"{b}.branch1x1"), chain(x, f"{b}.branch5x5", 2), chain(x, f"{b}.branch3x3dbl", 3)
        x = torch.cat((*parts, conv(average(x), f"{b}.branch_pool")), 1)
    b = "Mixed_6a"
    double = conv(chain(x, f"{b}.branch3x3dbl", 2), f"{b}.branch3x3dbl_3", 2, False)
    x = torch.cat((conv(x, f"{b}.branch3x3", 2, False), double, F.max_pool2d(x, 3, 2)), 1)
    found = {}
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        first = conv(x, f"{b}.branch1x1")
        if b == "Mixed_6d":
            found["spatial"] = first[:, :7]
        parts = first, chain(x, f"{b}.branch7x7", 3), chain(x, f"{b}.branch7x7dbl", 5)
        x = torch.cat((*parts, conv(average(x), f"{b}.branch_pool")), 1)
    b = "Mixed_7a"
    three = conv(conv(x, f"{b}.branch3x3_1"), f"{b}.branch3x3_2", 2, False)
    seven = conv(chain(x, f"{b}.branch7x7x3", 3), f"{b}.branch7x7x3_4", 2, False)
    x = torch.cat((three, seven, F.max_pool2d(x, 3, 2)), 1)
    for b in ("Mixed_7b", "Mixed_7c"):
        one = conv(x, f"{b}.branch1x1")
        three, double = conv(x, f"{b}.branch3x3_1"), chain(x, f"{b}.branch3x3dbl", 2)
        pooled = average(x) if b == "Mixed_7b" else F.max_pool2d(x, 3, 1, 1)
        x = torch.cat(
            (
                one,
                conv(three, f"{b}.branch3x3_2a"),
                conv(three, f"{b}.branch3x3_2b"),
                conv(double, f"{b}.branch3x3dbl_3a"),
                conv(double, f"{b}.branch3x3dbl_3b"),
                conv(pooled, f"{b}.branch_pool"),
            ),
            1,
        )
    found["pool"] = x.mean((2, 3))
    found["logits"] = found["pool"] @ state["fc.weight"].T
    return found
