"""Checks that the loss terms share."""

from torch import Tensor

from vavae.errors import UserError


def check_not_negative(term: str, config: object, *names: str) -> None:
    """Raise UserError if a field of a term's config is negative or NaN; the message names it as `term.name`."""
    for name in names:
        value = getattr(config, name)
        if not value >= 0:  # also True for NaN
            raise UserError(f"{term}.{name} must be at least 0, got {value}")


def check_one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError if `value` is not one of `choices`."""
    if value not in choices:
        raise UserError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def check_same_shape(first: Tensor, second: Tensor, what: str) -> None:
    """Raise UserError unless both have the same shape (B, C, h, w); torch would broadcast or fail later."""
    if first.ndim != 4 or first.shape != second.shape:
        raise UserError(
            f"{what} must have the same shape (B, C, h, w), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
