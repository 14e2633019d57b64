"""Numbers and settings as text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"


def number(value: float | int | str | None, digits: int = 4, decimals: int | None = None) -> str:
    """Return a number as text: a few digits, separated thousands, a dash for a missing or infinite one.

    >>> number(12345.678), number(0.123456), number(3), number(None), number(98.7, decimals=2)
    ('12,346', '0.1235', '3', '–', '98.70')

    Args:
        value: A number, or a text, which is returned unchanged.
        digits: Significant digits of numbers other than integers.
        decimals: Digits after the point; None uses `digits`.
    """
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return MISSING
    if decimals is None:
        if value != 0 and abs(value) < 1e-4:
            return f"{value:.{digits - 1}e}".replace("-", "−")
        decimals = places(value, digits)
    return f"{value:z,.{decimals}f}".replace("-", "−")


def places(value: float | int, digits: int = 4) -> int:
    """Return the digits after the point that show about `digits` significant ones; 0 for integers.

    Numbers below 0.1 have as many places as 0.1, or more to show two of their digits.
    """
    if isinstance(value, int) or value == 0:
        return 0
    exponent = math.floor(math.log10(abs(value)))
    return max(0, digits - 1 - max(exponent, -1), 1 - exponent if exponent < 0 else 0)


def duration(seconds: float) -> str:
    """Return seconds as text: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def plain(value: Any) -> str:
    """Return a setting as text: nested mappings and sequences in one line, short floats, None as "none"."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(key))} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ", ".join(plain(item) for item in value)
    return str(value)


def words(key: str) -> str:
    """Return a key as words: "feature_network" becomes "feature network"."""
    return key.replace("_", " ")
