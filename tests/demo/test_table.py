import math

import pytest

from vavae.demo.contents import MetricRow
from vavae.demo.table import MetricLine, metric_lines, ratio_axis
from vavae.report.numbers import duration, number, plain

RUNS = ("aligned", "unaligned")


def lines_of(*rows: MetricRow) -> tuple[MetricLine, ...]:
    return metric_lines(rows, RUNS)[1]


def pair(
    name: str, first: float | None, second: float | None, better: str | None = "higher", **protocol: object
) -> list:
    return [MetricRow(name, run, v, better, protocol) for run, v in zip(RUNS, (first, second), strict=True)]  # type: ignore[arg-type]


def test_rows_of_one_name_share_a_line_with_a_column_per_run() -> None:
    columns, lines = metric_lines([*reversed(pair("PSNR", 24.0, 25.0)), *pair("FID", 3.0, 5.0, "lower")], RUNS)
    assert columns == RUNS
    assert [line.name for line in lines] == ["PSNR", "FID"]
    assert [[cell.value for cell in line.cells] for line in lines] == [[24.0, 25.0], [3.0, 5.0]]
    assert [[cell.best for cell in line.cells] for line in lines] == [[False, True], [True, False]]
    assert [line.difference for line in lines] == [-1.0, -2.0]
    assert [line.gain for line in lines] == [False, True]
    assert [line.ratio for line in lines] == [0.96, 0.6]


def test_no_direction_no_winner() -> None:
    (line,) = lines_of(*pair("parameters", 5, 7, None))
    assert not any(cell.best for cell in line.cells)
    assert line.gain is None
    assert line.difference == -2


def test_equal_numbers_have_no_winner() -> None:
    (line,) = lines_of(*pair("SSIM", 0.5, 0.5))
    assert not any(cell.best for cell in line.cells)
    assert (line.gain, line.difference, line.ratio) == (None, 0.0, 1.0)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_what_was_not_measured_is_not_compared(missing: float | None) -> None:
    (line,) = lines_of(*pair("SSIM", 0.5, missing))
    assert not any(cell.best for cell in line.cells)
    assert (line.gain, line.difference, line.ratio) == (None, None, None)


def test_a_run_without_the_metric_has_an_empty_cell_and_others_get_their_column() -> None:
    rows = [MetricRow("A", "aligned", 1.0), MetricRow("B", "published", 2.0), MetricRow("C", "", 3.0)]
    columns, (a, b, c) = metric_lines(rows, RUNS)
    assert columns == ("aligned", "published")
    assert [cell.value for cell in a.cells] == [1.0, None]
    assert [cell.value for cell in b.cells] == [None, 2.0]
    assert [cell.value for cell in c.cells] == [3.0]


def test_lines_of_one_name_are_told_apart_by_what_differs_in_their_protocols() -> None:
    first, second = lines_of(
        *pair("gFID", 120.0, 150.0, "lower", guidance=1.0, samples=500),
        *pair("gFID", 90.0, 130.0, "lower", guidance=2.5, samples=500),
    )
    assert (first.variant, second.variant) == ("guidance 1", "guidance 2.5")
    assert first.meaning
    assert not second.meaning, "the meaning is told once"


def test_protocols_are_split_into_what_is_common_and_what_is_not() -> None:
    rows = [
        MetricRow("FID", "aligned", 1.0, "lower", {"samples": 500, "network_sha256": "abc", "steps": 50}),
        MetricRow("FID", "unaligned", 2.0, "lower", {"samples": 500, "network_sha256": "def"}),
    ]
    (line,) = lines_of(*rows)
    assert line.protocol == (("samples", "500"),)
    assert line.differing == (
        ("aligned", (("network sha256", "abc"), ("steps", "50"))),
        ("unaligned", (("network sha256", "def"),)),
    )


@pytest.mark.parametrize(
    ("values", "decimals"),
    [((98.7, 131.2), 1), ((24.81, 25.1), 2), ((0.712, 0.098), 4), ((1000.0, 0.001), None), ((3, 4), None)],
)
def test_numbers_of_a_line_agree_in_their_decimals_where_they_can(values: tuple, decimals: int | None) -> None:
    (line,) = lines_of(*pair("x", *values))
    assert line.decimals == decimals


def test_explanations_come_from_the_row_or_else_the_glossary() -> None:
    own, none, known, unknown = lines_of(
        MetricRow("PSNR a", "aligned", 1.0, explanation="Mine."),
        MetricRow("PSNR b", "aligned", 1.0, explanation=""),
        MetricRow("PSNR c", "aligned", 1.0),
        MetricRow("frobnication", "aligned", 1.0),
    )
    assert own.meaning == "Mine."
    assert none.meaning == unknown.meaning == ""
    assert "decibels" in known.meaning


def test_the_axis_of_ratios_holds_most_and_clips_the_rest() -> None:
    lines = lines_of(*pair("a", 1.2, 1.0), *pair("b", 1.0, 1.1), *pair("c", 1.0, 1.0), *pair("d", 50.0, 1.0))
    axis = ratio_axis(lines)
    assert axis is not None
    assert axis.extent == 1.25
    places = [axis.place(line.ratio) for line in lines if line.ratio is not None]
    assert places[0].percent == pytest.approx(50 + 50 * math.log(1.2) / math.log(1.25))
    assert places[1].percent < 50
    assert places[2].percent == 50
    assert (places[3].percent, places[3].clipped) == (100, True)
    assert not places[0].clipped
    assert ratio_axis(lines_of(*pair("a", -1.0, 1.0))) is None


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
