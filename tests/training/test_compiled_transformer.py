"""Compiled blocks: one graph for all blocks of a width, with the numbers of plain blocks."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from vavae.training.activation_checkpointing import Recomputation, apply_activation_checkpointing
from vavae.training.compile import Compilation, compile_network
from vavae.transformer import LightningDiT
from vavae.transformer.routing import RoutingConfig


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    found = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=found))
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: plain(self, backend=found, **options))
    return found


def network(depth: int = 3, channels: int = 3, seed: int = 0) -> LightningDiT:
    torch.manual_seed(seed)
    model = LightningDiT(
        latent_size=4, latent_channels=channels, width=24, depth=depth, heads=2, num_classes=5, label_dropout=0.0
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def step(called: nn.Module, model: LightningDiT) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, model.config.latent_channels, 4, 4, generator=generator)
    model.zero_grad()
    velocity = called(x, torch.rand(3, generator=generator), torch.tensor([0, 4, 5]))
    velocity.square().mean().backward()
    return velocity.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_one_graph_serves_every_block(counter: CompileCounterWithBackend, recompute: Recomputation) -> None:
    model = network()
    names = list(model.state_dict())
    expected, grads = step(model, model)
    apply_activation_checkpointing(list(model.blocks), recompute)
    called = compile_network(model, list(model.blocks), "blocks")
    found, compiled_grads = step(called, model)
    assert counter.frame_count == 1
    assert list(called.state_dict()) == names
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(compiled_grads, grads)


@pytest.mark.slow
def test_block_graph_serves_other_networks(counter: CompileCounterWithBackend) -> None:
    for depth, channels in ((2, 3), (5, 3), (3, 7)):
        model = network(depth, channels, seed=depth)
        expected, grads = step(model, model)
        found, compiled_grads = step(compile_network(model, list(model.blocks), "blocks"), model)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(compiled_grads, grads)
    assert counter.frame_count == 1


@pytest.mark.parametrize("how", ["blocks", True])
@pytest.mark.slow
def test_routing_has_one_graph_for_each_phase(counter: CompileCounterWithBackend, how: Compilation) -> None:
    """A phase with dropped tokens, then one without; a second step of each compiles nothing."""
    if how is True:
        counter.backend = "eager"  # compiles twice as fast; the test below compiles a backward pass
    plain = network(depth=3)
    model = LightningDiT(plain.config, routing=RoutingConfig("sprint", start=1))
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.nn.init.normal_(model.fusion.bias)
    kept = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :4]
    phases = [{"kept": kept, "path_drop": torch.tensor([True, False, False])}, {}]
    expected = [step(partial(model, **options), model) for options in phases]  # type: ignore[arg-type]
    called = compile_network(model, list(model.blocks), how)
    for options, (velocity, grads) in zip(phases, expected, strict=True):
        for repeat in range(2):
            before = counter.frame_count
            found, compiled_grads = step(partial(called, **options), model)  # type: ignore[arg-type]
            torch.testing.assert_close(found, velocity)
            torch.testing.assert_close(compiled_grads, grads)
            assert repeat == 0 or counter.frame_count == before
    assert counter.frame_count <= (3 if how == "blocks" else 2)  # dense and routed blocks


@pytest.mark.slow
def test_whole_network_is_one_graph(counter: CompileCounterWithBackend) -> None:
    model = network(depth=1)
    expected, grads = step(model, model)
    found, compiled_grads = step(compile_network(model, list(model.blocks), True), model)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(compiled_grads, grads)
    assert counter.frame_count == 1
    assert compile_network(model, list(model.blocks), False) is model
