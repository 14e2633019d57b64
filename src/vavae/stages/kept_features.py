"""Keep a teacher's features of all images of a run on disk, and in the device's memory where they fit."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vavae.device import fits_on
from vavae.teachers import FeatureCache, LatentEncoder, Teacher
from vavae.teachers.config import TeacherConfig
from vavae.training.parallel import World

# A data set up to this size is decoded once and kept in memory.
IN_MEMORY_BYTES = 2_000_000_000


def keep_features(
    recipe: TeacherConfig,
    teacher: Teacher | LatentEncoder,
    grid: tuple[int, int],
    images: tuple[str, int, Callable[[Tensor], Tensor]],
    folder: Path,
    device: torch.device,
    world: World,
    workers: int,
) -> FeatureCache:
    """Return the features of all images; the first process computes the missing ones.

    Args:
        recipe: Where to keep them.
        teacher: Computes them.
        grid: (h, w) that they are resampled to.
        images: The list of images: its fingerprint, their number, and a function from indices (n,) to images
            (n, 3, H, W) in [-1, 1].
        folder: The run folder.
        device: The run's device.
        world: The processes of the run.
        workers: Threads that load images.
    """
    name, count, load = images
    kept = Path(recipe.features_folder or folder / "teacher-features")
    open_cache = partial(FeatureCache, kept, teacher, grid, name, count)
    cache = open_cache()
    world.once(lambda: cache.fill(load, workers=workers))
    if not world.first:
        cache = open_cache()
    wanted = recipe.features_on_device
    # A quarter, where latents may take half: networks and activations need the rest.
    if wanted or (wanted is None and fits_on(device, cache.size_bytes, 1 / 4)):
        cache.to_device(device)
    return cache
