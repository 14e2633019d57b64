"""Networks that cost nothing in place of the pretrained ones of a frontier."""

from collections.abc import Callable

import torch
from measured_runs import tiny_network
from tiny_teacher import tiny_teacher
from torch import Tensor, nn

from vavae.frontier import cells
from vavae.losses import LPIPS
from vavae.metrics import FeatureNetwork
from vavae.stages import train_tokenizer

_load = cells.load_feature_network


class _Difference(nn.Module):
    """In place of LPIPS."""

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        return (images - others).abs().mean((1, 2, 3))


def _network(name: str, device: torch.device) -> FeatureNetwork:
    return tiny_network(name, device) if name.startswith("teacher:dinov2") else _load(name, device)


def use_tiny_networks(replace: Callable[[object, str, object], None] = setattr) -> None:
    """Load tiny networks for all measurements and teachers; a wrong name of a feature network stays an error.

    Args:
        replace: `monkeypatch.setattr`, which a test undoes.
    """
    replace(cells, "load_feature_network", _network)
    for module in (cells, train_tokenizer):
        replace(module, "load_teacher", lambda *_, **__: tiny_teacher())
    replace(LPIPS, "pretrained", lambda network: _Difference())
