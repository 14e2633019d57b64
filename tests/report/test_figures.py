import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from vavae.report.curves import Curve, Panel
from vavae.report.figures import curves_figure, scatter_figure
from vavae.report.glossary import Term
from vavae.report.svg import short

SVG = "{http://www.w3.org/2000/svg}"


def panel(*values: list[float]) -> Panel:
    curves = tuple(
        Curve(run, np.arange(1.0, len(v) + 1) * 1000, np.array(v, dtype=float)) for run, v in enumerate(values)
    )
    return Panel("kl", Term("KL", ""), curves)


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def strokes(svg: str) -> list[tuple[str, np.ndarray]]:
    """Return color variable and points of every line in a run's color."""
    found = []
    for node in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        color = re.search(r"stroke: var\((--run-\d)", node.get("style", ""))
        if color:
            points = np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", node.get("d", "")), dtype=float)
            found.append((color[1], points))
    return found


def test_curves_are_raw_and_smoothed_in_their_runs_color() -> None:
    rng = np.random.default_rng(0)
    svg = curves_figure(panel(list(5 + rng.random(300)), list(3 + rng.random(300))))
    lines = strokes(svg)
    assert [color for color, _ in lines] == ["--run-0", "--run-0", "--run-1", "--run-1"]
    upper, lower = lines[1][1][:, 1].mean(), lines[3][1][:, 1].mean()
    assert upper < lower, "the run with the larger values is higher up"
    assert np.ptp(lines[0][1][:, 1]) > 2 * np.ptp(lines[1][1][:, 1]), "the raw line is the rougher one"


def test_geometric_curve_is_a_line_on_a_logarithmic_axis() -> None:
    svg = curves_figure(panel(list(np.geomspace(1000, 1, 31))))
    points = strokes(svg)[0][1]
    slopes = np.diff(points[:, 1]) / np.diff(points[:, 0])
    assert slopes.std() < 0.02 * abs(slopes.mean())
    assert {"10", "100"} <= set(texts(svg))


@pytest.mark.parametrize(
    "values",
    [
        [[3.0]],
        [[float("nan"), 2.0, float("nan")]],
        [[4.0] * 10],
        [[-1.0, -2.0, float("nan"), 1e-12]],
        [[1e-9, 1.0, 1e9]],
        [[1.0, 2.0], [3.0]],
    ],
)
def test_odd_curves_are_drawn(values: list[list[float]]) -> None:
    ElementTree.fromstring(curves_figure(panel(*values)))


def test_single_value_between_gaps_is_a_dot() -> None:
    alone = curves_figure(panel([1.0, 2.0, float("nan"), 3.0, float("nan")]))
    assert alone.count("<use") > curves_figure(panel([1.0, 2.0, 2.5, 3.0, 4.0])).count("<use")


def uses(svg: str, color: str) -> int:
    return len(re.findall(rf"<use [^>]*fill: var\({color},", svg))


def test_points_have_the_color_of_their_class() -> None:
    labels = [0, 0, 3, 13, 3, 0]
    svg = scatter_figure(np.random.default_rng(0).normal(size=(6, 2)), labels)
    assert uses(svg, "--class-0") == 3
    assert uses(svg, "--class-3") == 3
    assert svg.count("<use") == 6


def test_points_that_are_not_finite_are_left_out() -> None:
    points = np.random.default_rng(0).normal(size=(5, 2))
    points[2] = np.nan
    assert uses(scatter_figure(points, [0] * 5), "--class-0") == 4


def test_figures_contain_only_what_a_page_uses() -> None:
    for svg in (curves_figure(panel([1.0, 2.0, 3.0])), scatter_figure(np.eye(2), [0, 1])):
        assert "metadata" not in svg
        assert "<style" not in svg, "it would apply to the whole page"
        assert not re.search(r"#0[0-9a-f]01[0-9a-f]{2}", svg), "a placeholder color is left"
        assert "DejaVu" not in svg
        assert not re.search(r'(?:href|src)="(?!#)', svg)
        numbers = re.findall(r"\.(\d+)", " ".join(re.findall(r' d="([^"]*)"', svg)))
        assert max(map(len, numbers)) <= 2


def test_figures_are_reproducible_and_restore_the_style() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    first = curves_figure(panel([1.0, 5.0, 2.0]))
    assert curves_figure(panel([1.0, 5.0, 2.0])) == first
    assert dict(matplotlib.rcParams) == before


def test_colors_of_figures_and_page_agree() -> None:
    """The fallback in a figure is the color of the page's light theme."""
    from importlib import resources

    css = (resources.files("vavae.report") / "templates" / "page.css").read_text()
    labels = list(range(10))
    svg = curves_figure(panel([1.0, 2.0], [2.0, 3.0])) + scatter_figure(np.random.rand(10, 2), labels)  # noqa: NPY002
    found = set(re.findall(r"var\((--[\w-]+), (#[0-9a-f]{6})\)", svg))
    assert len(found) >= 14
    for name, color in found:
        assert f"{name}: light-dark({color}, " in css, f"{name} is {color} in figures"


def test_numbers_on_axes_are_short() -> None:
    assert [short(v) for v in (0, 20000, 1.5e6, 2e9, -1500, 0.05)] == ["0", "20k", "1.5M", "2G", "−1.5k", "0.05"]
