"""`vavae evaluate compare`: only numbers of one protocol are compared, unless forced."""

import json
from dataclasses import replace

import pytest

from vavae.cli import run
from vavae.errors import UserError
from vavae.evaluation.compare import compare_files, pair_records, read_records
from vavae.evaluation.records import write_records
from vavae.evaluation.table import distinct_names, draw
from vavae.metrics import MeasurementProtocol, MetricRecord

PROTOCOL = MeasurementProtocol(
    samples=50_000, label_protocol="random", guidance_scale=1.0, feature_network="inception", checkpoint="a"
)
FID = MetricRecord("FID", 5.1, PROTOCOL, higher_is_better=False)
SCORE = MetricRecord("Inception Score", 130.0, PROTOCOL, higher_is_better=True)


def changed(record: MetricRecord, value: float, **fields: object) -> MetricRecord:
    return replace(record, value=value, protocol=replace(record.protocol, **fields))


@pytest.fixture
def files(tmp_path):
    def write(name, *records):
        write_records(tmp_path / name, records)
        return str(tmp_path / name)

    return write


def test_results_of_one_protocol_are_compared(files, capsys):
    a = files("a.json", FID, SCORE)
    b = files("b.json", changed(SCORE, 120.0, checkpoint="b"), changed(FID, 4.9, checkpoint="b"))
    pairs = compare_files(a, b)
    assert [(pair.first.name, round(pair.difference, 6)) for pair in pairs] == [("FID", -0.2), ("Inception Score", -10)]
    assert run(["evaluate", "compare", a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "-0.2000" in lines[1] and "better" in lines[1]
    assert "-10.0000" in lines[2] and "worse" in lines[2]


def test_other_protocols_are_refused(files, capsys):
    a = files("a.json", FID)
    b = files("b.json", changed(FID, 4.9, label_protocol="balanced", samples=10_000, seed=3))
    assert run(["evaluate", "compare", a, b]) == 2
    error = capsys.readouterr().err
    assert "samples: 50,000 against 10,000 (FID)" in error
    assert "label_protocol: random against balanced" in error and "seed: not stated against 3" in error
    assert "--force" in error and len(error.strip().splitlines()) == 1
    assert run(["evaluate", "compare", a, b, "--force"]) == 0
    out = capsys.readouterr().out
    assert "not alike" in out and "label_protocol: random against balanced" in out and "-0.2000" in out


def test_rows_and_columns_are_distinct(files, tmp_path, capsys):
    """One metric in two conventions and by two networks, from two files of one name."""
    records = [
        changed(FID, 1.0, convention="strict"),
        changed(FID, 2.0, convention="published"),
        changed(FID, 3.0, convention="strict", feature_network="teacher:x"),
    ]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    assert run(["evaluate", "compare", files("a/r.json", *records), files("b/r.json", *records)]) == 0
    heading, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert heading == ["metric", "convention", "network", "a/r", "b/r", "difference"]
    assert [row[:4] for row in rows] == [
        ["FID", "strict", "inception", "1.0000"],
        ["FID", "published", "inception", "2.0000"],
        ["FID", "strict", "teacher:x", "3.0000"],
    ]


def test_paths_are_named_by_distinct_ends():
    same_end = distinct_names(["/runs/a/generator", "/runs/b/generator"])
    assert list(same_end.values()) == ["a/generator", "b/generator"]
    assert distinct_names(["/runs/a/flat", "s1", "s1"]) == {"/runs/a/flat": "flat", "s1": "s1"}
    assert distinct_names(["r", "./r"]) == {"r": "r", "./r": "./r"} and distinct_names([]) == {}


def test_only_guidance_scales_are_joined_by_lines():
    sets = [changed(FID, value, checkpoint=name) for name, value in (("flat", 3.0), ("s1", 2.0), ("s2", 4.0))]
    (axes,) = draw(sets).axes
    assert [line.get_linestyle() for line in axes.lines] == ["None"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["flat", "s1", "s2"]
    scales = [changed(record, 1.0, guidance_scale=scale) for record in sets for scale in (1.0, 2.0)]
    (axes,) = draw(scales).axes
    assert [line.get_linestyle() for line in axes.lines] == ["-"] * 3
    # Each convention has its panel.
    assert len(draw([changed(r, 1.0, convention=c) for r in sets for c in ("strict", "published")]).axes) == 2
    assert draw(sets[:1]) is None


def test_equal_guidance_scales_are_paired():
    scales = [changed(FID, float(scale), guidance_scale=float(scale)) for scale in (1, 2, 3)]
    others = [replace(record, value=10 * record.value) for record in reversed(scales)]
    pairs = pair_records(scales, others)
    assert [(pair.first.value, pair.second.value) for pair in pairs] == [(1, 10), (2, 20), (3, 30)]
    assert all(not pair.obstacles for pair in pairs)
    alone = pair_records(scales, [replace(scales[1], value=7)])
    assert [(pair.first.value, pair.second.value) for pair in alone] == [(2, 7)]


def test_other_files_are_refused(files, tmp_path, capsys):
    a = files("a.json", FID)
    with pytest.raises(UserError, match=r"absent\.json"):
        read_records(tmp_path / "absent.json")
    for text in ("no json", "[1]", '[{"name": "FID"}]', "{}3"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="not a result of"):
            read_records(tmp_path / "bad.json")
    with pytest.raises(UserError, match="share no metric"):
        compare_files(a, files("c.json", SCORE))
    assert run(["evaluate", "compare", a]) == 2
    assert "two JSON files" in capsys.readouterr().err


def test_sizes_are_printed_as_in_recipes(tmp_path):
    for name, size in (("square", 24), ("wide", (24, 40))):
        records = [MetricRecord("PSNR", 20.0, MeasurementProtocol(samples=10, image_size=size), "dB", True)]
        write_records(tmp_path / f"{name}.json", records)
    with pytest.raises(UserError, match=r"image_size: 24 against 24x40 \(PSNR\)"):
        compare_files(tmp_path / "square.json", tmp_path / "wide.json")


def test_nan_has_no_verdict(files, capsys):
    a, b = files("a.json", replace(FID, value=float("nan"))), files("b.json", FID)
    assert run(["evaluate", "compare", a, b]) == 0
    out = capsys.readouterr().out
    assert "+nan" in out and "better" not in out and "worse" not in out


def test_metrics_of_one_file_only_are_named(files, capsys):
    a, b = files("a.json", FID, SCORE), files("b.json", FID, changed(FID, 4.0, seed=1))
    assert run(["evaluate", "compare", a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"only in {a}: Inception Score" in lines and f"only in {b}: FID" in lines


PLAIN = FID.to_dict()
DAMAGED = {
    "nested": "[" * 100_000,
    "an object": {},
    "samples": [PLAIN | {"protocol": PLAIN["protocol"] | {"samples": "many"}}],
    "network": [PLAIN | {"protocol": PLAIN["protocol"] | {"feature_network": [1]}}],
    "hash": [PLAIN | {"protocol": PLAIN["protocol"] | {"reference_hash": 5}}],
    "checkpoint": [PLAIN | {"protocol": PLAIN["protocol"] | {"checkpoint": 7}}],
    "direction": [PLAIN | {"higher_is_better": "yes"}],
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_damaged_results_are_refused_in_one_line(fault, files, tmp_path, capsys):
    content = DAMAGED[fault]
    (tmp_path / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert run(["evaluate", "compare", str(tmp_path / "a.json"), files("b.json", FID)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.json: not a result of 'vavae evaluate'" in line
