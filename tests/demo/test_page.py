"""The page of the demo: compared with a stored one, and its images, names and columns."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from html_page import Page, pixels

from vavae.demo.contents import DemoReport, RunResult, StepTiming
from vavae.demo.page import render_page, write_page
from vavae.report.pca import pca_maps

MakeReport = Callable[..., DemoReport]
STORED = Path(__file__).parent / "page.html"


def without_pictures(html: str) -> str:
    """Return the page without its style sheet, the bytes of its images and the drawings of its figures."""
    html = re.sub(r"<style>.*?</style>", "<style></style>", html, flags=re.DOTALL)
    html = re.sub(r"data:image/(\w+);base64,[^\"]*", r"data:image/\1", html)
    return re.sub(r"(<svg [^>]*>).*?</svg>", lambda svg: re.sub(r' viewBox="[^"]*"', "", svg[1]), html, flags=re.DOTALL)


@pytest.fixture(scope="module")
def html(make_report: MakeReport) -> str:
    """Return the page of the report as it is."""
    return render_page(make_report())


def without_figures(run: RunResult) -> RunResult:
    """Return a run without curves and maps, whose drawing takes most of the time of a page."""
    return replace(run, tokenizer_log=[], generator_log=[], tsne_points=None)


def test_page_equals_the_stored_page(html: str) -> None:
    """Delete `page.html` to store another one, and read the difference."""
    found = without_pictures(html)
    if not STORED.exists():
        STORED.write_text(found, encoding="utf-8")
    assert found == STORED.read_text(encoding="utf-8")


def test_page_of_one_run_has_no_comparison(make_report: MakeReport) -> None:
    report = make_report()
    page = Page(render_page(replace(report, runs=report.runs[:1])))
    for word in ("unaligned", "The page compares", "without alignment", "lower curve", "between the columns"):
        assert word not in page.text
    assert "25.11" in page.text
    assert not [tag for tag, attributes in page.elements if "difference" in attributes.get("class", "").split()]


def test_page_loads_nothing_and_its_ids_are_unique(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action", "poster", "srcset", "background"):
                assert value.startswith("data:") or value.removeprefix("#") in ids, f"{tag} {name} is {value}"
            assert not name.startswith("on") and "http:" not in value and "https:" not in value
            assert set(re.findall(r"url\(#([^)]*)\)", value)) <= set(ids)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_images_are_the_pixels_of_the_report(html: str, make_report: MakeReport) -> None:
    report, page = make_report(), Page(html)
    aligned, unaligned = report.runs
    assert report.class_names[report.original_labels[3]] == "airplane"
    for alt, expected in (
        ("unaligned: reconstruction, image 4 (airplane)", unaligned.reconstructions[3]),
        ("teacher: features, image 4 (airplane)", pca_maps(report.teacher_features)[3]),
        ("aligned: latents, image 4 (airplane)", pca_maps(aligned.latents)[3]),
        ("aligned: sample 2 of cat", aligned.samples[7]),
        ("unaligned: sample 2 at t = 0.5", unaligned.formation[1][1][1]),
        ("longer training: sample 3 of moss", report.gallery.samples[3]),
        ("longer training: sample 1 of class 2", report.gallery.samples[5]),
    ):
        np.testing.assert_array_equal(page.image(alt), expected)
    originals = [image for image in page.all("img") if image["alt"].startswith("original: image 4 ")]
    assert len(originals) == 2
    for image in originals:
        np.testing.assert_array_equal(pixels(image["src"]), report.originals[3])


def test_names_with_markup_are_escaped(make_report: MakeReport) -> None:
    evil = '<script>alert("x")</script>\'"&$x_{2}$<img src=http://a.b/c>'
    report = make_report()
    lines = [{**line, evil: 1.0 + i} for i, line in enumerate(report.runs[0].tokenizer_log)]
    run = replace(report.runs[0], name=evil, tokenizer_log=lines)
    html = render_page(
        replace(
            report,
            command=evil,
            machine={evil: evil},
            versions={"vavae": evil},
            images_note=evil,
            teacher_note=evil,
            guidance=evil,
            steps=(StepTiming(evil, 1.0, evil),),
            class_names=[evil] * 10,
            runs=(run, replace(report.runs[1], name=evil + "2")),
            findings=(evil,),
        )
    )
    page = Page(html)
    assert not page.all("script") and "<script" not in html.lower()
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert page.text.count(" ".join(evil.split())) > 15
    assert any(evil in image["alt"] for image in page.all("img"))
    assert any(evil in svg["aria-label"] for svg in page.all("svg"))


def test_images_of_other_shapes(make_report: MakeReport) -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (3, 20, 48, 3), dtype=np.uint8)
    large = rng.integers(0, 256, (2, 160, 144, 3), dtype=np.uint8)
    report = make_report()
    run = replace(
        report.runs[0],
        name="wide",
        reconstructions=originals[:, ::-1],
        latents=rng.normal(size=(3, 5, 12, 2)),
        samples=large,
        sample_labels=[0, 1],
        tsne_points=None,
    )
    html = render_page(
        replace(
            report,
            originals=originals,
            original_labels=[0, 1, 2],
            teacher_features=rng.normal(size=(3, 5, 12, 4)),
            runs=(run,),
        )
    )
    page = Page(html)
    first, second = report.class_names[:2]
    np.testing.assert_array_equal(page.image(f"wide: reconstruction, image 2 ({second})"), originals[1, ::-1])
    assert page.image(f"wide: latents, image 1 ({first})").shape == (5, 12, 3)
    assert page.image(f"wide: sample 1 of {first}").shape == (160, 144, 3)
    assert "--ratio: 48 / 20" in html and "--ratio: 144 / 160" in html and "#map" not in html
    classes = {image["alt"]: image.get("class", "") for image in page.all("img")}
    assert classes[f"wide: sample 1 of {first}"] == "" and "pixelated" in classes[f"original: image 1 ({first})"]
    assert "WebP" in page.text


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 21])
def test_blocks_of_images_are_equal_and_short(make_report: MakeReport, count: int) -> None:
    images = np.zeros((count, 8, 8, 3), np.uint8)
    report = make_report()
    run = replace(without_figures(report.runs[0]), reconstructions=images, latents=np.zeros((count, 2, 2, 3)))
    features = np.zeros((count, 2, 2, 3))
    labels = [0] * count
    page = Page(
        render_page(replace(report, originals=images, original_labels=labels, teacher_features=features, runs=(run,)))
    )
    blocks = [div["style"] for div in page.all("div") if div.get("class") == "matrix"]
    (columns,) = {int(re.findall(r"--columns: (\d+)", style)[0]) for style in blocks}
    assert columns <= 10 and 0 <= columns * len(blocks) // 2 - count < columns
    assert len([image for image in page.all("img") if ", image " in image["alt"]]) == 3 * count


def test_a_page_replaces_another_one(make_report: MakeReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    report = make_report(runs=tuple(map(without_figures, make_report().runs)))
    write_page(path, report)
    assert path.read_text(encoding="utf-8") == render_page(report)
    write_page(path, replace(report, findings=("Another finding.",)))
    assert "Another finding." in path.read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_quick_page_warns_in_its_title(html: str, make_report: MakeReport) -> None:
    warning = "its numbers mean nothing"
    assert warning not in html
    page = render_page(make_report(quick=True, runs=tuple(map(without_figures, make_report().runs))))
    assert re.search(f"<title>.*{warning}</title>", page) and re.search(f"<h1>.*{warning}</h1>", page)


def test_pictures_come_first_and_the_total_loss_is_not_the_first_curve(html: str) -> None:
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections[:3] == ["reconstructions", "samples", "results"]
    assert sections == re.findall(r'<li><a href="#(\w+)"', html)
    curves = html[html.index('<section id="curves"') :]
    assert curves.index("Total loss") > curves.index("Pixel error")
    assert curves.rindex("Total loss") > curves.index("Velocity error")
