"""The numbers of arXiv 2501.01423, shown next to ours in separate columns.

All are on ImageNet at 256 px with an f16 tokenizer; teachers are ViT-L. rFID, PSNR, LPIPS and SSIM over the 50,000
validation images; gFID of LightningDiT without guidance, 10,000 samples in Tables 2, 4 and 5, 50,000 in Table 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

DIMENSIONS = (16, 32, 64)
SIZES = ("B", "L", "XL")


@dataclass(frozen=True)
class Published:
    """Numbers of one row.

    Attributes:
        values: By metric: rfid, psnr, lpips, ssim, cv, gini, entropy, gfid, or gfid/SIZE.
        source: Table and row of the paper.
    """

    values: Mapping[str, float]
    source: str


def _row(source: str, **values: float) -> Published:
    return Published(MappingProxyType({name.replace("__", "/"): value for name, value in values.items()}), source)


def _table2(d: int, loss: str, *numbers: float) -> Published:
    names = ("rfid", "psnr", "lpips", "ssim", "gfid__B", "gfid__L", "gfid__XL")
    return _row(f"Table 2, f16 d{d}, {loss}", **dict(zip(names, numbers, strict=True)))


TABLE2: Mapping[tuple[int, str], Published] = MappingProxyType(
    {
        (16, "none"): _table2(16, "LDM", 0.49, 26.10, 0.132, 0.72, 16.24, 9.49, 8.28),
        (16, "mae"): _table2(16, "VF MAE", 0.51, 26.01, 0.137, 0.71, 16.86, 10.93, 9.19),
        (16, "dinov2"): _table2(16, "VF DINOv2", 0.55, 25.29, 0.147, 0.69, 15.79, 10.02, 8.71),
        (32, "none"): _table2(32, "LDM", 0.26, 28.59, 0.089, 0.80, 22.62, 12.86, 10.92),
        (32, "mae"): _table2(32, "VF MAE", 0.28, 28.33, 0.091, 0.80, 19.89, 11.51, 9.92),
        (32, "dinov2"): _table2(32, "VF DINOv2", 0.28, 27.96, 0.096, 0.79, 15.82, 9.82, 8.22),
        (64, "none"): _table2(64, "LDM", 0.17, 31.03, 0.055, 0.88, 36.83, 20.73, 17.24),
        (64, "mae"): _table2(64, "VF MAE", 0.15, 31.03, 0.054, 0.87, 23.58, 14.40, 11.69),
        (64, "dinov2"): _table2(64, "VF DINOv2", 0.14, 30.71, 0.055, 0.87, 24.00, 14.95, 11.98),
    }
)

TABLE4: Mapping[str, Published] = MappingProxyType(
    {
        "none": _row("Table 4, naive, f16 d32, B", gfid=22.62),
        "dinov2": _row("Table 4, DINOv2, f16 d32, B", gfid=15.82),
        "mae": _row("Table 4, MAE, f16 d32, B", gfid=19.89),
        "sam": _row("Table 4, SAM, f16 d32, B", gfid=19.80),
        "clip": _row("Table 4, CLIP, f16 d32, B", gfid=18.93),
    }
)

TABLE5: Mapping[str, Published] = MappingProxyType(
    {
        "none": _row("Table 4, naive, f16 d32, B", gfid=22.62),
        "full": _row("Table 5, full loss, f16 d32, B", gfid=15.82),
        "no-mcos": _row("Table 5, without mcos, f16 d32, B", gfid=21.87),
        "no-mdms": _row("Table 5, without mdms, f16 d32, B", gfid=17.74),
        "no-margin": _row("Table 5, without margins, f16 d32, B", gfid=17.77),
    }
)

TABLE6: Mapping[tuple[int, str], Published] = MappingProxyType(
    {
        (32, "none"): _row("Table 6, f16 d32, naive", cv=0.263, gini=0.145, entropy=0.995),
        (32, "mae"): _row("Table 6, f16 d32, MAE", cv=0.193, gini=0.101, entropy=0.997),
        (32, "dinov2"): _row("Table 6, f16 d32, DINOv2", cv=0.178, gini=0.096, entropy=0.998),
        (64, "none"): _row("Table 6, f16 d64, naive", cv=0.296, gini=0.166, entropy=0.994),
        (64, "mae"): _row("Table 6, f16 d64, MAE", cv=0.256, gini=0.143, entropy=0.995),
        (64, "dinov2"): _row("Table 6, f16 d64, DINOv2", cv=0.251, gini=0.141, entropy=0.996),
    }
)

TABLE1: Mapping[str, Published] = MappingProxyType(
    {
        row: _row(f"Table 1, {words}, XL, 80 epochs", gfid=value)
        for row, words, value in (
            ("dit", "DiT", 19.50),
            ("rectified-flow", "+ rectified flow", 17.20),
            ("batch", "+ batch × 4, learning rate × 2", 16.59),
            ("beta2", "+ AdamW beta2 0.95", 16.61),
            ("lognorm", "+ logit-normal times", 13.99),
            ("direction", "+ velocity direction loss", 12.52),
            ("swiglu", "+ SwiGLU", 10.10),
            ("rmsnorm", "+ RMSNorm", 9.25),
            ("rope", "+ RoPE", 7.13),
            ("aligned", "+ patch 1 and VA-VAE", 4.29),
        )
    }
)

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
