"""The two passes of a joint step against numbers of the published implementation (REPA-E)."""

from typing import Any
from zlib import crc32

import pytest
import torch
from golden_next import assert_close, fill, load
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.flow import FlowConfig
from vavae.grids import to_grid
from vavae.stages.joint_alignment import LatentAlignment, first_blocks, frozen, latent_statistics
from vavae.stages.joint_config import JointAlignmentConfig, ProjectorConfig
from vavae.tokenizer import LatentStatistics
from vavae.training.ema import MovingAverage, exponential
from vavae.transformer import LightningDiT, TransformerOutput

GRID = (4, 4)


class OtherTime(nn.Module):
    """A published SiT as ours: its time is 1 - t, and its velocity has the other sign."""

    def __init__(self, network: LightningDiT) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, y: Tensor, **options: Any) -> TransformerOutput:
        output = self.network(x, 1 - t, y, **options)
        assert isinstance(output, TransformerOutput)
        return TransformerOutput(-output.prediction, output.hidden)


def sit(channels: int, width: int, depth: int, heads: int, classes: int) -> LightningDiT:
    return LightningDiT(
        latent_size=4,
        patch_size=1,
        latent_channels=channels,
        width=width,
        depth=depth,
        heads=heads,
        num_classes=classes,
        swiglu=False,
        rope=False,
        rmsnorm=False,
    ).eval()


class Published:
    """The published networks of `repa_e`, the inputs and the expected numbers."""

    def __init__(self) -> None:
        self.tensors, config, weights = load("repa_e")
        shape = config["model"]
        self.config = config
        self.model = sit(
            shape["in_channels"], shape["hidden_size"], shape["depth"], shape["num_heads"], shape["num_classes"]
        )
        named = weights["model"]
        projectors = {name: value for name, value in named.items() if name.startswith("projectors.")}
        fill(self.model, {name: value for name, value in named.items() if name not in projectors})
        self.model.pos_embed.copy_(self.tensors["pos_embed"])
        self.alignment = LatentAlignment(
            JointAlignmentConfig(
                block=shape["encoder_depth"], projector=ProjectorConfig(hidden=shape["projector_dim"])
            ),
            shape["in_channels"],
            shape["hidden_size"],
            shape["z_dims"][0],
        )
        self.alignment.load_state_dict(projectors, strict=False)
        self.alignment.start_from(LatentStatistics(self.tensors["start_mean"], self.tensors["start_var"].sqrt()))
        self.flow = FlowConfig(path=config["path"], direction_weight=0.0)

    def losses(self, model: LightningDiT, latents: Tensor, drop: Tensor) -> dict[str, Tensor]:
        values = self.tensors
        features = to_grid(values["features.0"], GRID)
        return self.alignment.losses(
            OtherTime(model), self.flow, latents, values["y"], values["noise"], 1 - values["t"], drop, features
        )


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "first blocks"])
def test_pass_of_the_tokenizer(whole: bool) -> None:
    published = Published()
    expected, model = published.tensors, published.model
    latents = expected["latents"].clone().requires_grad_()
    part = model if whole else first_blocks(model, published.alignment.config.block)
    with frozen(model, published.alignment):
        terms = published.losses(part, latents, torch.zeros(3, dtype=torch.bool))
        (published.config["vae_alignment_coefficient"] * terms["projection"]).backward()
    assert_close(terms["projection"].detach(), expected["align.projection_loss"], 1e-5)
    assert latents.grad is not None
    assert_close(latents.grad, expected["align.grad.latents"], 1e-4)
    assert all(p.grad is None and p.requires_grad for p in (*model.parameters(), *published.alignment.parameters()))
    assert torch.equal(published.alignment.bn.running_mean, expected["start_mean"])  # type: ignore[arg-type]


def test_pass_of_the_transformer_and_its_averages() -> None:
    published = Published()
    expected, model, alignment = published.tensors, published.model, published.alignment
    average = MovingAverage(alignment, exponential(published.config["ema_decay"], warmup=False))
    model.pos_embed.requires_grad_()  # the published script trains it, ours does not
    model.train()
    terms = published.losses(model, expected["latents"], expected["step.label_drop"].bool())
    assert_close(terms["mse"].detach(), expected["step.denoising_loss"].mean(), 1e-5)
    assert_close(terms["projection"].detach(), expected["step.projection_loss"], 1e-5)
    alone = torch.autograd.grad(terms["projection"], model.blocks[0].attn.qkv.weight, retain_graph=True)[0]
    assert_close(alone, expected["step.grad_projection.blocks.0.attn.qkv.weight"], 1e-4)
    total = terms["total"] + alignment.config.weight * terms["projection"]
    assert_close(total.detach(), expected["step.total"], 1e-5)
    total.backward()
    for name in ("blocks.0.attn.qkv.weight", "blocks.2.attn.qkv.weight", "pos_embed"):
        owner = model.get_submodule(name.rpartition(".")[0])
        assert_close(getattr(owner, name.rpartition(".")[2]).grad, expected[f"step.grad.{name}"], 1e-4)
    projected = alignment.get_parameter("projectors.0.4.weight").grad
    assert projected is not None
    assert_close(projected, expected["step.grad.projectors.0.4.weight"], 1e-4)

    average.update(0)
    state = alignment.state_dict()
    assert state["bn.num_batches_tracked"] == 1
    for name in ("running_mean", "running_var"):
        assert_close(state[f"bn.{name}"], expected[f"step.{name}"], 1e-6)
        assert_close(average.values[f"bn.{name}"], expected[f"ema.{name}"], 1e-6)
    # Published latents are denormalized without the epsilon; ours with it, as they were normalized.
    assert_close(1 / state["bn.running_var"].sqrt(), expected["step.latents_scale"], 1e-6)
    statistics = latent_statistics(state)
    assert_close(statistics.std, (expected["step.running_var"] + 1e-4).sqrt(), 1e-6)
    alignment.eval()
    torch.testing.assert_close(statistics.normalize(expected["latents"]), alignment.bn(expected["latents"]))


def test_sampling_sees_normalized_latents() -> None:
    published = Published()
    expected = published.tensors
    with torch.no_grad():
        velocity = published.model(expected["x"], expected["inference_t"], expected["inference_y"])
    assert_close(velocity, expected["velocity"], 1e-5)


def drawn(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))


def test_other_golden_numbers() -> None:
    """Reference code at another size, on the straight path."""
    model = sit(8, 48, 3, 3, 10)
    alignment = LatentAlignment(JointAlignmentConfig(block=2, projector=ProjectorConfig(hidden=20)), 8, 48, 12)
    with torch.no_grad():
        for module in (model, alignment):
            for name, parameter in module.named_parameters():
                parameter.copy_(0.05 * drawn(name, *parameter.shape))
        alignment.bn.running_mean.copy_(0.5 * drawn("bn.mean", 8))  # type: ignore[union-attr]
        alignment.bn.running_var.copy_(1 + drawn("bn.var", 8).abs())  # type: ignore[union-attr]
    latents = drawn("x", 2, 8, 4, 4).requires_grad_()
    features, tau = to_grid(drawn("feat", 2, 16, 12), GRID), torch.tensor([0.3, 0.8])
    flow, labels, drop = FlowConfig(direction_weight=0.0), torch.tensor([1, 3]), torch.zeros(2, dtype=torch.bool)

    def losses() -> dict[str, Tensor]:
        noise = drawn("noise", 2, 8, 4, 4)
        return alignment.losses(OtherTime(model), flow, latents, labels, noise, 1 - tau, drop, features)

    alignment.eval()
    terms = losses()
    assert terms["projection"].item() == pytest.approx(0.04029411, rel=1e-5)
    assert torch.autograd.grad(terms["projection"], latents, retain_graph=True)[0].norm().item() == pytest.approx(
        2.716826e-4, rel=1e-4
    )
    assert terms["mse"].item() == pytest.approx((1.90565073 + 1.61225057) / 2, rel=1e-5)
    model.train()
    alignment.train()
    terms = losses()
    assert terms["mse"].item() == pytest.approx((2.28922176 + 1.84280491) / 2, rel=1e-5)
    assert terms["projection"].item() == pytest.approx(0.03988705, rel=1e-5)
    state = alignment.state_dict()
    assert state["bn.running_mean"][:3].tolist() == pytest.approx([0.17001419, 0.37704941, 0.16824688], rel=1e-5)
    assert state["bn.running_var"][:3].tolist() == pytest.approx([1.15561604, 1.61886001, 2.06036305], rel=1e-5)


def test_first_blocks_share_the_weights() -> None:
    model = sit(4, 16, 3, 2, 5).train()
    part = first_blocks(model, 2)
    assert len(part.blocks) == 2 and part.pos_embed is model.pos_embed
    assert {id(p) for p in part.parameters()} <= {id(p) for p in model.parameters()}
    x, t, y = torch.randn(2, 4, 4, 4), torch.rand(2), torch.tensor([0, 3])
    with frozen(model):
        assert not model.training and not part.blocks[0].training
        one, other = (each(x, t, y, hidden_blocks=(2,)).hidden[0] for each in (model, part))
    assert torch.equal(one, other)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_statistics_must_fit() -> None:
    alignment = LatentAlignment(JointAlignmentConfig(), 4, 16, 6)
    with pytest.raises(UserError, match=r"statistics of the latents must be of 4 channels, got the shape \(5,\)"):
        alignment.start_from(LatentStatistics(torch.zeros(5), torch.ones(5)))
