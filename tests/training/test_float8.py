"""fp8 without its hardware."""

import pytest
import torch

from vavae.errors import UserError
from vavae.training.float8 import use_float8


def test_fp8_needs_its_hardware() -> None:
    with pytest.raises(UserError, match=r"fp8 needs a GPU of compute capability 8.9"):
        use_float8([], torch.device("cpu"))
