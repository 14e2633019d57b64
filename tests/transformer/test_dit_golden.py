"""LightningDiT, its loss and its guided samples against numbers of the published implementation."""

import json
from pathlib import Path

import pytest
import torch
from rules import golden_weight
from safetensors import safe_open
from torch import Tensor

from vavae.flow import Guidance, flow_matching_loss, sample
from vavae.flow.guidance import guided_prediction
from vavae.transformer import LightningDiT

GOLDEN = Path(__file__).parents[1] / "golden"
STATE_DICTS = json.loads((GOLDEN / "state_dicts.json").read_text())
PUBLISHED_SIZES = sorted(name for name in STATE_DICTS if name.startswith("LightningDiT"))
NAMES = {
    "input_size": "latent_size",
    "in_channels": "latent_channels",
    "hidden_size": "width",
    "num_heads": "heads",
    "use_swiglu": "swiglu",
    "use_rope": "rope",
    "use_rmsnorm": "rmsnorm",
    "use_qknorm": "qk_norm",
}


def build(published: dict) -> LightningDiT:
    """Return the network of published constructor arguments, whose switches are off by default."""
    options = {"swiglu": False, "rope": False, "rmsnorm": False}
    for name, value in published.items():
        if name == "wo_shift":
            options["adaln_shift"] = not value
        else:
            options[NAMES.get(name, name)] = value
    return LightningDiT(**options).eval()


@torch.no_grad()
def fill(model: LightningDiT) -> LightningDiT:
    """Set the weights by the rule of the golden files."""
    for k, (name, parameter) in enumerate(sorted(model.named_parameters())):
        parameter.copy_(golden_weight(k, parameter.shape, name))
    return model


def load(name: str) -> tuple[dict[str, Tensor], dict]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def golden(name: str) -> tuple[LightningDiT, dict[str, Tensor]]:
    tensors, config = load(name)
    return fill(build(config)), tensors


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=relative, atol=relative * expected.abs().max().item())


@pytest.mark.parametrize("name", ["dit_paper", "dit_qknorm_noshift", "dit_original"])
def test_velocity_and_positions(name: str) -> None:
    model, tensors = golden(name)
    with torch.no_grad():
        assert_close(model(tensors["x"], tensors["t"], tensors["y"]), tensors["velocity"], 1e-5)
    assert torch.equal(model.pos_embed, tensors["pos_embed"])
    if "rope_cos" in tensors:
        assert_close(model.feat_rope.freqs_cos, tensors["rope_cos"], 1e-6)
        assert_close(model.feat_rope.freqs_sin, tensors["rope_sin"], 1e-6)


@pytest.mark.parametrize("name", ["dit_paper", "dit_qknorm_noshift"])
def test_loss_and_gradient(name: str) -> None:
    model, tensors = golden(name)
    terms = flow_matching_loss(model, tensors["data"], tensors["y"], noise=tensors["noise"], t=tensors["loss_t"])
    assert_close(terms["mse"], tensors["loss_mse"], 1e-5)
    assert_close(terms["direction"], tensors["loss_direction"], 1e-5)
    terms["total"].mean().backward()
    assert_close(model.blocks[0].attn.qkv.weight.grad, tensors["grad_qkv"], 1e-4)


@pytest.mark.parametrize("name", ["dit_paper", "dit_qknorm_noshift"])
def test_guidance(name: str) -> None:
    model, tensors = golden(name)
    guidance = Guidance(scale=6.7, start=0.125, channels=3)
    predict = guided_prediction(model, torch.tensor([0, 2]), guidance, null_label=10)
    with torch.no_grad():
        assert_close(predict(tensors["x"][:2], 0.05), tensors["cfg_low"], 1e-5)
        assert_close(predict(tensors["x"][:2], 0.6), tensors["cfg_high"], 1e-5)


@pytest.mark.parametrize("name", ["dit_paper", "dit_qknorm_noshift"])
def test_samples(name: str) -> None:
    model, _ = golden(name)
    tensors, _ = load(f"{name}_samples")
    labels = torch.tensor([0, 2])
    guidance = Guidance(scale=3.0, start=0.125, channels=3)
    guided = sample(model, tensors["noise"], labels, steps=20, shift=0.3, guidance=guidance)
    assert_close(guided, tensors["guided"], 1e-4)
    assert_close(sample(model, tensors["noise"], labels, steps=20, shift=0.3), tensors["unguided"], 1e-4)


@pytest.mark.parametrize(
    ("switches", "mean", "abs_mean", "first", "guided_mean", "guided_first"),
    [
        ({}, 0.10073680, 0.14267962, (0.0528064, 0.1285019), 0.09587772, (0.0516641, 0.1197174)),
        (
            {"use_qknorm": True},
            -0.09095766,
            0.22483149,
            (0.1588899, 0.1777200),
            -0.09019359,
            (0.1584617, 0.1788714),
        ),
        (
            {"use_swiglu": False, "use_rope": False, "use_rmsnorm": False},
            -0.04685688,
            0.19554275,
            (-0.2047254, -0.4087660),
            -0.04662190,
            (-0.2258599, -0.4179873),
        ),
        (
            {"wo_shift": True},
            0.10060560,
            0.14265272,
            (0.0531651, 0.1291554),
            0.09805549,
            (0.0529629, 0.1225680),
        ),
        (
            {"patch_size": 2},
            0.03668422,
            0.39619432,
            (-0.5487900, 0.2036014),
            0.03476206,
            (-0.5409735, 0.1973890),
        ),
    ],
    ids=["paper", "qknorm", "plain", "noshift", "patch2"],
)
def test_second_set_of_published_numbers(
    switches: dict,
    mean: float,
    abs_mean: float,
    first: tuple[float, float],
    guided_mean: float,
    guided_first: tuple[float, float],
) -> None:
    """Other weights by an independent rule, for every switch and both halves of the guided batch."""
    shape = {"input_size": 4, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 2, "num_classes": 10}
    switched = {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True, **switches}
    model = build({**shape, **switched})
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
            s = torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + i).view_as(parameter)
            parameter.copy_(1 + 0.1 * s if "norm" in name and name.endswith("weight") else 0.05 * s)
        x = torch.sin(0.1 * torch.arange(128, dtype=torch.float64)).float().view(2, 4, 4, 4)
        velocity = model(x, torch.tensor([0.3, 0.3]), torch.tensor([3, 10]))
        guidance = Guidance(scale=4, start=0.1, channels=3)
        guided = guided_prediction(model, torch.tensor([3]), guidance, null_label=10)(x[:1], 0.3)
        unlabeled = model(x[:1], torch.tensor([0.3]), torch.tensor([10]))
    approx = lambda value: pytest.approx(value, rel=1e-5, abs=1e-6)  # noqa: E731
    assert velocity.mean().item() == approx(mean)
    assert velocity.abs().mean().item() == approx(abs_mean)
    assert tuple(velocity.flatten()[:2].tolist()) == approx(first)
    # The published output has the unconditional half too: guided channels, then its own last channel.
    both = torch.cat((guided, torch.cat((guided[:, :3], unlabeled[:, 3:]), dim=1)))
    assert both.mean().item() == approx(guided_mean)
    assert tuple(guided.flatten()[:2].tolist()) == approx(guided_first)


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_state_dict_is_the_published_one(name: str) -> None:
    expected = STATE_DICTS[name]
    with torch.device("meta"):
        model = LightningDiT.from_size(name)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    published = {}
    for key, shape in expected["state_dict"].items():
        blocks = range(expected["depth"]) if key.startswith("blocks.0.") else [0]
        published |= {key.replace("blocks.0.", f"blocks.{block}."): shape for block in blocks}
    assert shapes == published
    trainable = sum(parameter.numel() for parameter in model.parameters())
    assert trainable == expected["trainable"]
    assert trainable + model.pos_embed.numel() == expected["parameters"]


def test_all_published_sizes_were_compared() -> None:
    assert len(PUBLISHED_SIZES) == 9
