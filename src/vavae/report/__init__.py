"""What a run has to show: image grids, PCA colour maps, figures, and the page of `vavae demo`."""

import importlib
from typing import Any

_HOMES = {
    "DemoReport": "contents",
    "Gallery": "contents",
    "Headline": "contents",
    "MetricRow": "contents",
    "RunReport": "contents",
    "StepTiming": "contents",
    "data_uri": "images",
    "encode_png": "images",
    "image_grid": "images",
    "image_uri": "images",
    "pca_maps": "pca",
    "render_page": "page",
    "write_page": "page",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
