"""REPA and iREPA against numbers of the published implementations."""

from typing import Any

import pytest
import torch
from golden_next import assert_close, load, new_sit
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.losses.representation import (
    Projector,
    mean_projection_loss,
    projection_loss,
    spatial_normalize,
)
from vavae.transformer import LightningDiT

GRID = (4, 4)


def golden(name: str) -> tuple[LightningDiT, nn.ModuleList, dict[str, Tensor], dict[str, Any]]:
    """SiT (LightningDiT without its switches), the projectors, tensors and settings."""
    tensors, config, weights = load(name)
    shape = config["model"]
    model = new_sit(shape)
    own = {name: value for name, value in weights["model"].items() if not name.startswith("projectors.")}
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert set(missing) == {"pos_embed"} and not unexpected
    kind = shape.get("projection_layer_type", "mlp")
    projectors = nn.ModuleList(
        Projector(shape["hidden_size"], width, kind, shape["projector_dim"], shape.get("proj_kwargs_kernel_size", 3))
        for width in shape["z_dims"]
    )
    projectors.load_state_dict(
        {name.removeprefix("projectors."): value for name, value in weights["model"].items() if name not in own}
    )
    return model, projectors, tensors, config


def projected(
    model: LightningDiT, projectors: nn.ModuleList, x: Tensor, t: Tensor, y: Tensor, depth: int
) -> tuple[Tensor, list[Tensor]]:
    velocity, (tokens,), *_ = model(x, t, y, hidden_blocks=(depth,))
    return velocity, [projector(tokens, GRID) for projector in projectors]


@pytest.mark.parametrize("name", ["repa", "irepa"])
def test_velocity_and_projected_tokens(name: str) -> None:
    model, projectors, tensors, config = golden(name)
    with torch.no_grad():
        velocity, tokens = projected(
            model, projectors, tensors["x"], tensors["t"], tensors["y"], config["model"]["encoder_depth"]
        )
        assert torch.equal(velocity, model(tensors["x"], tensors["t"], tensors["y"]))
    assert_close(velocity, tensors["velocity"], 1e-5)
    assert_close(model.pos_embed, tensors["pos_embed"], 1e-6)
    for number, values in enumerate(tokens):
        assert_close(values, tensors[f"projected.{number}"], 1e-5)


def denoising(model: LightningDiT, projectors: nn.ModuleList, tensors: dict[str, Tensor], depth: int) -> Any:
    data, noise = tensors["data"], tensors["noise"]
    tau = tensors["loss_t"].view(-1, 1, 1, 1)
    x = (1 - tau) * data + tau * noise
    velocity, tokens = projected(model, projectors, x, tensors["loss_t"], tensors["loss_y"], depth)
    return (velocity - (noise - data)).square().flatten(1).mean(1), tokens


def test_repa_loss_and_gradients() -> None:
    model, projectors, tensors, config = golden("repa")
    losses, tokens = denoising(model, projectors, tensors, config["model"]["encoder_depth"])
    alignment = mean_projection_loss(tokens, [tensors["features.0"], tensors["features.1"]])
    assert_close(losses.detach(), tensors["denoising_loss"], 1e-5)
    assert_close(alignment.detach(), tensors["projection_loss"], 1e-5)
    alone = torch.autograd.grad(alignment, model.blocks[0].attn.qkv.weight, retain_graph=True)[0]
    assert_close(alone, tensors["grad_projection.blocks.0.attn.qkv.weight"], 1e-4)
    total = losses.mean() + config["coefficient"] * alignment
    assert_close(total.detach(), tensors["total"], 1e-5)
    total.backward()
    for name in ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "blocks.2.attn.qkv.weight"):
        assert_close(model.get_parameter(name).grad, tensors[f"grad.{name}"], 1e-4)
    assert_close(projectors.get_parameter("0.4.weight").grad, tensors["grad.projectors.0.4.weight"], 1e-4)


@pytest.mark.parametrize("method", ["none", "zscore"])
def test_irepa_loss_and_gradients(method: str) -> None:
    model, projectors, tensors, config = golden("irepa")
    features = tensors["features.0"]
    if method == "zscore":
        features = spatial_normalize(features, config["train_alpha"])
    losses, tokens = denoising(model, projectors, tensors, config["model"]["encoder_depth"])
    alignment = config["coefficient"] * projection_loss(tokens[0], features)
    assert_close(alignment.detach(), tensors[f"{method}.projection_loss_weighted"], 1e-5)
    total = losses.mean() + alignment
    assert_close(total.detach(), tensors[f"{method}.total"], 1e-5)
    alone = torch.autograd.grad(alignment, model.blocks[0].attn.qkv.weight, retain_graph=True)[0]
    assert_close(alone, tensors[f"{method}.grad_projection.blocks.0.attn.qkv.weight"], 1e-4)
    total.backward()
    name = "blocks.0.attn.qkv.weight"
    assert_close(model.get_parameter(name).grad, tensors[f"{method}.grad.{name}"], 1e-4)
    weight = projectors.get_parameter("0.projection_layer.weight").grad
    assert_close(weight, tensors[f"{method}.grad.projectors.0.projection_layer.weight"], 1e-4)


@pytest.mark.parametrize("alpha", [0.6, 0.8, 1.0])
def test_spatial_normalization(alpha: float) -> None:
    tensors, _, _ = load("irepa")
    normalized = spatial_normalize(tensors["features.0"], alpha)
    assert_close(normalized, tensors[f"zscore.{alpha}.0"], 1e-5)
    assert_close(projection_loss(tensors["projected.0"], normalized), tensors[f"projection_loss.zscore.{alpha}"], 1e-5)


def test_features_of_half_precision_are_normalized_in_float32() -> None:
    features = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(spatial_normalize(features, 1.0), spatial_normalize(features.float(), 1.0))


def test_wrong_kinds_shapes_and_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="kernel must be an odd number, got 2"):
        Projector(4, 4, "conv", kernel=2)
    with pytest.raises(UserError, match="kind must be mlp, linear or conv, got 'other'"):
        Projector(4, 4, "other")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"features must have the shape of the projected tokens \(1, 2, 3\)"):
        projection_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    assert Projector(4, 6, "linear")(torch.zeros(1, 16, 4), GRID).shape == (1, 16, 6)
    with pytest.raises(UserError, match="grid must be given for 12 tokens, which do not form a square"):
        Projector(4, 6, "conv")(torch.zeros(1, 12, 4))
    model = LightningDiT(latent_size=4, latent_channels=4, width=8, depth=2, heads=2)
    with pytest.raises(UserError, match="hidden_blocks must be from 1 to 2, got 3"):
        model(torch.zeros(1, 4, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64), hidden_blocks=(3,))


def test_a_convolution_takes_tokens_of_a_square_grid_without_its_sides() -> None:
    projector, tokens = Projector(4, 6, "conv"), torch.randn(2, 9, 4)
    assert torch.equal(projector(tokens), projector(tokens, (3, 3)))
    assert not torch.equal(projector(tokens), projector(tokens, (1, 9)))
