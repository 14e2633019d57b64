"""Read MobileSAM's image encoder from its PyTorch checkpoint."""

import pickle
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vavae.errors import UserError

_PREFIX = "image_encoder."
_BATCHNORM_EPS = 1e-5
_RENAMES = (
    (r"^patch_embed\.seq\.", "stem."),
    (r"^layers\.", "stages."),
    (r"\.downsample\.conv(\d)\.", r".merge.conv\1."),
    (r"\.local_conv\.", ".local."),
    (r"\.attn\.attention_biases$", ".attention.offset_bias"),
    (r"\.attn\.", ".attention."),
)


def convert_mobile_sam(files: list[Path], folder: Path) -> None:
    """Write the image encoder under the names of `vavae.teachers.tiny_vit.TinyViT`, and a `config.json` with its name.

    Each convolution absorbs the BatchNorm after it, since the encoder is not trained. The prompt encoder, the mask
    decoder and the unused classification head are left out.
    """
    try:
        checkpoint = torch.load(files[0], map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{files[0].name} is not a readable checkpoint: {error}") from error
    encoder = {name.removeprefix(_PREFIX): v for name, v in checkpoint.items() if name.startswith(_PREFIX)}
    tensors: dict[str, Tensor] = {}
    for name, value in encoder.items():
        if name.startswith(("head.", "norm_head.")) or ".bn." in name:
            continue
        target = name
        for pattern, replacement in _RENAMES:
            target = re.sub(pattern, replacement, target)
        if name.endswith(".c.weight"):
            stem = name.removesuffix("c.weight")
            weight, bias = _fold(value, {key: encoder[f"{stem}bn.{key}"] for key in _NORM_KEYS})
            tensors[target.replace(".c.weight", ".weight")] = weight
            tensors[target.replace(".c.weight", ".bias")] = bias
        else:
            tensors[target] = value.float().contiguous()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "mobile_sam"}\n', encoding="utf-8")


_NORM_KEYS = ("weight", "bias", "running_mean", "running_var")


def _fold(weight: Tensor, norm: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Fold the BatchNorm after a convolution without bias into a convolution with bias."""
    gain = norm["weight"].double() / (norm["running_var"].double() + _BATCHNORM_EPS).sqrt()
    bias = norm["bias"].double() - norm["running_mean"].double() * gain
    return (weight.double() * gain[:, None, None, None]).float(), bias.float()
