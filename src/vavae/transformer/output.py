"""What a transformer returns where more than its prediction is asked for."""

from typing import NamedTuple

from torch import Tensor


class TransformerOutput(NamedTuple):
    """A prediction, and what the same pass computed on the way.

    Attributes:
        prediction: (B, C, h, w) what the transformer returns alone otherwise.
        hidden: Tokens (B, T, width) after each of the blocks that were asked for.
        auxiliary: (B, C, h, w) the auxiliary head's prediction, if it was asked for.
        class_token: (B, D) velocity of the class token; None for a transformer without one.
    """

    prediction: Tensor
    hidden: tuple[Tensor, ...] = ()
    auxiliary: Tensor | None = None
    class_token: Tensor | None = None
