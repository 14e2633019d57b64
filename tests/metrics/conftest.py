"""The weights of FID Inception, for the tests that need the real ones."""

import pytest
from torch import Tensor

from vavae import assets
from vavae.errors import UserError


@pytest.fixture(scope="session")
def fid_weights() -> dict[str, Tensor]:
    """Return the asset `fid-inception`. Only a failed download skips a test; weights that do not load are an error."""
    try:
        assets.fetch("fid-inception")
    except UserError as error:
        pytest.skip(f"not tested, since the weights of FID Inception cannot be fetched: {error}")
    return assets.load("fid-inception")
