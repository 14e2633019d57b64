"""Turn log lines into curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vavae.report.glossary import Term, term_of

LogLine = Mapping[str, float | None]

_LOG_RATIO = 20.0
_NOT_DRAWN = ("images", "step", "lr")
_WINDOW_SHARE = 1 / 15  # of the log, over which a smoothed point averages


@dataclass(frozen=True, eq=False)
class Curve:
    """One logged term of one run."""

    run: int  # number of the run in the report; decides its color and dashes
    images: NDArray[np.float64]  # (T,) images seen, rising
    values: NDArray[np.float64]  # (T,) as logged; NaN where nothing finite was logged

    @property
    def last(self) -> float:
        """Return the mean over the last tenth of the finite values, less noisy than the last one."""
        finite = self.values[np.isfinite(self.values)]
        return float(finite[-max(1, len(finite) // 10) :].mean())


@dataclass(frozen=True)
class Panel:
    """One term of all runs that logged it."""

    key: str  # name in the log
    term: Term  # title and meaning
    curves: tuple[Curve, ...]  # one per run that has it, in the order of runs

    @property
    def logarithmic(self) -> bool:
        """Whether the axis is logarithmic: all values are positive and span more than a factor of 20."""
        values = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in self.curves])
        if values.min() <= 0:
            return False
        low, high = np.percentile(values, (0.5, 99.5))
        return bool(high / low > _LOG_RATIO)


def read_panels(logs: Sequence[Sequence[LogLine]], terms: Mapping[str, Term]) -> tuple[list[Panel], list[str]]:
    """Return panels for every term that some run logged, and the keys of terms that were off.

    Args:
        logs: Log lines of each run, as in `metrics.jsonl`.
        terms: Known terms by key. They come first, in this order; other keys follow by name.

    Returns:
        Panels, and the keys whose every value, in every run, is zero or missing: these are not drawn. A run whose
        values are all zero is left out of a panel that has other runs. A curve begins with its first value that is
        not zero.
    """
    keys = {key for lines in logs for line in lines for key in line if key.partition("/")[0] not in _NOT_DRAWN}
    panels, off = [], []
    for key in [*(key for key in terms if key in keys), *sorted(keys - terms.keys())]:
        curves = []
        for run, lines in enumerate(logs):
            images, values = (np.array([_number(line.get(name)) for line in lines]) for name in ("images", key))
            images, values = images[np.isfinite(images)], values[np.isfinite(images)]
            on = np.flatnonzero(np.isfinite(values) & (values != 0))
            if len(on):
                # A term that starts late is logged as zero until then; skipped steps really are zero.
                if not key.startswith("skipped/"):
                    values[: on[0]] = np.nan
                curves.append(Curve(run, images, values))
        if curves:
            panels.append(Panel(key, term_of(key, terms), tuple(curves)))
        else:
            off.append(key)
    return panels, off


def smoothed(values: NDArray[np.float64], logarithmic: bool = False) -> NDArray[np.float64]:
    """Return the centered moving average over a fifteenth of the points, cut at the ends; NaN values have no weight.

    Args:
        values: (T,) with NaN where missing.
        logarithmic: Whether to average logarithms; all finite values must then be positive.

    Returns:
        (T,), NaN where `values` is NaN.
    """
    half = int(len(values) * _WINDOW_SHARE / 2)
    finite = np.isfinite(values)
    filled = np.where(finite, values, 1.0)
    filled = np.where(finite, np.log(filled) if logarithmic else filled, 0.0)
    window = np.ones(2 * half + 1)
    weight = np.convolve(finite.astype(float), window)[half : half + len(values)]
    total = np.convolve(filled, window)[half : half + len(values)]
    mean = np.divide(total, weight, out=np.full(len(values), np.nan), where=finite)
    return np.exp(mean) if logarithmic else mean


def _number(value: float | None) -> float:
    return float(value) if value is not None and math.isfinite(value) else math.nan
