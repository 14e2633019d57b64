"""The page of a frontier as HTML, from invented results."""

import re
from pathlib import Path

import pytest
from frontier_grid import grid_config
from html_page import Page
from stub_jobs import invented

from vavae.frontier.grid import Grid
from vavae.frontier.page import State, write_everything
from vavae.frontier.results import Results


def written(folder: Path, *overrides: str) -> str:
    """Return the HTML of a finished grid."""
    config = grid_config(folder, *overrides)
    grid, results = Grid(config, ("train", "test")), Results(folder / "results")
    for number, job in enumerate(grid.jobs):
        results.write(job.result, invented(job, number))
    states = [(job, State.DONE, "") for job in grid.jobs]
    return write_everything(config, grid, results, states).read_text()


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("frontier"))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the HTML of a grid with two seeds, two t-SNE runs, and images of unknown classes."""
    seeds = ("--experiments.table2.seeds", "[0,1]", "--measure.tsne_seeds", "2")
    return written(tmp_path_factory.mktemp("several"), *seeds, "--data.images", "imagefolder:somewhere")


@pytest.mark.slow
def test_row_labels_stay_when_scrolled(page: Page) -> None:
    rows = [attributes for attributes in page.all("th") if attributes.get("scope") == "row"]
    rows = [attributes for attributes in rows if "label" in attributes.get("class", "")]
    assert len(rows) > 15 and all("stay" in attributes["class"].split() for attributes in rows)


@pytest.mark.slow
def test_captions_describe_figures(page: Page, several: str) -> None:
    assert "spread of the seeds." not in page.text
    assert "t-SNE over one seed." in page.text and "Uniformity: one t-SNE run of test latents" in page.text
    text = Page(several).text
    assert "Down and left is better; bars are the spread of the seeds." in text
    assert "t-SNE over 2 seeds." in text and "means over 2 t-SNE runs" in text


def test_sizes_are_explained(page: Page) -> None:
    assert "Size nano/2: width 32, depth 1, patch 2, 12.3 million parameters." in page.text
    assert "Size nano/1: width 32, depth 1, patch 1, 12.3 million parameters." in page.text


def test_figures_have_alt_texts_and_unique_ids(page: Page) -> None:
    figures = page.all("svg")
    assert len(figures) == 3 + 5 and all(svg["role"] == "img" for svg in figures)
    assert "Ours, nano/2: gFD over rFD; no alignment, dinov2-small-focus@28" in [svg["aria-label"] for svg in figures]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids), "an id is used twice"
    for _, attributes in page.elements:
        named = re.findall(r"url\(#([^)]*)\)", " ".join(attributes.values()))
        targets = [attributes.get(name, "") for name in ("href", "xlink:href")]
        named += [target[1:] for target in targets if target.startswith("#")]
        assert all(name in ids for name in named), named


def test_maps_name_classes(html: str, several: str) -> None:
    maps = html[html.index('id="maps"') :]
    assert "airplane" in maps and "horse" in maps and "truck" not in maps  # labels 0 and 7
    assert "airplane" not in several


def test_pictures_are_named_like_table_rows(page: Page) -> None:
    described = [image["alt"] for image in page.all("img")]
    assert "Reconstructions of d 4, dinov2-small-focus@28, without mcos" in described
    assert "Samples of nano/2 on d 4, none: DiT" in described
    assert "Samples of nano/2 on d 4, none" in described
    assert "Samples of nano/1 on d 4, dinov2-small-focus@28" in described
    assert "no-mcos" not in page.text and "(dit)" not in page.text and "seed 0" not in page.text


def test_other_seeds_are_folded(several: str) -> None:
    first, others = several.split("Reconstructions of the other seeds (", 1)
    assert 'alt="Reconstructions of d 2, none, seed 0"' in first
    assert 'alt="Reconstructions of d 2, none, seed 1"' in others


def test_every_table_has_a_heading_and_a_link(page: Page) -> None:
    sections = [attributes["id"] for attributes in page.all("section")]
    links = [attributes["href"] for attributes in page.all("a")]
    tables = [f"table{number}" for number in (2, 4, 5, 6, 1)]
    assert [name for name in sections if name.startswith("table")] == tables
    assert [link for link in links if link.startswith("#table")] == [f"#{name}" for name in tables]
    assert len(page.all("h2")) == len(sections)


def test_verdicts_are_counted_on_top(html: str) -> None:
    top = html[: html.index('id="claims"')]
    counts = re.findall(r'class="verdict">([^<]+)</span> <span class="count">(\d+)<', top)
    assert [word for word, _ in counts[:3]] == ["reproduced", "open", "not reproduced"]
    assert sum(int(count) for _, count in counts) == html.count('<tr id="claim-') == top.count('href="#claim-')


def test_headings_have_terms(page: Page) -> None:
    terms = {link["href"]: link["title"] for link in page.all("a") if link.get("class") == "term"}
    assert {"#term-rfid", "#term-gfid", "#term-teacher", "#term-up-to", "#term-correlation"} <= terms.keys()
    assert all(meaning in page.text for meaning in terms.values())


def test_pictures_enlarge(page: Page) -> None:
    zooms = [attributes for attributes in page.all("details") if attributes.get("class") == "zoom"]
    assert len(zooms) == len(page.all("img")) + 5  # maps
