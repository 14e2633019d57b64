"""Token routing: without dropped tokens the plain network bit for bit; positions of kept tokens; dropped paths."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from vavae.errors import UserError
from vavae.training.activation_checkpointing import apply_activation_checkpointing
from vavae.transformer import DiTDH, LightningDiT, Transformer, build_transformer
from vavae.transformer.positions import rotary_tables
from vavae.transformer.routing import RoutingConfig

ALL = torch.arange(16).expand(2, -1)
KEPT = torch.tensor([[1, 6, 7, 12], [0, 3, 9, 15]])
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
GIVEN = (X, torch.tensor([0.2, 0.7]), torch.tensor([0, 5]))
KINDS = ["sprint", "tread"]


def plain(head: bool = False) -> Transformer:
    """Return a network with five blocks to route, in which no parameter is zero."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"latent_size": 4, "latent_channels": 3, "num_classes": 5}
    model: Transformer = LightningDiT(**shape, width=16, depth=5, heads=2)
    if head:
        model = DiTDH(**shape, widths=(16, 24), depths=(5, 1), heads=(2, 2))
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def routed(model: Transformer, kind: str, **routing: Any) -> Transformer:
    """Return `model` with routing from block 2 to 4; SPRINT's fusion is [0, I]."""
    options = RoutingConfig(kind, **{"start": 1, **routing})  # type: ignore[arg-type]
    other = build_transformer(dataclasses.replace(model.config, routing=options))
    other.load_state_dict(model.state_dict(), strict=False)
    if other.fusion is not None:
        other.fusion.weight.data.copy_(torch.cat((torch.zeros(16, 16), torch.eye(16)), dim=1))
    return other.eval()


@pytest.mark.parametrize("head", [False, True], ids=["LightningDiT", "DiTDH"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_dropped_tokens_it_is_the_plain_network(kind: str, head: bool) -> None:
    model = plain(head)
    expected, other = model(*GIVEN), routed(model, kind)
    assert torch.equal(other(*GIVEN), expected)
    assert torch.equal(other(*GIVEN, kept=ALL), expected)
    assert not torch.equal(other(*GIVEN, kept=KEPT), expected)
    velocity, hidden, *_ = other(*GIVEN, hidden_blocks=(1, 3, 5))
    assert torch.equal(velocity, expected)
    assert all(torch.equal(a, b) for a, b in zip(hidden, model(*GIVEN, hidden_blocks=(1, 3, 5)).hidden, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_kept_tokens_are_a_set(kind: str) -> None:
    """Each keeps its position, so their order does not matter."""
    model = routed(plain(), kind)
    torch.testing.assert_close(model(*GIVEN, kept=KEPT), model(*GIVEN, kept=KEPT.flip(1)))


def test_tread_processes_the_kept_tokens_at_their_positions() -> None:
    """Blocks 2 to 4 by hand, on the kept tokens with the rotary tables of their rows and columns."""
    model = routed(plain(), "tread")
    assert isinstance(model, LightningDiT)
    condition = (model.t_embedder(GIVEN[1]) + model.y_embedder(GIVEN[2], None))[:, None]
    tokens, rotary = model.x_embedder(X) + model.pos_embed, (model.feat_rope.freqs_cos, model.feat_rope.freqs_sin)
    tokens = model.blocks[0](tokens, condition, rotary)
    for i, kept in enumerate(KEPT):
        tables = [rotary_tables(8, token[None] // 4, token[None] % 4) for token in kept.double()]
        own = tuple(torch.cat(parts).float() for parts in zip(*tables, strict=True))
        some = tokens[i : i + 1, kept]
        for block in model.blocks[1:4]:
            some = block(some, condition[i : i + 1], own)
        tokens = tokens.index_put((torch.tensor([i]), kept), some[0])
    expected = model.final_layer(model.blocks[4](tokens, condition, rotary), condition)
    torch.testing.assert_close(model(*GIVEN, kept=KEPT).flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_dropped_paths_are_skipped_paths() -> None:
    """Sample by sample, whichever tokens are kept; a fusion of the dense tokens alone does not see them."""
    model = routed(plain(), "sprint")
    skipped, full = model(*GIVEN, path_drop=True), model(*GIVEN)
    one = model(*GIVEN, kept=ALL, path_drop=torch.tensor([True, False]))
    assert torch.equal(one, torch.stack((skipped[0], full[1]))) and not torch.equal(skipped, full)
    model.fusion.weight.data.copy_(model.fusion.weight.roll(16, 1))  # [I, 0]
    assert torch.equal(model(*GIVEN, kept=KEPT), model(*GIVEN, path_drop=True))


def test_mask_token_stands_for_dropped_tokens_only() -> None:
    model = routed(plain(), "sprint")
    model.mask_token.data.fill_(torch.nan)
    assert model(*GIVEN, kept=ALL).isfinite().all()
    assert model(*GIVEN, kept=KEPT).isnan().all()  # the last block attends to them


@pytest.mark.parametrize("recomputation", ["full", "selective"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_with_activation_checkpointing(kind: str, recomputation: Any) -> None:
    gradients = []
    options = {} if kind == "tread" else {"path_drop": torch.tensor([False, True])}
    for mode in ("none", recomputation):
        model = routed(plain(), kind)
        apply_activation_checkpointing(list(model.blocks), mode)
        model(*GIVEN, kept=KEPT, **options).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients[0])
    torch.testing.assert_close(*gradients)


def test_autocast_keeps_the_residual_in_float32() -> None:
    model, dtypes = routed(plain(), "sprint"), []
    model.blocks[4].register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(*GIVEN, kept=KEPT)
    full = model(*GIVEN, kept=KEPT)
    assert dtypes == [torch.float32] * 2 and (low.float() - full).norm() < 0.03 * full.norm()


def test_fresh_parts() -> None:
    torch.manual_seed(0)
    model = LightningDiT(latent_size=4, width=384, depth=5, heads=6, routing=RoutingConfig("sprint"))
    assert float(model.mask_token.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert not model.fusion.bias.any() and float(model.fusion.weight.detach().std()) == pytest.approx(0.0417, rel=0.02)
    names = set(model.state_dict()) - set(LightningDiT(model.config, routing=RoutingConfig("tread")).state_dict())
    assert names == {"mask_token", "fusion.weight", "fusion.bias"}


@pytest.mark.parametrize(
    ("routing", "words"),
    [
        ({"kind": "other"}, "routing.kind must be one of none, sprint, tread, got 'other'"),
        ({"kind": "tread", "drop": 1.0}, "routing.drop must be at least 0 and below 1, got 1.0"),
        ({"kind": "sprint", "path_drop": -0.1}, "routing.path_drop must be at least 0 and below 1"),
        ({"kind": "sprint", "full_after_images": -1}, "routing.full_after_images must be at least 0"),
        ({"kind": "sprint", "start": 3}, "start < stop <= 5, the number of blocks, got 3 and 2"),
        ({"kind": "tread", "stop": 6}, "start < stop <= 5, the number of blocks, got 2 and 6"),
    ],
)
@pytest.mark.parametrize("head", [False, True], ids=["LightningDiT", "DiTDH"])
def test_wrong_settings_are_refused(routing: dict[str, Any], words: str, head: bool) -> None:
    with pytest.raises(UserError, match=words):
        dataclasses.replace(plain(head).config, routing=RoutingConfig(**routing))


@pytest.mark.parametrize("head", [False, True], ids=["LightningDiT", "DiTDH"])
def test_auxiliary_head_of_a_routed_block_is_refused(head: bool) -> None:
    shape = plain(head).config
    with pytest.raises(UserError, match=r"auxiliary_block must not be from 3 to 4, the routed blocks, .* got 3"):
        dataclasses.replace(shape, auxiliary_block=3, routing=RoutingConfig("sprint", 2, 4))
    for routing in (RoutingConfig("sprint", 2, 4, drop=0.0), RoutingConfig("tread", 3, 4)):
        assert dataclasses.replace(shape, auxiliary_block=3, routing=routing).auxiliary_block == 3


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("none", {"kept": KEPT}, "kept must be None for a network without routing"),
        ("tread", {"path_drop": True}, "path_drop must be False for a network without routing.kind sprint"),
        ("sprint", {"kept": KEPT, "hidden_blocks": (1, 4)}, "hidden_blocks must not be from 2 to 4, .* got 4"),
        ("sprint", {"path_drop": True, "hidden_blocks": (2,)}, "hidden_blocks must not be from 2 to 4, .* got 2"),
        ("sprint", {"hidden_blocks": (6,)}, "hidden_blocks must be from 1 to 5, got 6"),
    ],
)
def test_wrong_arguments_are_refused(kind: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        routed(plain(), kind)(*GIVEN, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_tokens_of_dense_blocks(kind: str) -> None:
    model = routed(plain(), kind)
    hidden: tuple[Tensor, ...]
    velocity, hidden, *_ = model(*GIVEN, kept=KEPT, hidden_blocks=(1, 5))
    assert torch.equal(velocity, model(*GIVEN, kept=KEPT)) and [h.shape for h in hidden] == [(2, 16, 16)] * 2
    assert torch.equal(hidden[0], plain()(*GIVEN, hidden_blocks=(1,)).hidden[0])


def test_share_of_kept_tokens_over_a_run() -> None:
    routing = RoutingConfig("sprint", full_after_images=100)
    assert [routing.kept(256, seen) for seen in (0, 99, 100)] == [64, 64, 256]
    assert RoutingConfig().kept(256, 0) == 256 and RoutingConfig("tread", drop=0.99).kept(16, 0) == 1
    assert [routing.span(depth) for depth in (12, 28)] == [(2, 10), (2, 26)]
