"""Path-drop guidance: the weak branch is the network without label and without its routed blocks."""

import pytest
import torch

from vavae.errors import UserError
from vavae.flow import Guidance, sample
from vavae.transformer import LightningDiT
from vavae.transformer.routing import RoutingConfig

NOISE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4])


def network(kind: str = "sprint", **routing: float) -> LightningDiT:
    torch.manual_seed(0)
    options = RoutingConfig(kind, start=1, **routing)  # type: ignore[arg-type]
    model = LightningDiT(latent_size=4, latent_channels=3, width=16, depth=3, heads=2, num_classes=5, routing=options)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def drawn(model: LightningDiT, guidance: Guidance | None) -> torch.Tensor:
    return sample(model, NOISE, LABELS, steps=3, shift=1.0, guidance=guidance)


@torch.no_grad()
def test_samples_by_hand() -> None:
    """Two Euler steps, of which the second is guided."""
    model, x = network(), NOISE
    for t, scale in ((0.0, 1.0), (0.5, 3.0)):
        time = torch.full((2,), t)
        weak = model(x, time, torch.tensor([5, 5]), path_drop=True)
        x = x + 0.5 * (weak + scale * (model(x, time, LABELS) - weak))
    torch.testing.assert_close(drawn(model, Guidance(3.0, 0.25, kind="path_drop")), x)
    assert not torch.allclose(drawn(model, Guidance(3.0, 0.25)), x)


def test_scale_one_is_no_guidance() -> None:
    model = network()
    assert torch.equal(drawn(model, Guidance(1.0, 0.0, kind="path_drop")), drawn(model, None))


def test_weak_branch_skips_the_routed_blocks() -> None:
    model, calls = network(), []
    model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    drawn(model, Guidance(3.0, 0.0, kind="path_drop"))
    assert len(calls) == 2  # steps


@pytest.mark.parametrize(
    "model", [network("none"), network("tread"), network(path_drop=0.0)], ids=["none", "tread", "path_drop 0"]
)
def test_networks_without_dropped_paths_are_refused(model: LightningDiT) -> None:
    with pytest.raises(
        UserError, match=r"except for a network trained with routing\.kind sprint and routing\.path_drop"
    ):
        drawn(model, Guidance(3.0, kind="path_drop"))


def test_weak_model_is_refused() -> None:
    model = network()
    with pytest.raises(UserError, match="without a weak model, got path_drop"):
        sample(model, NOISE, LABELS, steps=3, guidance=Guidance(3.0, kind="path_drop"), weak_model=model)
