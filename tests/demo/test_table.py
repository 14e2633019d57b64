import math

import pytest

from vavae.demo.table import MetricLine, Row, metric_lines
from vavae.metrics import MeasurementProtocol, MetricRecord
from vavae.report.numbers import duration, number, plain

RUNS = ("aligned", "unaligned")


def row(name: str, run: str, value: float, higher: bool | None = True, **protocol: object) -> Row:
    settings = {"samples": 500} | protocol
    return run, MetricRecord(name, value, MeasurementProtocol(**settings), "", higher)  # type: ignore[arg-type]


def pair(name: str, first: float, second: float, higher: bool | None = True) -> list[Row]:
    return [row(name, run, value, higher) for run, value in zip(RUNS, (first, second), strict=True)]


def lines_of(*rows: Row) -> tuple[MetricLine, ...]:
    return metric_lines(rows, RUNS)


def test_numbers_of_one_name_share_a_line() -> None:
    lines = lines_of(*reversed(pair("PSNR", 24.0, 25.0)), *pair("FID", 3.0, 5.0, False))
    assert [line.name for line in lines] == ["PSNR", "FID"]
    assert [line.values for line in lines] == [(24.0, 25.0), (3.0, 5.0)]
    assert [line.best for line in lines] == [25.0, 3.0]
    assert [line.difference for line in lines] == [-1.0, -2.0]
    assert [line.gain for line in lines] == [False, True]


def test_no_direction_no_best() -> None:
    (line,) = lines_of(*pair("parameters", 5, 7, None))
    assert (line.best, line.gain, line.difference) == (None, None, -2)


def test_equal_numbers_have_no_best() -> None:
    (line,) = lines_of(*pair("SSIM", 0.5, 0.5))
    assert (line.best, line.gain, line.difference) == (None, None, 0.0)


@pytest.mark.parametrize("missing", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_not_compared(missing: float) -> None:
    (line,) = lines_of(*pair("SSIM", 0.5, missing))
    assert (line.best, line.gain, line.difference) == (None, None, None)


def test_run_without_a_metric_has_an_empty_cell() -> None:
    a, b = lines_of(row("A", "aligned", 1.0), row("B", "", 3.0))
    assert (a.values, b.values) == ((1.0, None), (3.0,))


def test_protocols_are_split_into_common_and_differing() -> None:
    (line,) = lines_of(
        row("FID", "aligned", 1.0, False, feature_network_hash="abc", steps=50),
        row("FID", "unaligned", 2.0, False, feature_network_hash="def"),
    )
    assert line.protocol == (("samples", "500"),)
    assert line.differing == (
        ("aligned", (("steps", "50"), ("feature network hash", "abc"))),
        ("unaligned", (("feature network hash", "def"),)),
    )


@pytest.mark.parametrize(
    ("values", "decimals"),
    [((98.7, 131.2), 1), ((24.81, 25.1), 2), ((0.712, 0.098), 4), ((1000.0, 0.001), None), ((3, 4), None)],
)
def test_numbers_of_a_line_have_equal_decimals(values: tuple, decimals: int | None) -> None:
    (line,) = lines_of(*pair("x", *values))
    assert line.decimals == decimals


def test_meanings_are_from_the_glossary() -> None:
    known, unknown = lines_of(row("PSNR", "aligned", 1.0), row("frobnication", "aligned", 1.0))
    assert "decibels" in known.meaning and unknown.meaning == ""


def test_numbers_as_text() -> None:
    found = [number(v) for v in (12345.678, 0.123456, 3, 1234567, None, math.nan, 0.0, 24.8149, -0.05, 1.5e-7, "text")]
    expected = ["12,346", "0.1235", "3", "1,234,567", "–", "–", "0", "24.81", "−0.0500", "1.500e−07", "text"]
    assert found == expected
    assert number(98.7, decimals=2) == "98.70"
    assert number(-0.0004, decimals=3) == "0.000"
    assert number(0.7123, 3) == "0.712"
    assert number(0.00042, 3) == "0.00042"


def test_durations_as_text() -> None:
    seconds = (0.04, 9.94, 9.97, 59.4, 59.6, 60, 200.2, 3599.7, 3600, 7500, math.nan)
    expected = ["0.0 s", "9.9 s", "10 s", "59 s", "1 min", "1 min", "3 min 20 s", "1 h", "1 h", "2 h 5 min", "–"]
    assert [duration(value) for value in seconds] == expected


def test_settings_as_text() -> None:
    value = {"solver_name": "euler", "range": (0.125, 1.0), "on": True, "extra": {"seed": 0, "hash": None}}
    assert plain(value) == "solver name euler, range 0.125, 1, on yes, extra seed 0, hash none"
    assert plain(0.1 + 0.2) == "0.3"
