"""The ViT decoder against numbers of the published implementation (bytetriper/RAE at a4d18c4)."""

from typing import Any

import pytest
import torch
from golden_next import STATE_DICTS, assert_close, load, pixels, published_shapes, vit_decoder
from torch import Tensor

from vavae.errors import UserError
from vavae.tokenizer import ViTDecoder

SIZES = sorted(name for name in STATE_DICTS if "decoder" in name)


@pytest.fixture(scope="module")
def golden() -> tuple[ViTDecoder, dict[str, Tensor], dict[str, Any]]:
    tensors, config, weights = load("rae_decoder")
    return vit_decoder(config, weights["decoder"]), tensors, config


@pytest.mark.parametrize("grid", ["", "_3x3", "_6x6"])
def test_images(golden: Any, grid: str) -> None:
    decoder, tensors, config = golden
    with torch.no_grad():
        decoded = decoder(tensors[f"latents{grid}"])
    assert_close(pixels(decoded, config), tensors[f"image{grid}"], 1e-5)
    # (B, 3, h·p, w·p) -> (B, h·w, p·p·3): inside a token row, column, color
    tokens = decoded.unflatten(3, (4, 4)).unflatten(2, (4, 4)).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 48)
    assert_close(tokens, tensors[f"logits{grid}"], 1e-5)


def test_position_table_and_gradients(golden: Any) -> None:
    decoder, tensors, config = golden
    assert_close(decoder.decoder_pos_embed, tensors["pos_embed"], 1e-6)
    latents = tensors["latents"].clone().requires_grad_()
    loss = (pixels(decoder(latents), config) - tensors["target"]).square().mean()
    assert_close(loss.detach(), tensors["loss"], 1e-5)
    loss.backward()
    assert_close(latents.grad, tensors["grad.latents"], 1e-4)
    for name in ("decoder_embed.weight", "decoder_pos_embed", "trainable_cls_token"):
        assert_close(decoder.get_parameter(name).grad, tensors[f"grad.{name}"], 1e-4)


@pytest.mark.parametrize("name", SIZES)
def test_state_dict_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        decoder = ViTDecoder.from_size(name.removeprefix("RAE decoder ViT-"))
    shapes = {key: list(value.shape) for key, value in decoder.state_dict().items()}
    assert shapes == published_shapes(name)
    assert sum(p.numel() for p in decoder.parameters()) == STATE_DICTS[name]["parameters"]


def test_wrong_latents_and_sizes_are_refused() -> None:
    decoder = ViTDecoder(4, (2, 3), 2, width=8, depth=1, heads=2, mlp_width=8)
    assert decoder(torch.zeros(1, 4, 2, 3)).shape == (1, 3, 4, 6)
    with pytest.raises(UserError, match=r"latents must have shape \(B, 4, h, w\)"):
        decoder(torch.zeros(1, 5, 2, 3))
    with pytest.raises(UserError, match="size must be one of B, L, XL"):
        ViTDecoder.from_size("S")
    with pytest.raises(UserError, match="width must be a multiple"):
        ViTDecoder(4, width=9, heads=3)
    for name in ("grid", "patch_size", "depth", "heads", "mlp_width"):
        with pytest.raises(UserError, match=f"{name} must be from 1 to 65,536, got 0"):
            ViTDecoder(4, **{name: 0})
