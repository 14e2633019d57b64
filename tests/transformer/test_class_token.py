"""The class token in LightningDiT, against numbers of the published REG (Martinser/REG at 021ea2e)."""

import zlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.transformer import LightningDiT, TransformerOutput
from vavae.transformer.routing import RoutingConfig


def drawn(name: str, *shape: int) -> Tensor:
    """Return the standard normal numbers that belong to a name."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def fill(module: nn.Module, prefix: str = "") -> None:
    """Set each parameter to a base and 0.05 times the numbers of its published name; the base of norms is 1."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            base = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(base + 0.05 * drawn(prefix + name, *parameter.shape))


def assert_numbers(values: Tensor, mean: float, std: float, first: Sequence[float], last: float) -> None:
    flat = values.flatten()
    found = [float(flat.mean()), float(flat.std()), *flat[:4].tolist(), float(flat[-1])]
    assert found == pytest.approx([mean, std, *first, last], abs=1e-5)


@pytest.fixture
def model() -> LightningDiT:
    made = LightningDiT(
        latent_size=4,
        latent_channels=8,
        width=48,
        depth=3,
        heads=3,
        num_classes=10,
        swiglu=False,
        rope=False,
        rmsnorm=False,
        class_token=12,
    ).eval()
    fill(made)
    return made


def test_published_numbers(model: LightningDiT) -> None:
    """The network is the published one as a function; its time and velocity there go from data to noise."""
    projector = nn.Sequential(nn.Linear(48, 20), nn.SiLU(), nn.Linear(20, 20), nn.SiLU(), nn.Linear(20, 12))
    fill(projector, "projectors.0.")
    x, tau, y = drawn("x", 2, 8, 4, 4), torch.tensor([0.3, 0.8]), torch.tensor([1, 10])
    with torch.no_grad():
        output = model(x, tau, y, hidden_blocks=(2,), class_token=drawn("cls", 2, 12))
        projected = projector(output.hidden[0])
    assert projected.shape == (2, 17, 12)
    first = (-0.2599956, -0.228004, -0.2016186, -0.0645217)
    assert_numbers(output.prediction, -0.10894516, 0.32781155, first, 0.0667632)
    first = (-0.06792, 0.0452679, -0.0250693, -0.0451101)
    assert_numbers(projected, -0.01221462, 0.05253472, first, -0.0751797)
    first = (-0.2960349, -0.0699036, 0.3380787, -0.0387913)
    assert_numbers(output.class_token, 0.01741527, 0.2354101, first, 0.2372765)


def test_fresh_network_predicts_zero_and_takes_other_grids(model: LightningDiT) -> None:
    model.reset_parameters()
    given = (torch.randn(2, 8, 4, 4), torch.tensor([0.2, 0.7]), torch.tensor([0, 10]))
    output = model(*given, class_token=torch.randn(2, 12))
    assert isinstance(output, TransformerOutput) and output.class_token is not None
    assert output.prediction.abs().max() == 0 and output.class_token.abs().max() == 0
    assert model.pos_embed[:, 0].abs().max() == 0 and model.pos_embed.shape == (1, 17, 48)
    fill(model)
    other = model(torch.randn(2, 8, 6, 2), *given[1:], hidden_blocks=(3,), class_token=torch.randn(2, 12))
    assert other.prediction.shape == (2, 8, 6, 2) and other.hidden[0].shape == (2, 13, 48)


def test_rotation_leaves_the_class_token_in_place() -> None:
    torch.manual_seed(0)
    model = LightningDiT(latent_size=4, latent_channels=8, width=24, depth=1, heads=2, num_classes=2, class_token=6)
    model.eval()
    fill(model)
    tokens = torch.randn(1, 17, 24)
    plain = (model.feat_rope.freqs_cos, model.feat_rope.freqs_sin)  # type: ignore[union-attr]
    _, rotary = model._with_class_token(torch.randn(1, 6), tokens[:, 1:], plain)
    assert rotary is not None
    assert bool((rotary[0][0] == 1).all() and (rotary[1][0] == 0).all())
    assert all(torch.equal(table[1:], given) for table, given in zip(rotary, plain, strict=True))


def routed_and_plain(kind: str, depth: int, stop: int) -> tuple[LightningDiT, LightningDiT]:
    """Return a network whose blocks from the second to `stop` are routed, with fusion [0, I], and the plain one."""
    shape = {"latent_size": 4, "latent_channels": 8, "width": 24, "heads": 2, "num_classes": 2, "class_token": 6}
    plain = LightningDiT(**shape, depth=depth).eval()
    fill(plain)
    model = LightningDiT(plain.config, routing=RoutingConfig(kind, start=1, stop=stop)).eval()  # type: ignore[arg-type]
    model.load_state_dict(plain.state_dict(), strict=False)
    if model.fusion is not None:
        model.fusion.weight.data.copy_(torch.cat((torch.zeros(24, 24), torch.eye(24)), dim=1))
    return model, plain


ROUTED = torch.randn(1, 8, 4, 4), torch.tensor([0.4]), torch.tensor([1])


@pytest.mark.parametrize("kind", ["sprint", "tread"])
def test_routing_counts_the_class_token_as_the_first_token(kind: str) -> None:
    model, plain = routed_and_plain(kind, 3, 2)
    token, every = torch.randn(1, 6), torch.arange(17)[None]
    expected, kept = plain(*ROUTED, class_token=token), model(*ROUTED, class_token=token, kept=every)
    assert torch.equal(kept.prediction, expected.prediction) and torch.equal(kept.class_token, expected.class_token)


def test_a_dropped_class_token_skips_the_routed_blocks() -> None:
    """By hand, with TREAD: the last block sees the patches only."""
    model, plain = routed_and_plain("tread", 2, 2)
    token = torch.randn(1, 6)
    with torch.no_grad():
        first = plain(*ROUTED, class_token=token, hidden_blocks=(1,)).hidden[0]
        condition = (plain.t_embedder(ROUTED[1]) + plain.y_embedder(ROUTED[2], None))[:, None]
        rotary = plain.feat_rope.freqs_cos, plain.feat_rope.freqs_sin  # type: ignore[union-attr]
        patches = plain.blocks[1](first[:, 1:], condition, rotary)
        last = plain.final_layer.modulated(torch.cat((first[:, :1], patches), dim=1), condition)
        output = model(*ROUTED, class_token=token, kept=torch.arange(1, 17)[None])
        torch.testing.assert_close(output.class_token, plain.final_layer.linear_cls(last[:, 0]))  # type: ignore[misc]
        velocity = plain.final_layer.linear(last[:, 1:]).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(output.prediction, velocity)


def test_wrong_tokens_are_refused(model: LightningDiT) -> None:
    given = (torch.randn(2, 8, 4, 4), torch.tensor([0.2, 0.7]), torch.tensor([0, 10]))
    for wrong, words in ((None, "None"), (torch.randn(1, 12), r"\(1, 12\)")):
        with pytest.raises(UserError, match=rf"class_token must be a tensor of shape \(2, 12\), got {words}"):
            model(*given, class_token=wrong)
    plain = LightningDiT(latent_size=4, latent_channels=8, width=24, depth=1, heads=2)
    with pytest.raises(UserError, match=r"class_token must be None, got \(2, 12\)"):
        plain(*given, class_token=torch.randn(2, 12))
    with pytest.raises(UserError, match="class_token must be from 1 to"):
        LightningDiT(class_token=0)
