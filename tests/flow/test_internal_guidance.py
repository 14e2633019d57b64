"""The auxiliary head of the transformers, its loss, and guidance by it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vavae.errors import UserError
from vavae.flow import FlowConfig, Guidance, flow_matching_loss, sample
from vavae.grids import unpatchify
from vavae.transformer import DiTDH, LightningDiT, Transformer

SHAPE: dict[str, Any] = {"latent_size": 4, "latent_channels": 3, "num_classes": 5, "label_dropout": 0.0}
NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 4])


def lightning(**more: Any) -> LightningDiT:
    return LightningDiT(**SHAPE, width=16, depth=3, heads=2, **more)


def wide(**more: Any) -> DiTDH:
    return DiTDH(**SHAPE, widths=(16, 24), depths=(3, 1), heads=(2, 3), **more)


def trained(make: Callable[..., Transformer], **more: Any) -> Transformer:
    """Return a network without zeros, as after training."""
    torch.manual_seed(0)
    network = make(**{"auxiliary_block": 2, **more})
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


both = pytest.mark.parametrize("make", [lightning, wide])


@both
def test_head_sees_time_and_tokens_of_its_block(make: Callable[..., Transformer]) -> None:
    network, t = trained(make), torch.tensor([0.3, 0.8])
    output = network(NOISE, t, LABELS, auxiliary=True, hidden_blocks=(3, 2))
    (third, second), sign = output.hidden, -1 if make is wide else 1
    time = network.t_embedder(1 - t if make is wide else t)[:, None]
    condition = time + network.y_embedder(LABELS, None)[:, None]
    condition = F.silu(condition) if make is wide else condition
    patches = network.auxiliary_head(F.silu(time + second), condition)
    torch.testing.assert_close(output.auxiliary, sign * unpatchify(patches, 1, (4, 4)))
    assert torch.equal(output.prediction, network(NOISE, t, LABELS)) and not torch.equal(third, second)
    assert {name.split(".")[0] for name in network.state_dict()} >= {"auxiliary_head"}


@both
def test_new_head_predicts_zero(make: Callable[..., Transformer]) -> None:
    output = make(auxiliary_block=1)(NOISE, torch.tensor([0.3, 0.8]), LABELS, auxiliary=True)
    assert not output.auxiliary.any()


@both
@pytest.mark.parametrize("block", [0, 4])
def test_block_must_exist(make: Callable[..., Transformer], block: int) -> None:
    with pytest.raises(
        UserError, match=f"auxiliary_block must be null or from 1 to 3, the number of blocks, got {block}"
    ):
        make(auxiliary_block=block)


@both
def test_network_without_head_is_refused(make: Callable[..., Transformer]) -> None:
    network = make()
    assert not any("auxiliary" in name for name in network.state_dict())
    with pytest.raises(UserError, match="auxiliary must be False for a transformer without an auxiliary head"):
        sample(network, NOISE, LABELS, steps=3, guidance=Guidance(2.0, 0.0, kind="internal"))


@both
def test_one_step_is_the_formula(make: Callable[..., Transformer]) -> None:
    network = trained(make)
    output = network(NOISE, torch.zeros(2), LABELS, auxiliary=True)
    guided = output.auxiliary + 1.78 * (output.prediction - output.auxiliary)
    passes: list[Tensor] = []
    network.register_forward_hook(lambda module, given, result: passes.append(given[0]))
    drawn = sample(network, NOISE, LABELS, steps=2, guidance=Guidance(1.78, 0.0, kind="internal"))
    torch.testing.assert_close(drawn, NOISE + guided)
    assert [len(x) for x in passes] == [2]  # one pass, of the batch alone


@both
def test_scale_one_is_no_guidance_bit_for_bit(make: Callable[..., Transformer]) -> None:
    network = trained(make)
    plain = sample(network, NOISE, LABELS, steps=5)
    assert torch.equal(sample(network, NOISE, LABELS, steps=5, guidance=Guidance(1.0, 0.0, kind="internal")), plain)
    assert not torch.equal(sample(network, NOISE, LABELS, steps=5, guidance=Guidance(2.0, 0.0, kind="internal")), plain)


def test_weak_model_is_refused() -> None:
    guidance = Guidance(2.0, 0.0, kind="internal")
    with pytest.raises(UserError, match="kind must be cfg or zero_star with a weak_model, got internal"):
        sample(trained(lightning), NOISE, LABELS, steps=3, guidance=guidance, weak_model=trained(lightning))


@pytest.mark.parametrize("flow", [FlowConfig(), FlowConfig(prediction="data", space="velocity", floor=0.05)])
def test_loss_of_the_head_is_added(flow: FlowConfig) -> None:
    network, t = trained(lightning), torch.tensor([0.3, 0.97])
    data, drop = torch.randn_like(NOISE), torch.zeros(2, dtype=torch.bool)
    terms = flow.loss(network, data, LABELS, NOISE, t, drop)

    def alone(head: str) -> dict[str, Tensor]:
        def one(*given: Any, **options: Any) -> Tensor:
            return getattr(network(*given, auxiliary=True, **options), head)

        return flow.loss(one, data, LABELS, NOISE, t, drop)

    torch.testing.assert_close(terms["auxiliary"], alone("auxiliary")["total"])
    torch.testing.assert_close(terms["mse"], alone("prediction")["mse"])
    torch.testing.assert_close(terms["total"], alone("prediction")["total"] + terms["auxiliary"])
    assert "auxiliary" not in flow_matching_loss(trained(lightning, auxiliary_block=None), data, LABELS)


@pytest.mark.slow
def test_compiled_network_has_the_loss_of_its_head() -> None:
    network, data = trained(lightning), torch.randn_like(NOISE)
    given = {"noise": NOISE, "t": torch.tensor([0.3, 0.6])}
    expected = flow_matching_loss(network, data, LABELS, **given)
    found = flow_matching_loss(torch.compile(network, backend="eager", fullgraph=True), data, LABELS, **given)
    torch.testing.assert_close(found["auxiliary"], expected["auxiliary"])
