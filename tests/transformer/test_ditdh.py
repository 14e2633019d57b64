"""DiT^DH against numbers of the published implementation (bytetriper/RAE at a4d18c4)."""

from typing import Any

import pytest
import torch
from golden_next import STATE_DICTS, assert_close, ditdh, load, published_shapes

from vavae.errors import UserError
from vavae.transformer import DiTDH, DiTDHConfig

SIZES = sorted(name for name in STATE_DICTS if "DiTDH" in name)


@pytest.fixture(scope="module")
def golden() -> tuple[DiTDH, DiTDH, dict[str, torch.Tensor]]:
    """The network, the weak network, and the tensors."""
    tensors, config, weights = load("rae_dit")
    model, weak = (ditdh(config[name], weights[name]) for name in ("model", "weak"))
    return model, weak, tensors


def test_velocity_and_tables(golden: Any) -> None:
    model, _, tensors = golden
    with torch.no_grad():
        assert_close(-model(tensors["x"], 1 - tensors["t"], tensors["y"]), tensors["velocity"], 1e-5)
    assert_close(model.pos_embed, tensors["pos_embed"], 1e-6)
    for rope in ("enc_feat_rope", "dec_feat_rope"):
        for table in ("freqs_cos", "freqs_sin"):
            assert_close(getattr(getattr(model, rope), table), tensors[f"{rope}.{table}"], 1e-6)


def test_predictions_of_strong_and_weak_network(golden: Any) -> None:
    model, weak, tensors = golden
    given = (tensors["guided_x"], 1 - tensors["guided_t"], tensors["guided_y"])
    with torch.no_grad():
        assert_close(-model(*given), tensors["plain_velocity"], 1e-5)
        assert_close(-weak(*given), tensors["weak_velocity"], 1e-5)


def test_loss_and_gradients(golden: Any) -> None:
    model, _, tensors = golden
    predicted = -model(tensors["loss_xt"], 1 - tensors["loss_t"], tensors["loss_y"])
    loss = (predicted - (tensors["noise"] - tensors["data"])).square().flatten(1).mean(1)
    assert_close(loss.detach(), tensors["loss"], 1e-5)
    loss.mean().backward()
    for name in ("blocks.0.attn.qkv.weight", "final_layer.linear.weight", "pos_embed", "t_embedder.W"):
        assert_close(model.get_parameter(name).grad, tensors[f"grad.{name}"], 1e-4)


@pytest.mark.parametrize("name", SIZES)
def test_state_dict_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        model = ditdh(STATE_DICTS[name]["arguments"])
        side = STATE_DICTS[name]["arguments"]["input_size"]
        named = DiTDH.from_size("XL" if "XL" in name else "S", latent_size=side)
    assert named.config == model.config
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == published_shapes(name)
    assert sum(p.numel() for p in model.parameters()) == STATE_DICTS[name]["parameters"]


def test_fresh_network_predicts_zero_and_takes_other_grids() -> None:
    model = DiTDH(latent_size=4, latent_channels=6, widths=(8, 12), depths=(1, 1), heads=(2, 3), num_classes=3).eval()
    velocity = model(torch.randn(2, 6, 4, 4), torch.tensor([0.0, 1.0]), torch.tensor([0, 3]))
    assert velocity.abs().max() == 0
    torch.nn.init.normal_(model.final_layer.linear.weight)
    assert model(torch.randn(1, 6, 2, 5), torch.tensor([0.5]), torch.tensor([0])).shape == (1, 6, 2, 5)


def test_hidden_tokens_come_with_the_same_velocity() -> None:
    model = DiTDH(latent_size=4, latent_channels=6, widths=(8, 12), depths=(2, 1), heads=(2, 3), num_classes=3).eval()
    torch.nn.init.normal_(model.final_layer.linear.weight)
    given = (torch.randn(2, 6, 4, 4), torch.tensor([0.2, 0.7]), torch.tensor([0, 3]))
    output = model(*given, hidden_blocks=(1, 2))
    assert torch.equal(output.prediction, model(*given))
    assert [tuple(tokens.shape) for tokens in output.hidden] == [(2, 16, 8)] * 2
    with pytest.raises(UserError, match="hidden_blocks must be from 1 to 2, got 3"):
        model(*given, hidden_blocks=(3,))


def test_patches_of_two_give_the_latents_size() -> None:
    model = DiTDH(latent_size=4, patch_size=2, latent_channels=6, widths=(8, 8), depths=(1, 1), heads=(2, 2))
    assert model(torch.randn(1, 6, 4, 4), torch.tensor([0.5]), torch.tensor([0])).shape == (1, 6, 4, 4)
    assert isinstance(model.s_projector, torch.nn.Identity)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"widths": (8,)}, "widths must be"),
        ({"widths": (10, 12), "heads": (2, 3)}, "widths must be multiples of 4"),
        ({"latent_size": 5, "patch_size": 2}, "latent_size must be a multiple"),
        ({"label_dropout": 2.0}, "label_dropout must be from 0 to 1"),
    ],
)
def test_wrong_shapes_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DiTDHConfig(**settings)
    with pytest.raises(UserError, match="size must be one of S, XL"):
        DiTDH.from_size("B")
