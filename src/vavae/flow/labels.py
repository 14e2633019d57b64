"""Labels as a tensor of integers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vavae.errors import UserError


def integer_labels(labels: Tensor | Sequence[int], count: int, device: torch.device) -> Tensor:
    """Return labels as a (count,) int64 tensor on `device`.

    Raises:
        UserError: The labels are not integers, or not one per sample.
    """
    if labels is None:
        raise UserError(f"labels must be {count} integers, got None; without classes they are all 0")
    values = torch.as_tensor(labels, device=device)
    if values.shape != (count,):
        raise UserError(f"labels must have shape ({count},), one per sample, got {tuple(values.shape)}")
    if count and (values.is_floating_point() or values.dtype == torch.bool):
        raise UserError(f"labels must be integers, got {values.dtype}")
    return values.long()
