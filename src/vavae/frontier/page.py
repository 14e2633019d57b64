"""Write tables, figures and the page of a frontier from the jobs that are finished; print the states of its jobs."""

import enum
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vavae.config import to_plain
from vavae.config.command_line import command_line
from vavae.config.image_size import format_size
from vavae.data import DemoImages
from vavae.frontier import figures
from vavae.frontier.claims import ENOUGH_SAMPLES, TOO_FEW, UNMEASURED, Claim, claims
from vavae.frontier.config import Config
from vavae.frontier.grid import Grid, Job
from vavae.frontier.results import Results
from vavae.frontier.tables import Measured, Table, correlations, tables, to_csv, to_markdown, to_plain_table
from vavae.io.files import write_text
from vavae.metrics import MetricRecord
from vavae.report.figures import standalone
from vavae.report.glossary import FRONTIER_TERMS, TABLE_TERMS
from vavae.report.numbers import duration
from vavae.report.page_base import Embedder, render
from vavae.teachers.registry import TEACHERS

_CIFAR10 = ("cifar10", "demo")  # image sources from CIFAR-10
_VERDICTS = {
    "reproduced": "Every comparison has the paper’s direction, by more than the spreads.",
    "open": "A difference is within the spreads, so these runs do not decide.",
    "not reproduced": "A comparison has the opposite direction, by more than the spreads.",
    TOO_FEW: "A verdict needs more images, or distances that are FIDs.",
    UNMEASURED: "Jobs are missing.",
}


class State(enum.Enum):
    """State of a job."""

    DONE = "done"
    RUNNING = "running"
    ELSEWHERE = "in another process"
    FAILED = "failed"
    WAITING = "waiting"


States = Sequence[tuple[Job, State, str]]  # with main numbers, or the reason of a failure
Pictures = list[tuple[str, str]]  # (title, data URI)


def print_states(states: States, begins: Job | None) -> None:
    """Print how many jobs are in each state, and the job that begins now."""
    counts = Counter(state for _, state, _ in states)
    summary = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    print(f"-- {begins.label} ({summary})" if begins is not None else f"-- {summary}", flush=True)


def write_everything(config: Config, grid: Grid, results: Results, states: States) -> Path:
    """Write `tables.json`, CSV, SVG and Markdown files and `frontier.html`; return the path of the page."""
    measured = Measured(grid, results)
    found, named = claims(measured), tables(measured)
    every, view = list(named.values()), _view(config, measured, states, named, bool(found))
    folder = grid.folder
    for table in every:
        write_text(folder / f"{table.name}.csv", to_csv(table))
    for drawn in (*view["frontier"], *view["convergence"], *view["maps"]):
        write_text(folder / f"{drawn.name}.svg", standalone(drawn.svg, drawn.title, drawn.legend))
    everything = {
        "title": config.title,
        "recipe": to_plain(config),
        "claims": to_plain(found),
        "tables": {table.name: to_plain_table(table) for table in every},
        "correlations": to_plain(view["correlations"]),
        "curves": {cell.label: measured.curve(cell) for cell in grid.curves},
    }
    write_text(folder / "tables.json", json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    if found:
        write_text(folder / "claims.md", claims_markdown(found))
    write_text(folder / "tables.md", tables_markdown(config.title, every))
    page = folder / "frontier.html"
    write_text(page, render("frontier", claims=found, verdicts=_verdicts(found), tables=every, **view))
    return page


def _verdicts(found: Sequence[Claim]) -> list[tuple[str, str, list[tuple[int, str]]]]:
    """Return (verdict, its meaning, number and first words of its claims); the three verdicts even without claims."""
    numbered = [(number, re.split(r": | \(", one.claim)[0], one.verdict) for number, one in enumerate(found, 1)]
    which = {verdict: [(number, short) for number, short, its in numbered if its == verdict] for verdict in _VERDICTS}
    always = list(_VERDICTS)[:3]
    return [(verdict, _VERDICTS[verdict], which[verdict]) for verdict in which if which[verdict] or verdict in always]


def claims_markdown(found: Sequence[Claim]) -> str:
    """Return the claims as a table in Markdown."""
    lines = ["| claim | published | measured here | verdict |", "|---|---|---|---|"]
    lines += [f"| {c.claim} | {c.published} | {c.ours} | {c.verdict} |" for c in found]
    return "\n".join(lines) + "\n"


def tables_markdown(title: str, found: Sequence[Table]) -> str:
    """Return all tables in Markdown."""
    parts = [f"# {title}\n", *(f"## {one.title}\n\n{to_markdown(one)}\n{one.note}".rstrip() + "\n" for one in found)]
    return "\n".join(parts)


def _view(
    config: Config, measured: Measured, states: States, every: Mapping[str, Table], of_paper: bool
) -> dict[str, Any]:
    """Return what the template shows in addition to claims and tables; `of_paper` shows claims and their figures."""
    contents = [content for job, _, _ in states if (content := measured.results.read(job.result)) is not None]
    found = (content["versions"] for content in contents)
    machines = dict.fromkeys(v.get("gpu", f"CPU ({v.get('machine', 'unknown')})") for v in found)
    sampling = config.generator.sampling
    names = {name: table.title.split(":")[0] for name, table in every.items()}
    table2 = names.pop("table2", None)
    return {
        "title": config.title,
        "subtitle": _subtitle(config, measured),
        "facts": [
            ("Written", time.strftime("%Y-%m-%d %H:%M")),
            ("Finished", f"{sum(state is State.DONE for _, state, _ in states)} of {len(states)} jobs"),
            ("Work, over all processes", duration(sum(content["seconds"] for content in contents))),
            ("On", "; ".join(machines) or "–"),
        ],
        "sections": [
            *((("claims", "Claims"), ("frontier", "Frontier")) if of_paper else ()),
            *([("table2", table2)] if table2 else []),
            *([("convergence", "Convergence and size")] if of_paper else []),
            *names.items(),
            *(("maps", "Maps of latents"), ("pictures", "Pictures")),
            *(("how", "How it was measured"), ("terms", "Terms")),
        ],
        "enough": ENOUGH_SAMPLES,
        "terms": FRONTIER_TERMS | {key: term for name in every for key, term in TABLE_TERMS.get(name, {}).items()},
        "distance": measured.distance,
        "correlations": correlations(every["table6"]),
        "frontier": figures.frontier(measured),
        "convergence": [*figures.convergence(measured), *figures.by_size(measured)],
        "maps": figures.maps(measured),
        "classes": figures.classes(measured, DemoImages("test").class_names if config.data.images in _CIFAR10 else ()),
        "galleries": _galleries(measured, states),
        "sampling": sampling.in_words() + (" (own latents: time shift by dimension)" if "latents" in every else ""),
        "how": _how(config, measured, contents),
        "command": command_line(without="--page_only"),
        "jobs": [(job.kind, measured.grid.shown_name(job.cell), state.value, it) for job, state, it in states],
        "embed": Embedder(),
    }


def _subtitle(config: Config, measured: Measured) -> str:
    grid = measured.grid
    images = "CIFAR-10" if config.data.images in _CIFAR10 else config.data.images
    seen = sorted({grid.generator(cell).training.images for cell in grid.generators})
    latents = " to ".join(f"{count:,}" for count in dict.fromkeys((seen[0], seen[-1])))
    return (
        f"{len(grid.tokenizers)} tokenizers and {len(grid.generators)} generators on {images} images of "
        f"{format_size(config.data.size)} px; each tokenizer sees {config.tokenizer.training.images:,} images, each "
        f"generator {latents}. In the paper: ImageNet at 256 px, 64 million and 102 to 205 million."
    )


def _galleries(measured: Measured, states: States) -> list[tuple[str, Pictures, Pictures]]:
    """Return headings with the pictures of the first seed of each model, and those of its other seeds."""
    found = []
    for key in ("reconstructions", "samples"):
        first: Pictures = []
        others: Pictures = []
        seen = set()
        for job, _, _ in states:
            uri = (measured.results.read(job.result) or {}).get("pictures", {}).get(key)
            if uri is not None:
                model = re.sub(r", seed \d+", "", job.cell.label)
                (others if model in seen else first).append((measured.grid.shown_name(job.cell), uri))
                seen.add(model)
        found += [(key.capitalize(), first, others)] if first else []
    return found


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
    methods = config.experiments.alignment
    inside = methods.teacher if methods.seeds else ""
    teachers = (measure.teacher or "", inside, *(cell.teacher for cell in measured.grid.tokenizers))
    names = {teacher.partition("@")[0] for teacher in teachers}
    for spec in TEACHERS:
        if spec.name in names:
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
        shape = grid.shape(cells[0])
        contents = [content for cell in cells if (content := measured.content("generator", cell)) is not None]
        millions = sorted(content["parameters"] / 1e6 for content in contents)
        shown = dict.fromkeys(f"{count:.3g}" for count in (*millions[:1], *millions[-1:]))
        parameters = f", {' to '.join(shown)} million parameters" if shown else ""
        yield f"Size {size}: {shape.summary}, patch {shape.patch_size}{parameters}."


def _records(contents: Sequence[dict[str, Any]], kind: str) -> list[MetricRecord]:
    return [MetricRecord.from_dict(r) for c in contents if c["kind"] == kind for r in c["records"]]


def _counts(measured: Sequence[int | None], asked: int | None) -> str:
    """Return the numbers of images, or the number in the recipe if nothing is measured yet."""
    known = sorted({count for count in measured if count is not None})
    if known:
        return " to ".join(f"{count:,}" for count in dict.fromkeys((known[0], known[-1])))
    return f"{asked:,}" if asked else "all"
