"""Images in, latents on disk, and the order in which training sees them."""

import importlib
from typing import Any

_HOMES = {
    "LatentDataset": "latents",
    "LatentSettings": "latents",
    "ResidentLatents": "latents",
    "LatentWriter": "latent_writer",
    "Shard": "latent_writer",
    "write_published_layout": "latent_writer",
    "BatchLoader": "stream",
    "Batch": "stream",
    "IndexStream": "stream",
    "InMemoryImages": "transforms",
    "center_crop": "transforms",
    "published_random_crop": "transforms",
    "to_tensor": "transforms",
    "to_uint8": "transforms",
    "flip_horizontally": "transforms",
    "load_pixels": "transforms",
    "load_images": "transforms",
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
