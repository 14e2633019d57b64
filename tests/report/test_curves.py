import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vavae.report.curves import read_panels, smoothed
from vavae.report.glossary import GENERATOR_TERMS, TOKENIZER_TERMS, Term, term_of

NAN = float("nan")


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(NAN)), min_size=1, max_size=120))
def test_smoothing_is_the_mean_of_finite_values(values: list[float]) -> None:
    array = np.array(values)
    half = int(len(values) / 15 / 2)
    result = smoothed(array)
    for i, value in enumerate(values):
        window = array[max(0, i - half) : i + half + 1]
        if math.isnan(value):
            assert math.isnan(result[i])
        else:
            assert result[i] == pytest.approx(np.nanmean(window), abs=1e-6)


def test_logarithmic_smoothing_is_the_geometric_mean() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=90))
    expected = np.exp(smoothed(np.log(values)))
    np.testing.assert_allclose(smoothed(values, logarithmic=True), expected)


def panels_of(*logs: list[dict]) -> tuple[dict, list[str]]:
    panels, off = read_panels(logs, TOKENIZER_TERMS)
    return {panel.key: panel for panel in panels}, off


def test_order_of_terms() -> None:
    line = {"images": 1.0, "step": 1, "zzz": 1.0, "gradient_norm/a": 1.0, "kl": 1.0, "total": 1.0}
    panels, off = panels_of([line])
    assert list(panels) == ["kl", "total", "gradient_norm/a", "zzz"]
    assert off == []


def test_missing_and_infinite_values_become_gaps() -> None:
    lines = [
        {"images": 1.0, "kl": 5.0},
        {"images": 2.0, "kl": None},
        {"images": 3.0, "kl": NAN},
        {"images": 4.0, "kl": math.inf},
        {"images": 5.0},
        {"images": 6.0, "kl": 7},
    ]
    curve = panels_of(lines)[0]["kl"].curves[0]
    np.testing.assert_array_equal(curve.images, [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(curve.values, [5, NAN, NAN, NAN, NAN, 7])
    assert curve.last == 7


def test_terms_that_were_off_are_not_drawn() -> None:
    aligned = [{"images": 1.0, "cosine": 0.5, "adversarial": 0.0, "pixel": None}]
    unaligned = [{"images": 1.0, "cosine": 0.0, "adversarial": 0.0}]
    panels, off = panels_of(aligned, unaligned)
    assert [curve.run for curve in panels["cosine"].curves] == [0]
    assert off == ["pixel", "adversarial"]
    assert [curve.run for curve in panels_of(unaligned, aligned)[0]["cosine"].curves] == [1]


def test_late_terms_start_late_but_not_skipped_steps() -> None:
    lines = [{"images": float(i), "adversarial": a, "skipped/x": a} for i, a in enumerate([0.0, 0.0, -1.0, 0.0])]
    panels, _ = panels_of(lines)
    np.testing.assert_array_equal(panels["adversarial"].curves[0].values, [NAN, NAN, -1, 0])
    np.testing.assert_array_equal(panels["skipped/x"].curves[0].values, [0, 0, -1, 0])


def test_wide_ranges_have_logarithmic_axes() -> None:
    def logarithmic(values: list[float]) -> bool:
        return panels_of([{"images": float(i), "kl": v} for i, v in enumerate(values)])[0]["kl"].logarithmic

    assert logarithmic(list(np.geomspace(1, 100, 50)))
    assert not logarithmic(list(np.linspace(5, 30, 50)))
    assert not logarithmic([-1, *np.geomspace(1, 1000, 50)])
    assert not logarithmic([1.0] * 500 + [1e6]), "one spike is not enough"


def test_last_value_is_the_mean_of_the_last_tenth() -> None:
    lines = [{"images": float(i), "kl": float(i + 1)} for i in range(40)]
    assert panels_of(lines)[0]["kl"].curves[0].last == pytest.approx(np.mean([37, 38, 39, 40]))


def test_no_logs_no_panels() -> None:
    assert panels_of([], []) == ({}, [])


@pytest.mark.parametrize("terms", [TOKENIZER_TERMS, GENERATOR_TERMS])
def test_terms_have_titles_and_meanings(terms: dict[str, Term]) -> None:
    for key, term in terms.items():
        assert term_of(key, terms) is term
        assert term.title
        assert term.meaning.endswith(".")
    assert term_of("gradient_norm/model", terms).title == "Gradient norm: model"
    assert term_of("some_thing/new", terms).title == "some thing: new"
