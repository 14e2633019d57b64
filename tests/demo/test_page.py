import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_page import Page, pixels

from vavae.demo.contents import DemoReport, Gallery, Headline, MetricRow, RunReport, StepTiming
from vavae.demo.page import render_page, write_page
from vavae.report.pca import pca_maps

MakeReport = Callable[..., DemoReport]


@pytest.fixture
def full(make_report: MakeReport) -> tuple[DemoReport, Page]:
    report = make_report()
    return report, Page(render_page(report))


def test_the_page_needs_nothing_beside_it(full: tuple[DemoReport, Page]) -> None:
    _, page = full
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "poster", "srcset", "background"):
                assert value.startswith(("#", "data:")), f"{tag} {name} is {value}"
            assert not name.startswith("on")
            assert "http:" not in value
            assert "https:" not in value
    html = render_page(full[0])
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_references_and_ids_fit(full: tuple[DemoReport, Page]) -> None:
    ids = [attributes["id"] for _, attributes in full[1].elements if "id" in attributes]
    assert len(set(ids)) == len(ids), "an id is used twice"
    for _, attributes in full[1].elements:
        for name in ("href", "xlink:href"):
            if attributes.get(name, "").startswith("#"):
                assert attributes[name][1:] in ids
        for target in re.findall(r"url\(#([^)]*)\)", " ".join(attributes.values())):
            assert target in ids


def test_every_number_is_there_in_full(full: tuple[DemoReport, Page]) -> None:
    report, page = full
    values = [attributes["value"] for attributes in page.all("data")]
    for row in report.metrics:
        assert str(row.value) in values
    for step in report.steps:
        assert str(step.seconds) in values
    assert str(report.headline[0].value) in values
    for shown in (
        "24.81",
        "25.10",
        "98.8",
        "131.2",
        "22.46",
        "0.712",
        "0.712 aligned 0.099 unaligned",
        "1 min 15 s",
        "4.2 s",
        "1 min 20 s",
    ):
        assert shown in page.text, shown


def test_every_text_is_there(full: tuple[DemoReport, Page]) -> None:
    report, page = full
    texts = [report.title, report.subtitle, report.command, report.images_note, report.teacher_note]
    texts += [*report.findings, *report.machine, *report.machine.values(), *report.versions, *report.versions.values()]
    texts += [step.name for step in report.steps] + [step.detail for step in report.steps]
    for run in report.runs:
        texts += [run.name, run.guidance, run.formation_note, run.tsne_note]
    texts += [row.name for row in report.metrics] + ["train against test", "scale 1.5", "14 March 2026, 15:09 UTC"]
    for text in texts:
        assert text in page.text, text
    assert "discriminator" in page.text, "terms that were off are named"


def test_images_are_the_pixels_that_were_given(full: tuple[DemoReport, Page]) -> None:
    report, page = full
    name = report.class_names[int(report.original_labels[3])]  # type: ignore[index]
    np.testing.assert_array_equal(
        page.image(f"unaligned: reconstruction, image 4 ({name})"),
        report.runs[1].reconstructions[3],  # type: ignore[index]
    )
    np.testing.assert_array_equal(
        page.image(f"teacher: features, image 4 ({name})"),
        pca_maps(report.teacher_features)[3],  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(
        page.image(f"aligned: latents, image 4 ({name})"),
        pca_maps(report.runs[0].latents)[3],  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(page.image("aligned: sample 2 of cat"), report.runs[0].samples[7])  # type: ignore[index]
    np.testing.assert_array_equal(page.image("unaligned: sample 2 at t = 0.5"), report.runs[1].formation[1][1][1])
    originals = [image for image in page.all("img") if image["alt"].startswith("original: image 4 ")]
    assert len(originals) == 2
    for image in originals:
        np.testing.assert_array_equal(pixels(image["src"]), report.originals[3])


def test_everything_that_is_seen_is_also_said(full: tuple[DemoReport, Page]) -> None:
    _, page = full
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in str(page.all("meta"))


def test_curves_of_all_terms(full: tuple[DemoReport, Page]) -> None:
    labels = [svg["aria-label"] for svg in full[1].all("svg")]
    for title in ("Pixel error", "PSNR (dB)", "Alignment: cosine", "Adversarial loss", "Gradient norm: autoencoder"):
        assert sum(label.startswith(f"{title} against images seen") for label in labels) == 1
    (cosine,) = [label for label in labels if label.startswith("Alignment: cosine")]
    assert "unaligned" not in cosine
    assert sum(label.startswith("Total loss") for label in labels) == 2, "tokenizer and generator"
    assert sum(label.startswith("t-SNE map of 25 latents") for label in labels) == 2


def test_without_a_comparison_nothing_speaks_of_one(make_report: MakeReport) -> None:
    report = make_report()
    metrics = [row for row in report.metrics if row.run != "unaligned"]
    one = replace(report, runs=report.runs[:1], metrics=metrics, headline=report.headline[1:])
    page = Page(render_page(one))
    assert "unaligned" not in page.text
    assert not [cell for cell in page.all("th") if "difference" in cell.get("class", "")]
    assert "different latents" not in page.text
    assert "side by side" not in page.text
    assert "24.81" in page.text
    assert len(page.all("img")) < len(Page(render_page(report)).all("img"))


def test_the_barest_report(make_report: MakeReport) -> None:
    bare = make_report(
        subtitle="",
        command="",
        created="some day",
        machine={},
        versions={},
        images_note="",
        teacher_note="",
        steps=(),
        class_names=(),
        originals=np.zeros((0, 32, 32, 3), np.uint8),
        original_labels=None,
        teacher_features=None,
        runs=(RunReport("only"),),
        headline=(),
        metrics=(),
        findings=(),
    )
    page = Page(render_page(bare))
    assert page.all("img") == []
    assert page.all("table") == []
    assert page.all("svg") == []
    assert "some day" in page.text


def test_a_gallery_has_names_of_its_own(make_report: MakeReport) -> None:
    samples = np.random.default_rng(5).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    gallery = Gallery("Trained for a week.", samples, [1, 0, 1, 1, 0, 2], ("fern", "moss"), "guidance 9")
    page = Page(render_page(make_report(gallery=gallery)))
    for text in ("After longer training", "Trained for a week.", "guidance 9"):
        assert text in page.text
    np.testing.assert_array_equal(page.image("longer training: sample 3 of moss"), samples[3])
    np.testing.assert_array_equal(page.image("longer training: sample 1 of class 2"), samples[5])
    assert "After longer training" not in Page(render_page(make_report())).text
    with pytest.raises(ValueError, match="gallery: sample_labels: 2 for 6"):
        Gallery("", samples, [0, 1], ())


def test_no_labels(make_report: MakeReport) -> None:
    report = make_report()
    runs = [replace(run, tsne_labels=None, sample_labels=None) for run in report.runs]
    page = Page(render_page(replace(report, runs=runs, original_labels=None, class_names=("all",))))
    assert "Colours are classes" not in page.text
    np.testing.assert_array_equal(page.image("aligned: sample 20"), runs[0].samples[19])  # type: ignore[index]
    np.testing.assert_array_equal(page.image("aligned: reconstruction, image 10"), runs[0].reconstructions[9])  # type: ignore[index]


def test_labels_without_names_get_numbers(make_report: MakeReport) -> None:
    page = Page(render_page(make_report(class_names=("airplane",))))
    assert page.image("aligned: sample 1 of class 3").shape == (32, 32, 3)


def test_hostile_names_stay_text(make_report: MakeReport) -> None:
    evil = '<script>alert("x")</script>\'"&$x_{2}$<img src=http://a.b/c>'
    report = make_report()
    lines = [{**line, evil: 1.0 + i} for i, line in enumerate(report.runs[0].tokenizer_log)]
    run = replace(report.runs[0], name=evil, guidance=evil, formation_note=evil, tsne_note=evil, tokenizer_log=lines)
    hostile = replace(
        report,
        title=evil,
        subtitle=evil,
        command=evil,
        created=evil,
        machine={evil: evil},
        versions={"vavae": evil},
        images_note=evil,
        teacher_note=evil,
        steps=(StepTiming(evil, 1.0, evil),),
        class_names=[evil] * 10,
        runs=(run, replace(report.runs[1], name=evil + "2")),
        headline=(Headline(evil, evil, evil, evil),),
        metrics=[MetricRow(evil, evil, 1.0, "lower", {evil: {evil: evil}}, evil), MetricRow(evil, evil + "2", 2.0)],
        findings=(evil,),
    )
    html = render_page(hostile)
    page = Page(html)
    assert not page.all("script")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert "<script" not in html.lower()
    assert page.text.count(" ".join(evil.split())) > 15
    assert any(evil in image["alt"] for image in page.all("img"))
    assert any(evil in svg["aria-label"] for svg in page.all("svg"))


def test_images_of_other_shapes_keep_their_shape(make_report: MakeReport) -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (3, 20, 48, 3), dtype=np.uint8)
    large = rng.integers(0, 256, (2, 160, 144, 3), dtype=np.uint8)
    run = RunReport("wide", reconstructions=originals[:, ::-1], latents=rng.normal(size=(3, 5, 12, 2)), samples=large)
    report = make_report(
        originals=originals, original_labels=None, teacher_features=None, class_names=(), runs=(run,), metrics=()
    )
    html = render_page(report)
    page = Page(html)
    np.testing.assert_array_equal(page.image("wide: reconstruction, image 2"), originals[1, ::-1])
    assert page.image("wide: latents, image 1").shape == (5, 12, 3)
    assert page.image("wide: sample 2").shape == (160, 144, 3)
    styles = [attributes.get("style", "") for attributes in page.all("div")]
    assert any("--ratio: 48 / 20" in style for style in styles)
    assert any("--ratio: 144 / 160" in style for style in styles)
    assert [image["class"].split() for image in page.all("img") if "sample" in image["alt"]] == [[], []]
    assert all("pixelated" in image["class"] for image in page.all("img") if "sample" not in image["alt"])
    assert "WebP" in page.text


def test_numbers_that_are_missing_or_not_finite(make_report: MakeReport) -> None:
    rows = [MetricRow("FID", "aligned", float("nan"), "lower"), MetricRow("FID", "unaligned", None, "lower")]
    page = Page(render_page(make_report(metrics=rows, headline=(Headline("FID", float("nan")),))))
    assert page.text.count("–") >= 3
    assert "FID on few images" in page.text


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17])
def test_blocks_of_images_are_equal_and_short(make_report: MakeReport, count: int) -> None:
    originals = np.zeros((count, 8, 8, 3), np.uint8)
    run = RunReport("a", reconstructions=originals)
    page = Page(render_page(make_report(originals=originals, original_labels=None, teacher_features=None, runs=(run,))))
    columns = [
        int(re.findall(r"--columns: (\d+)", d["style"])[0]) for d in page.all("div") if d.get("class") == "matrix"
    ]
    assert len(set(columns)) == 1
    assert columns[0] <= 8
    assert 0 <= sum(columns) - count < columns[0]
    assert len(page.all("img")) == 2 * count


def test_writing_replaces_the_page_whole(make_report: MakeReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(path, make_report())
    first = path.read_text(encoding="utf-8")
    assert first == render_page(make_report()), "the same report makes the same page"
    assert first.startswith("<!doctype html>")
    write_page(path, make_report(title="Another"))
    assert "Another" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_a_failure_leaves_the_former_page(
    make_report: MakeReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    write_page(path, make_report())
    before = path.read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_page(path, make_report(title="Another"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": ()}, "at least one run"),
        ({"runs": (RunReport("a"), RunReport("a"))}, "different names"),
        ({"originals": np.zeros((10, 32, 32, 3))}, "uint8"),
        ({"original_labels": [1, 2]}, "original_labels: 2 for 10"),
        ({"teacher_features": np.zeros((9, 4, 4, 3))}, "teacher_features: 9 for 10"),
        ({"runs": (RunReport("a", reconstructions=np.zeros((9, 32, 32, 3), np.uint8)),)}, "reconstructions"),
        ({"runs": (RunReport("a", latents=np.zeros((9, 4, 4, 3))),)}, "latents: 9 for 10"),
    ],
)
def test_reports_that_do_not_fit_together(make_report: MakeReport, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_report(**changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": np.zeros((2, 8, 8), np.uint8)}, "samples"),
        ({"samples": np.zeros((2, 8, 8, 3), np.uint8), "sample_labels": [1]}, "sample_labels: 1 for 2"),
        ({"sample_labels": [1]}, "sample_labels: 1 for 0"),
        ({"tsne_points": np.zeros((4, 3))}, "tsne_points"),
        ({"tsne_points": np.zeros((4, 2)), "tsne_labels": [0]}, "tsne_labels"),
        ({"latents": np.zeros((4, 4, 2))}, "latents"),
        ({"formation": [(0.0, np.zeros((1, 8, 8, 3), np.uint8)), (1.0, np.zeros((2, 8, 8, 3), np.uint8))]}, "every t"),
    ],
)
def test_runs_that_do_not_fit_together(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunReport("a", **fields)


def test_importing_the_room_is_cheap() -> None:
    import subprocess
    import sys

    code = "import sys, vavae.demo.page; print([m for m in ('matplotlib', 'jinja2', 'torch') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
