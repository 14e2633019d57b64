"""Image sources, transforms, the order of images in training, and latents on disk."""

from vavae.data.folders import FolderImages
from vavae.data.latent_writer import LatentWriter, Shard, write_published_layout
from vavae.data.latents import LatentDataset, LatentSettings
from vavae.data.loader import IndexStream, load_batches, loaded_ahead
from vavae.data.open import has_part, hub_dataset, open_images
from vavae.data.pixels import to_tensor, to_uint8
from vavae.data.readable import ReadOptions, read_rgb
from vavae.data.sources import Cifar10Images, DemoImages, ImageSource, demo_pixels
from vavae.data.transforms import (
    CroppedImages,
    InMemoryImages,
    center_crop,
    flip_horizontally,
    load_images,
    load_pixels,
)

__all__ = [
    "Cifar10Images",
    "CroppedImages",
    "DemoImages",
    "FolderImages",
    "ImageSource",
    "InMemoryImages",
    "IndexStream",
    "LatentDataset",
    "LatentSettings",
    "LatentWriter",
    "ReadOptions",
    "Shard",
    "center_crop",
    "demo_pixels",
    "flip_horizontally",
    "has_part",
    "hub_dataset",
    "load_batches",
    "load_images",
    "load_pixels",
    "loaded_ahead",
    "open_images",
    "read_rgb",
    "to_tensor",
    "to_uint8",
    "write_published_layout",
]
