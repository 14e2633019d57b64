"""Weights of FID Inception: real ones, and ones made by a rule. Tests do not change them."""

import pytest
from plain_inception import published_state
from rules import inception_rule_weights, inception_shapes
from torch import Tensor

from vavae import assets
from vavae.errors import UserError
from vavae.metrics import FIDInception


@pytest.fixture(scope="session")
def fid_weights() -> dict[str, Tensor]:
    """Return the asset `fid-inception`. Only a failed download skips a test; weights that do not load are an error."""
    try:
        assets.fetch("fid-inception")
    except UserError as error:
        pytest.skip(f"not tested, since the weights of FID Inception cannot be fetched: {error}")
    return assets.load("fid-inception")


@pytest.fixture(scope="session")
def real_network(fid_weights: dict[str, Tensor]) -> FIDInception:
    return FIDInception.from_weights(fid_weights)


@pytest.fixture(scope="session")
def rule_weights() -> dict[str, Tensor]:
    """Return weights under the names of the asset, made by a rule."""
    return inception_rule_weights(inception_shapes())


@pytest.fixture(scope="session")
def published() -> dict[str, Tensor]:
    """Return the state dict of pytorch-fid's network, made by a rule."""
    return published_state()
