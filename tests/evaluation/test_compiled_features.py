"""Compiled feature networks give the same features, with one graph."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from vavae.evaluation.features import compiled_features
from vavae.metrics import FeatureNetwork

CPU = torch.device("cpu")


class Layer(nn.Module):  # torch compiles no layer of its own alone
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 5))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).relu()


@pytest.mark.slow
def test_compiled_features_are_equal(counter: CompileCounterWithBackend) -> None:
    layer = Layer()

    def compute(pixels: Tensor) -> Tensor:
        return layer(pixels.flatten(1).float())

    network = FeatureNetwork("tiny", "tiny", CPU, compute, modules=(layer,))
    pixels = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8)
    said: list[str] = []
    compiled = compiled_features(network, True, 1, said.append)
    for part in (pixels, pixels[:2]):
        torch.testing.assert_close(compiled(part), network(part))
    assert counter.frame_count == 1 and said[0].startswith("compile: tiny, ")
    assert compiled_features(network, False, 1) is network
