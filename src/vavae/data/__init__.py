"""Images in, latents on disk, and the order in which training sees them."""

import importlib
from typing import Any

_HOMES = {
    "ArrayImages": "sources",
    "Cifar10Images": "sources",
    "DemoImages": "sources",
    "FolderImages": "sources",
    "ImageSource": "sources",
    "Split": "sources",
    "demo_pixels": "sources",
    "open_images": "sources",
    "read_rgb": "sources",
    "source_labels": "sources",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
