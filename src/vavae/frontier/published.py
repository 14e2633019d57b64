"""The numbers of arXiv 2501.01423, shown next to ours in separate columns.

All are on ImageNet at 256 px with an f16 tokenizer; teachers are ViT-L. rFID, PSNR, LPIPS and SSIM over the 50,000
validation images; gFID of LightningDiT without guidance, 10,000 samples in Tables 2, 4 and 5, 50,000 in Table 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vavae.frontier.config import LOSS_NAMES, ROW_NAMES, ROWS

DIMENSIONS = (16, 32, 64)
SIZES = ("B", "L", "XL")


@dataclass(frozen=True)
class Published:
    """Numbers of one row."""

    values: Mapping[str, float]  # by metric: rfid, psnr, lpips, ssim, cv, gini, entropy, gfid, or gfid/SIZE
    source: str  # Table and row of the paper


def _row(metrics: str, numbers: Sequence[float], source: str) -> Published:
    return Published(dict(zip(metrics.split(), numbers, strict=True)), source)


# By dimension and teacher.
TABLE2: Mapping[tuple[int, str], Published] = {
    (d, teacher): _row("rfid psnr lpips ssim gfid/B gfid/L gfid/XL", numbers, f"Table 2, f16 d{d}, {loss}")
    for d, teacher, loss, *numbers in (
        (16, "none", "LDM", 0.49, 26.10, 0.132, 0.72, 16.24, 9.49, 8.28),
        (16, "mae", "VF MAE", 0.51, 26.01, 0.137, 0.71, 16.86, 10.93, 9.19),
        (16, "dinov2", "VF DINOv2", 0.55, 25.29, 0.147, 0.69, 15.79, 10.02, 8.71),
        (32, "none", "LDM", 0.26, 28.59, 0.089, 0.80, 22.62, 12.86, 10.92),
        (32, "mae", "VF MAE", 0.28, 28.33, 0.091, 0.80, 19.89, 11.51, 9.92),
        (32, "dinov2", "VF DINOv2", 0.28, 27.96, 0.096, 0.79, 15.82, 9.82, 8.22),
        (64, "none", "LDM", 0.17, 31.03, 0.055, 0.88, 36.83, 20.73, 17.24),
        (64, "mae", "VF MAE", 0.15, 31.03, 0.054, 0.87, 23.58, 14.40, 11.69),
        (64, "dinov2", "VF DINOv2", 0.14, 30.71, 0.055, 0.87, 24.00, 14.95, 11.98),
    )
}

# By teacher.
TABLE4: Mapping[str, Published] = {
    teacher: _row("gfid", [number], f"Table 4, {name}, f16 d32, B")
    for teacher, name, number in (
        ("none", "naive", 22.62),
        ("dinov2", "DINOv2", 15.82),
        ("mae", "MAE", 19.89),
        ("sam", "SAM", 19.80),
        ("clip", "CLIP", 18.93),
    )
}

# By parts of the loss.
TABLE5: Mapping[str, Published] = {
    loss: _row("gfid", [number], f"Table 5, {LOSS_NAMES[loss]}, f16 d32, B")
    for loss, number in (("full", 15.82), ("no-mcos", 21.87), ("no-mdms", 17.74), ("no-margin", 17.77))
} | {"none": TABLE4["none"]}

# By dimension and teacher.
TABLE6: Mapping[tuple[int, str], Published] = {
    (d, teacher): _row("cv gini entropy", numbers, f"Table 6, f16 d{d}, {name}")
    for d, teacher, name, *numbers in (
        (32, "none", "naive", 0.263, 0.145, 0.995),
        (32, "mae", "MAE", 0.193, 0.101, 0.997),
        (32, "dinov2", "DINOv2", 0.178, 0.096, 0.998),
        (64, "none", "naive", 0.296, 0.166, 0.994),
        (64, "mae", "MAE", 0.256, 0.143, 0.995),
        (64, "dinov2", "DINOv2", 0.251, 0.141, 0.996),
    )
}

# By row of the ladder.
TABLE1: Mapping[str, Published] = {
    row: _row("gfid", [number], f"Table 1, {ROW_NAMES[row]}, XL, 80 epochs")
    for row, number in zip(ROWS, (19.50, 17.20, 16.59, 16.61, 13.99, 12.52, 10.10, 9.25, 7.13, 4.29), strict=True)
}

SPEED_UP = "2.5 to 2.8 times (Figure 4, f16 d64 and d32)"

_FAMILIES = (("dinov2", "dinov2"), ("mae", "mae"), ("sam", "sam"), ("mobile-sam", "sam"), ("clip", "clip"))


def family(teacher: str) -> str:
    """Return the paper's teacher that corresponds to ours: `none`, dinov2, mae, sam or clip; "" if there is none."""
    if teacher == "none":
        return "none"
    return next((kind for prefix, kind in _FAMILIES if teacher.startswith(prefix)), "")


def counterpart(ours: int, all_ours: Sequence[int]) -> int | None:
    """Return the paper's dimension that corresponds to ours, or None.

    A dimension that the paper has corresponds to itself. The others correspond by rank, among two or three dimensions.
    If two of ours would correspond to the same dimension, all go by rank.
    """
    ranks = sorted(set(all_ours))
    by_rank = dict(zip(ranks, {3: DIMENSIONS, 2: (DIMENSIONS[0], DIMENSIONS[-1])}.get(len(ranks), ()), strict=False))
    found = {d: d if d in DIMENSIONS else by_rank.get(d) for d in ranks}
    matched = [d for d in found.values() if d is not None]
    return (found if len(set(matched)) == len(matched) else by_rank).get(ours)


def size_counterpart(ours: str, all_ours: Sequence[str]) -> str | None:
    """Return the paper's size of the same name, or else of the same rank."""
    names = [size.partition("/")[0] for size in all_ours]
    name = ours.partition("/")[0]
    if all(n in SIZES for n in names):
        return name
    place = list(all_ours).index(ours)
    return SIZES[place] if place < len(SIZES) else None
