"""The whole network compiles into one graph: any switch, any grid, training with checkpointing and autocast."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from vavae.training.activation_checkpointing import apply_activation_checkpointing
from vavae.transformer import LightningDiT

TINY = {"latent_size": 4, "latent_channels": 3, "width": 32, "depth": 1, "heads": 2, "num_classes": 5}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def network(**changes: object) -> LightningDiT:
    torch.manual_seed(0)
    model = LightningDiT(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(height: int, width: int, size: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, height, width), torch.rand(size), torch.randint(0, 6, (size,))


@pytest.mark.slow
def test_other_switches_have_one_graph() -> None:
    """Those of the default are on in the tests below."""
    model = network(
        swiglu=False, rope=False, rmsnorm=False, qk_norm=True, adaln_shift=False, learn_sigma=True, patch_size=2
    ).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    arguments = batch(4, 4)
    assert torch.equal(compiled(*arguments), model(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["recompute", "interpolate"])
def test_grids_of_all_sizes_share_few_graphs(positions: str) -> None:
    model = network(positions=positions).eval()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for height, width in [(4, 4), (6, 8), (8, 6), (5, 9), (9, 5), (7, 3), (6, 8), (4, 4)]:
        arguments = batch(height, width)
        torch.testing.assert_close(compiled(*arguments), model(*arguments), rtol=0, atol=0)
    assert counter.frame_count <= 4  # the trained grid, the first other one, and its general form


@pytest.mark.slow
def test_training_step_with_checkpointing_and_autocast() -> None:
    model, expected = network(label_dropout=0.0), network(label_dropout=0.0)
    for each in (model, expected):
        each.train()
        apply_activation_checkpointing(list(each.blocks), "full")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    arguments = batch(4, 4)
    for each in (compiled, expected):
        with torch.autocast("cpu", torch.bfloat16):
            loss = each(*arguments).float().square().mean()
        loss.backward()
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-2, atol=2e-2 * b.grad.abs().max().item(), msg=name)


@pytest.mark.slow
def test_random_label_drop_stays_in_the_graph() -> None:
    model = network(label_dropout=1.0).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x, t, y = batch(4, 4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, t, y), model.eval()(x, t, torch.full_like(y, 5)))
