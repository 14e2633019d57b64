"""Packages that only some commands and functions need, and the extras of vavae that install them."""

import sys
from importlib.util import find_spec
from typing import NamedTuple

from vavae.errors import UserError


class Extra(NamedTuple):
    """The modules that an extra brings, and their purpose."""

    modules: tuple[str, ...]
    purpose: str


EXTRAS = {
    "demo": Extra(("matplotlib", "jinja2", "sklearn"), "'vavae demo'"),
    "serve": Extra(("gradio",), "the web page of 'vavae serve'"),
    "report": Extra(("matplotlib", "jinja2"), "figures of 'vavae evaluate' and the page of 'vavae frontier'"),
    "metrics": Extra(("sklearn",), "the published uniformity of latents, which uses t-SNE"),
    "datasets": Extra(("datasets",), "Hugging Face data sets as image sources"),
    "webdataset": Extra(("aiohttp",), "webdataset shards at http addresses"),
    "diffusers": Extra(("diffusers", "accelerate"), "interchange with diffusers"),
    "wandb": Extra(("wandb", "accelerate"), "logging to Weights & Biases"),
    "fp8": Extra(("torchao",), "matrix products in fp8"),
}


def missing_module(extra: str) -> str | None:
    """Return the first module of an extra that is not installed, or None."""
    return next((m for m in EXTRAS[extra].modules if not (sys.modules.get(m) or find_spec(m))), None)


def require_extra(extra: str, subject: str) -> None:
    """Raise UserError if an extra is not installed; call it before the work begins.

    Args:
        extra: Name of the extra.
        subject: The command, option or function that needs it, for the message.
    """
    if module := missing_module(extra):
        raise UserError(f"{subject} needs {module}: pip install 'vavae[{extra}]'")
