"""Golden numbers of RAE, REPA, iREPA and REPA-E: their weights follow a rule, by the names in a file's metadata."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from rules import sine
from safetensors import safe_open
from torch import Tensor, nn

from vavae.checkpoints.published_repa import from_repa
from vavae.tokenizer import ViTDecoder
from vavae.transformer import DiTDH, LightningDiT

GOLDEN = Path(__file__).parents[1] / "golden"
STATE_DICTS = json.loads((GOLDEN / "state_dicts_next.json").read_text())
DITDH_NAMES = {
    "input_size": "latent_size",
    "in_channels": "latent_channels",
    "hidden_size": "widths",
    "depth": "depths",
}
DITDH_NAMES |= {"num_heads": "heads", "use_swiglu": "swiglu", "use_rope": "rope", "use_rmsnorm": "rmsnorm"}
DITDH_NAMES |= {"use_qknorm": "qk_norm", "class_dropout_prob": "label_dropout"}
FIXED = {"mlp_ratio": 4.0, "wo_shift": False, "use_pos_embed": True}


def load(name: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return tensors, configuration, and the weights of each group of the file `name`."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    groups = {
        group: {name: weight(k, shape, kind) for k, (name, shape, kind) in enumerate(listed)}
        for group, listed in json.loads(metadata["parameters"]).items()
    }
    return tensors, json.loads(metadata["config"]), groups


def weight(k: int, shape: list[int], kind: str | float) -> Tensor:
    """Return parameter number k of its group: a sine of the index, scaled by its kind."""
    s = sine(k, shape)
    if kind == "matrix":
        s = s * math.sqrt(2 / math.prod(shape[1:]))
    elif kind == "gain":
        s = 1 + 0.1 * s
    else:
        s = s * (0.05 if kind == "small" else float(kind))
    return s.float()


def fill(module: nn.Module, weights: dict[str, Tensor], fixed: tuple[str, ...] = ()) -> None:
    """Load weights; all parameters must be among them but those named `fixed`."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {name for name, _ in module.named_parameters()} & set(missing) == set(fixed)


def published_shapes(model: str) -> dict[str, list[int]]:
    """Return names and shapes of a published model's state dict, repeated blocks included."""
    expected = STATE_DICTS[model]
    shapes = {}
    for key, shape in expected["state_dict"].items():
        prefixes = [prefix for prefix in expected.get("repeats", {}) if key.startswith(f"{prefix}.")]
        if not prefixes:
            shapes[key] = shape
            continue
        stem, first = prefixes[0].rsplit(".", 1)
        last = int(expected["repeats"][prefixes[0]].split(" to ")[1].rsplit(".", 1)[1])
        for number in range(int(first), last + 1):
            shapes[f"{stem}.{number}{key.removeprefix(prefixes[0])}"] = shape
    return shapes


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Compare by the relative 2-norm, as the tolerances of the golden numbers are given."""
    assert actual.shape == expected.shape
    distance = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert distance <= relative, f"relative distance {distance:.2e} exceeds {relative:.0e}"


def ditdh(published: dict[str, Any], weights: dict[str, Tensor] | None = None) -> DiTDH:
    """Return the network of published constructor arguments, with weights if given."""
    assert all(published[name] == value for name, value in FIXED.items())
    model = DiTDH(**{DITDH_NAMES.get(n, n): value for n, value in published.items() if n not in FIXED}).eval()
    if weights is not None:
        fill(model, weights, ("pos_embed",))
    return model


SIT_NAMES = {
    "input_size": "latent_size",
    "patch_size": "patch_size",
    "in_channels": "latent_channels",
    "hidden_size": "width",
    "depth": "depth",
    "num_heads": "heads",
    "num_classes": "num_classes",
}


def new_sit(published: dict[str, Any]) -> LightningDiT:
    """Return the SiT of published constructor arguments: a LightningDiT without its switches."""
    shape = {SIT_NAMES[name]: value for name, value in published.items() if name in SIT_NAMES}
    return LightningDiT(**shape, swiglu=False, rope=False, rmsnorm=False).eval()


def sit(name: str) -> LightningDiT:
    """Return the network of the file `name` of REPA or iREPA, in vavae's time and sign."""
    _, config, weights = load(name)
    own = {key: value for key, value in weights["model"].items() if not key.startswith("projectors.")}
    model = new_sit(config["model"])
    missing, unexpected = model.load_state_dict(from_repa(own)[0], strict=False)
    assert set(missing) == {"pos_embed"} and not unexpected
    return model


def vit_decoder(config: dict[str, Any], weights: dict[str, Tensor]) -> ViTDecoder:
    """Return the decoder of a golden file's configuration, with its weights."""
    shape = config["decoder"]
    decoder = ViTDecoder(
        shape["hidden_size"],
        config["image_size"] // shape["patch_size"],
        shape["patch_size"],
        shape["decoder_hidden_size"],
        shape["decoder_num_hidden_layers"],
        shape["decoder_num_attention_heads"],
        shape["decoder_intermediate_size"],
    )
    fill(decoder, weights, ("decoder_pos_embed",))
    return decoder


def pixels(decoded: Tensor, config: dict[str, Any]) -> Tensor:
    """Return images in [0, 1] of a decoder's normalized ones."""
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return decoded * std + mean
