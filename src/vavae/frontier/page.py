"""Write tables, figures and the page of a frontier from the jobs that are finished; print the states of its jobs."""

import enum
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vavae.config import to_plain
from vavae.config.command_line import command_line
from vavae.config.image_size import format_size
from vavae.data import DemoImages
from vavae.frontier import figures
from vavae.frontier.claims import ENOUGH_SAMPLES, Claim, claims
from vavae.frontier.config import Config
from vavae.frontier.figures import Drawn, LegendLine
from vavae.frontier.grid import Grid, Job
from vavae.frontier.results import Results
from vavae.frontier.tables import (
    Column,
    Correlation,
    Measured,
    Row,
    Table,
    correlations,
    tables,
    to_csv,
    to_markdown,
    to_plain_table,
)
from vavae.io.files import written_whole
from vavae.metrics import MetricRecord
from vavae.report.figures import standalone
from vavae.report.page_base import Embedder, page_environment
from vavae.teachers.registry import TEACHERS

_CIFAR10 = ("cifar10", "demo")  # image sources from CIFAR-10


class State(enum.Enum):
    """State of a job."""

    DONE = "done"
    RUNNING = "running"
    ELSEWHERE = "in another process"
    FAILED = "failed"
    WAITING = "waiting"


States = Sequence[tuple[Job, State, str]]  # with main numbers, or the reason of a failure
_STYLES = {
    State.DONE: "green",
    State.RUNNING: "bold",
    State.FAILED: "red",
    State.ELSEWHERE: "cyan",
    State.WAITING: "dim",
}


def print_states(states: States, begins: Job | None) -> None:
    """Print the states of all jobs: a table in a terminal, otherwise one line.

    Args:
        states: Jobs with their states and notes.
        begins: The job that begins now; None at the end.
    """
    counts = Counter(state for _, state, _ in states)
    summary = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    if not sys.stdout.isatty():
        print(f"-- {begins.label} ({summary})" if begins is not None else f"-- {summary}", flush=True)
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    table = RichTable(box=None, pad_edge=False, title=summary, title_justify="left", title_style="bold")
    for name in ("job", "cell", "state", "numbers"):
        table.add_column(name)
    for job, state, note in states:
        table.add_row(job.kind, job.cell.label, state.value, note, style=_STYLES[state])
    console = Console(highlight=False)
    console.clear()
    console.print(table)


@dataclass(frozen=True)
class FrontierView:
    """The variables of the template."""

    title: str
    subtitle: str
    created: str
    finished: int
    total: int
    seconds: float
    machines: tuple[str, ...]
    enough: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    correlations: tuple[Correlation, ...]
    frontier: tuple[Drawn, ...]
    convergence: tuple[Drawn, ...]
    maps: tuple[Drawn, ...]
    classes: tuple[LegendLine, ...]
    galleries: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    sampling: str
    how: tuple[str, ...]
    command: str
    jobs: tuple[tuple[str, str, str, str], ...]


def write_everything(config: Config, grid: Grid, results: Results, states: States) -> Path:
    """Write `tables.json`, CSV, SVG and Markdown files and `frontier.html`; return the path of the page."""
    measured = Measured(grid, results)
    view = _view(config, measured, states)
    folder = grid.folder
    for table in view.tables:
        _write(folder / f"{table.name}.csv", to_csv(table))
    for drawn in (*view.frontier, *view.convergence, *view.maps):
        legend = [(line.color, line.sign, line.name) for line in drawn.legend]
        _write(folder / f"{drawn.name}.svg", standalone(drawn.svg, drawn.title, legend))
    everything = {
        "title": config.title,
        "recipe": to_plain(config),
        "claims": to_plain(view.claims),
        "tables": {table.name: to_plain_table(table) for table in view.tables},
        "correlations": to_plain(view.correlations),
        "curves": {cell.label: measured.curve(cell) for cell in grid.convergence()},
    }
    _write(folder / "tables.json", json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    _write(folder / "claims.md", claims_markdown(view.claims))
    _write(folder / "tables.md", tables_markdown(config.title, view.tables))
    page = folder / "frontier.html"
    environment = page_environment("frontier")
    environment.filters |= {"fixed": _fixed, "signed": lambda value: f"{value:+.2f}".replace("-", "−")}
    template = environment.get_template("frontier.html.j2")
    _write(page, template.render(view=view, best=_best, embed=Embedder()))
    return page


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _fixed(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−")


def _best(table: Table, row: Row, column: Column) -> bool:
    """Return whether a row has the best mean of its column, if several differ."""
    means = [r.ours[column.key].mean for r in table.rows]
    known = [mean for mean in means if mean is not None]
    if len(set(known)) < 2:
        return False
    return row.ours[column.key].mean == (max(known) if column.better == "higher" else min(known))


def claims_markdown(found: Sequence[Claim]) -> str:
    """Return the claims as a table in Markdown."""
    lines = ["| claim | published | measured here | verdict |", "|---|---|---|---|"]
    lines += [f"| {c.claim} | {c.published} | {c.ours} | {c.verdict} |" for c in found]
    return "\n".join(lines) + "\n"


def tables_markdown(title: str, found: Sequence[Table]) -> str:
    """Return all tables in Markdown."""
    parts = [f"# {title}\n", *(f"## {one.title}\n\n{to_markdown(one)}\n{one.note}".rstrip() + "\n" for one in found)]
    return "\n".join(parts)


def _view(config: Config, measured: Measured, states: States) -> FrontierView:
    every = tables(measured)
    contents = [content for job, _, _ in states if (content := measured.results.read(job.result)) is not None]
    recipe = config.generator
    sampling = recipe.sampling
    guided = "without guidance" if sampling.guidance_scale == 1 else f"guidance {sampling.guidance_scale:g}"
    return FrontierView(
        title=config.title,
        subtitle=_subtitle(config, measured),
        created=time.strftime("%Y-%m-%d %H:%M"),
        finished=sum(state is State.DONE for _, state, _ in states),
        total=len(states),
        seconds=sum(content["seconds"] for content in contents),
        machines=tuple(dict.fromkeys(_machine(content["versions"]) for content in contents)),
        enough=f"{ENOUGH_SAMPLES:,}",
        claims=tuple(claims(measured)),
        tables=tuple(every.values()),
        correlations=tuple(correlations(every["table6"])),
        frontier=tuple(figures.frontier(measured)),
        convergence=(*figures.convergence(measured), *figures.by_size(measured)),
        maps=tuple(figures.maps(measured)),
        classes=figures.classes(measured, DemoImages("test").class_names if config.data.images in _CIFAR10 else ()),
        galleries=_galleries(measured, states),
        sampling=f"{sampling.steps} {sampling.solver} grid points, {guided}",
        how=tuple(_how(config, measured, contents)),
        command=command_line(without="--page_only"),
        jobs=tuple((job.kind, measured.grid.shown_name(job.cell), state.value, it) for job, state, it in states),
    )


def _machine(versions: dict[str, str]) -> str:
    return versions.get("gpu", f"CPU ({versions.get('machine', 'unknown')})")


def _subtitle(config: Config, measured: Measured) -> str:
    grid = measured.grid
    images = "CIFAR-10" if config.data.images in _CIFAR10 else config.data.images
    seen = sorted({grid.generator(cell).training.images for cell in grid.generators})
    latents = f"{seen[0]:,}" + (f" to {seen[-1]:,}" if len(seen) > 1 else "")
    return (
        f"{len(grid.tokenizers)} tokenizers and {len(grid.generators)} generators on {images} images of "
        f"{format_size(config.data.size)} px; each tokenizer sees {config.tokenizer.training.images:,} images, each generator "
        f"{latents}. In the paper: ImageNet at 256 px, 64 million and 102 to 205 million."
    )


def _galleries(measured: Measured, states: States) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    found: dict[str, list[tuple[str, str]]] = {"Reconstructions": [], "Samples": []}
    for job, _, _ in states:
        content = measured.results.read(job.result)
        for heading, key in (("Reconstructions", "reconstructions"), ("Samples", "samples")):
            uri = (content or {}).get("pictures", {}).get(key)
            if uri is not None:
                found[heading].append((measured.grid.shown_name(job.cell), uri))
    return tuple((heading, tuple(group)) for heading, group in found.items() if group)


def _how(config: Config, measured: Measured, contents: Sequence[dict[str, Any]]) -> list[str]:
    """Return sentences on the protocol of all numbers."""
    measure, data = config.measure, config.data
    lines = []
    if data.images in _CIFAR10:
        part = "a class-balanced part of CIFAR-10" if data.images == "demo" else "CIFAR-10"
        lines.append(f"Images: {part} (A. Krizhevsky, 2009; the data set states no license).")
    generated, rebuilt = _records(contents, "generator"), _records(contents, "tokenizer")
    reference = _counts([r.protocol.reference_samples for r in generated], measure.reference_images)
    shown = _counts([r.protocol.samples for r in rebuilt if r.name == "PSNR"], measure.reconstructions)
    lines.append(
        f"g{measured.distance}: {measure.samples:,} class-balanced samples against {reference} training images; "
        f"r{measured.distance}, PSNR, LPIPS, SSIM: {shown} test images, reconstructed from the posterior’s mean as "
        f"8-bit pixels. Feature network: {measure.network}."
    )
    if not measure.is_fid:
        lines.append("Distances in this network are not FIDs and must not be compared with published ones.")
    seeds = "one seed" if measure.tsne_seeds == 1 else f"{measure.tsne_seeds} seeds"
    lines.append(
        f"Uniformity, linear probe and cosine: at most {measure.latents:,} latents; t-SNE over {seeds}. Each seed "
        "trains its own tokenizer and its own generators."
    )
    lines += _sizes(measured)
    names = {cell.teacher.partition("@")[0] for cell in measured.grid.tokenizers}
    for spec in TEACHERS:
        if spec.name in names or spec.name == measure.teacher:
            lines.append(f"{spec.name}: {spec.note + '; ' if spec.note else ''}license {spec.license}.")
    types = sorted({record.protocol.dtype for record in generated if record.protocol.dtype})
    if types:
        hashes = sorted({(record.protocol.feature_network_hash or "")[:12] for record in generated})
        lines.append(f"Samples were computed in {', '.join(types)}; feature network {', '.join(hashes)}.")
    for kind in ("tokenizer", "generator"):
        trained = sorted({c["precision"] for c in contents if c["kind"] == kind and "precision" in c})
        if len(trained) > 1:
            lines.append(f"Machines differed: some {kind}s were trained in {trained[0]}, others in {trained[1]}.")
    return lines


def _sizes(measured: Measured) -> Iterator[str]:
    """Yield the shape of each size, with the range of its parameters, which depend on latents and row."""
    grid = measured.grid
    for size in dict.fromkeys(cell.size for cell in grid.generators):
        cells = [cell for cell in grid.generators if cell.size == size]
        shape = grid.generator(cells[0]).transformer.resolve(cells[0].tokenizer.dimension, grid.side, 10)
        contents = [content for cell in cells if (content := measured.content("generator", cell)) is not None]
        millions = sorted(content["parameters"] / 1e6 for content in contents)
        shown = dict.fromkeys(f"{count:.3g}" for count in (*millions[:1], *millions[-1:]))
        parameters = f", {' to '.join(shown)} million parameters" if shown else ""
        yield f"Size {size}: width {shape.width}, depth {shape.depth}, patch {shape.patch_size}{parameters}."


def _records(contents: Sequence[dict[str, Any]], kind: str) -> list[MetricRecord]:
    return [MetricRecord.from_dict(r) for c in contents if c["kind"] == kind for r in c["records"]]


def _counts(measured: Sequence[int | None], asked: int | None) -> str:
    """Return the numbers of images, or the number in the recipe if nothing is measured yet."""
    known = sorted({count for count in measured if count is not None})
    if known:
        return " to ".join(f"{count:,}" for count in dict.fromkeys((known[0], known[-1])))
    return f"{asked:,}" if asked else "all"
