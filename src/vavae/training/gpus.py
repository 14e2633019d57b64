"""The peak and the memory of GPUs, from their data sheets."""

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch


class Gpu(NamedTuple):
    """One model of GPU."""

    tflops: float  # dense bf16 products with float32 sums, in TFLOP/s
    memory_gb: float


# Values of NVIDIA's data sheets; those that state the rate of sparse products only are halved. In a device's name the
# first match counts, so variants come first.
GPUS = {
    "H100 PCIe": Gpu(756.0, 80),  # H100 data sheet: 1,513 sparse
    "H100 NVL": Gpu(835.0, 94),  # H100 data sheet: 1,671 sparse
    "GB200": Gpu(2500.0, 186),  # GB200 NVL72 data sheet: 5,000 sparse per GPU
    "B200": Gpu(2250.0, 180),  # DGX B200 data sheet: 4,500 sparse per GPU
    "GH200": Gpu(989.0, 96),  # GH200 data sheet: 1,979 sparse
    "H200": Gpu(989.0, 141),  # H200 data sheet: 1,979 sparse
    "H100": Gpu(989.0, 80),  # H100 data sheet, SXM: 1,979 sparse
    "H800": Gpu(989.0, 80),  # as H100 SXM, with slower links
    "H20": Gpu(148.0, 96),  # H20 data sheet
    "A100": Gpu(312.0, 80),  # A100 data sheet
    "A800": Gpu(312.0, 80),  # as A100, with slower links
    "L40S": Gpu(362.0, 48),  # L40S data sheet
    "L4": Gpu(121.0, 24),  # L4 data sheet: 242 sparse
    "A10G": Gpu(70.0, 24),  # A10G data sheet
    "A10": Gpu(125.0, 24),  # A10 data sheet
    "A6000": Gpu(155.0, 48),  # RTX A6000 data sheet: 309.7 sparse
    "RTX 5090": Gpu(209.0, 32),  # RTX Blackwell architecture paper, with float32 sums
    "RTX 4090": Gpu(165.0, 24),  # Ada architecture paper, with float32 sums
    "RTX 3090": Gpu(71.0, 24),  # Ampere GA102 architecture paper, with float32 sums
}
if TYPE_CHECKING:
    GpuName = str
else:
    GpuName = Literal[tuple(GPUS)]


def peak_tflops(device: torch.device) -> float | None:
    """Return the dense bf16 matrix peak of a GPU in TFLOP/s, or None if the table lacks the device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((gpu.tflops for part, gpu in GPUS.items() if part in name), None)
