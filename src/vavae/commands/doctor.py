"""Report what this machine can run, and which packages are missing."""

import os
import platform
import shutil
from dataclasses import dataclass

import torch

from vavae import assets
from vavae.device import device_name, resolve_device, resolve_precision, supports_float64
from vavae.extras import EXTRAS, missing_module
from vavae.training.run_log import versions


@dataclass(frozen=True)
class Config:
    """Report on this machine.

    Attributes:
        device: The device to report on: auto, cpu, cuda, mps, …
    """

    device: str = "auto"


def findings(config: Config) -> list[tuple[str, str]]:
    """Return (subject, finding), in the order in which they are printed."""
    device, cache = resolve_device(config.device), assets.cache_folder()
    precision = resolve_precision("auto", device)
    if precision == "bf16":
        why = "the hardware multiplies bf16 matrices"
    else:
        why = "no hardware bf16 matrices" if supports_float64(device) else "bf16 is available with --precision bf16"
    free = shutil.disk_usage(cache.parent if cache.parent.exists() else "/").free
    cached = [state.name for state in assets.list_assets() if state.cached]
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions().items())),
        ("system", f"{platform.system()} {platform.release()}, {os.cpu_count()} CPU cores"),
        ("device", _device(device)),
        ("precision", f"auto means {precision}: {why}"),
        ("cache", f"{cache}, {free / 1e9:.0f} GB free; assets cached: {', '.join(cached) or 'none'}"),
    ]
    if shutil.which("npm") is None:
        rows.append(("npm", "missing: assets that come in npm packages (cifar10, resnet50) cannot be fetched"))
    for name, extra in EXTRAS.items():
        state = f"not installed (pip install 'vavae[{name}]')" if missing_module(name) else "installed"
        rows.append((f"extra {name}", f"{state}: {extra.purpose}"))
    return rows


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type != "cpu":
        return device_name(device)
    other = torch.accelerator.current_accelerator(check_available=True)
    found = "no GPU was found" if other is None else f"--device {other.type} takes the GPU"
    return f"CPU (threads: {torch.get_num_threads()}); {found}"


def run(config: Config) -> None:
    """Print the findings.

    Raises:
        UserError: The device does not exist.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for subject, found in findings(config):
        table.add_row(subject, Text(found))  # brackets are not markup
    Console().print(table)
