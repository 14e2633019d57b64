"""Results -> the paper's tables, with mean and spread over seeds, and the published numbers in columns of their own."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vavae.frontier import published as paper
from vavae.frontier.config import Kind
from vavae.frontier.grid import Cell, GeneratorCell, Grid, TokenizerCell
from vavae.frontier.names import LOSS_NAMES, ROW_NAMES
from vavae.frontier.results import Results

_METRICS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "rfid": ("tokenizer", ("rFID", "reconstruction Fréchet distance")),
    "psnr": ("tokenizer", ("PSNR",)),
    "lpips": ("tokenizer", ("LPIPS",)),
    "ssim": ("tokenizer", ("SSIM",)),
    "probe": ("tokenizer", ("linear probe",)),
    "agreement": ("tokenizer", ("alignment: cosine after the best linear map",)),
    "cv": ("uniformity", ("uniformity: density cv",)),
    "gini": ("uniformity", ("uniformity: Gini",)),
    "entropy": ("uniformity", ("uniformity: normalized entropy",)),
    "gfid": ("generator", ("FID", "Fréchet distance")),
}
_ABOUT = (
    "Probe: a linear classifier on the latents. Cosine: of the latents, after the best linear map, with the teacher "
    "that all are measured with. The paper has neither. Bold: best of its column."
)
EVERY_TOKENIZER = "all tokenizers"


@dataclass(frozen=True)
class Stat:
    """A number measured with several seeds.

    Attributes:
        values: One per seed that is finished.
        wanted: How many seeds the recipe has.
        images: The fewest images behind one of the values, of samples and of those they are measured against; None
            where that is not known.
    """

    values: tuple[float, ...]
    wanted: int
    images: int | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None where none is finished."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Column:
    """A measured column.

    Attributes:
        key: Metric.
        title: Heading.
        decimals: Digits after the point.
        better: Which direction is better.
        published_title: Heading of the paper's numbers beside it, where it is another.
    """

    key: str
    title: str
    decimals: int
    better: Literal["higher", "lower"]
    published_title: str = ""

    @property
    def published_decimals(self) -> int:
        """Digits with which the paper prints it."""
        return 3 if self.key in ("lpips", "cv", "gini", "entropy") else 2


@dataclass(frozen=True)
class Row:
    """A row: labels, numbers of ours, and the published ones.

    Attributes:
        labels: One per label column.
        ours: By column key.
        published: By column key; empty where the paper has no such row.
        source: Where in the paper.
    """

    labels: tuple[str, ...]
    ours: Mapping[str, Stat]
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        name: `table2`, say: stem of its CSV file.
        title: Heading.
        labels: Headings of the label columns.
        columns: Measured columns.
        rows: Rows.
        note: What a reader must know.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def has_published(self) -> tuple[Column, ...]:
        """Columns for which the paper has numbers."""
        return tuple(column for column in self.columns if any(column.key in row.published for row in self.rows))


def _fewest_images(records: Sequence[Mapping[str, Any]]) -> int | None:
    """The fewest images that records measured or measured against; None where one of them does not say."""
    counts: list[int] = []
    for record in records:
        protocol = record.get("protocol", {})
        told = [count for key in ("samples", "reference_samples") if (count := protocol.get(key)) is not None]
        if not told:
            return None
        counts += told
    return min(counts, default=None)


@dataclass(frozen=True, eq=False)
class Measured:
    """What is finished of a grid.

    Args:
        grid: The grid.
        results: Its results.
    """

    grid: Grid
    results: Results

    def content(self, kind: Kind, cell: Cell) -> dict[str, Any] | None:
        """The result of a cell; None where it is missing."""
        return self.results.read(self.grid.unit(kind, cell).result)

    def record(self, metric: str, cell: GeneratorCell) -> dict[str, Any] | None:
        """The record of a metric of a generator or of its tokenizer; None where it is missing."""
        kind, names = _METRICS[metric]
        content = self.content(kind, cell if kind == "generator" else cell.tokenizer)
        found = [r for r in (content or {"records": ()})["records"] if r["name"] in names]
        return found[0] if found and math.isfinite(found[0]["value"]) else None

    def stat(self, metric: str, cells: Sequence[GeneratorCell]) -> Stat:
        """A metric over cells that differ by their seed."""
        records = [record for cell in cells if (record := self.record(metric, cell)) is not None]
        return Stat(tuple(float(record["value"]) for record in records), len(cells), _fewest_images(records))

    def curve(self, cell: GeneratorCell) -> list[tuple[int, float]]:
        """(images, gFID) along a run; empty where it is missing."""
        content = self.content("curve", cell)
        return [] if content is None else [(p["images"], float(p["record"]["value"])) for p in content["points"]]

    def curve_images(self, cell: GeneratorCell) -> int | None:
        """The fewest images behind a point of a curve; None where that is not known."""
        content = self.content("curve", cell)
        return _fewest_images([p["record"] for p in (content or {"points": ()})["points"]])

    @property
    def distance(self) -> str:
        """`FID`, or `FD` where the feature network is another."""
        return "FID" if self.grid.config.measure.is_fid else "FD"

    @property
    def first_size(self) -> str:
        """The size whose gFID stands for a tokenizer."""
        experiments = self.grid.config.experiments
        if experiments.table2.seeds:
            return experiments.table2.sizes[0]
        return experiments.table4.size if experiments.table4.seeds else experiments.table5.size


def _columns(measured: Measured, *keys: str) -> tuple[Column, ...]:
    distance = measured.distance
    small = 2 if distance == "FID" else 1
    known = {
        "rfid": Column("rfid", f"r{distance}", small, "lower"),
        "psnr": Column("psnr", "PSNR", 2, "higher"),
        "lpips": Column("lpips", "LPIPS", 3, "lower"),
        "ssim": Column("ssim", "SSIM", 3, "higher"),
        "probe": Column("probe", "probe", 3, "higher"),
        "agreement": Column("agreement", "cosine", 3, "higher"),
        "cv": Column("cv", "density CV", 3, "lower"),
        "gini": Column("gini", "Gini", 3, "lower"),
        "entropy": Column("entropy", "norm. entropy", 3, "higher"),
        "gfid": Column("gfid", f"g{distance}", small, "lower"),
    }
    return tuple(known[key] for key in keys)


def _first(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def table2(measured: Measured) -> Table:
    """Reconstruction and generation over dimensions, teachers and sizes."""
    wanted = measured.grid.config.experiments.table2
    (gfid,) = _columns(measured, "gfid")
    theirs = {size: paper.size_counterpart(size, wanted.sizes) or "" for size in wanted.sizes}
    sizes = tuple(
        Column(f"gfid/{s}", f"{gfid.title} {s}", gfid.decimals, "lower", f"gFID {theirs[s]}") for s in wanted.sizes
    )
    columns = _columns(measured, "rfid", "psnr", "lpips", "ssim", "probe", "agreement")
    rows = []
    for dimension in wanted.dimensions if wanted.seeds else ():
        for teacher in wanted.teachers:
            cells = {
                s: [GeneratorCell(TokenizerCell.of(dimension, teacher, "full", seed), s) for seed in wanted.seeds]
                for s in wanted.sizes
            }
            ours = {c.key: measured.stat(c.key, cells[wanted.sizes[0]]) for c in columns}
            ours |= {f"gfid/{s}": measured.stat("gfid", cells[s]) for s in wanted.sizes}
            rows.append(Row((str(dimension), teacher), ours, *_published2(measured, dimension, teacher)))
    return Table(
        "table2",
        "Table 2: reconstruction and generation",
        ("d", "teacher"),
        (*columns, *sizes),
        tuple(rows),
        _ABOUT,
    )


def _published2(measured: Measured, dimension: int, teacher: str) -> tuple[dict[str, float], str]:
    wanted = measured.grid.config.experiments.table2
    same = paper.counterpart(dimension, wanted.dimensions)
    found = paper.TABLE2.get((same, paper.family(teacher))) if same is not None else None
    if found is None:
        return {}, ""
    values = {key: value for key, value in found.values.items() if "/" not in key}
    for size in wanted.sizes:
        theirs = paper.size_counterpart(size, wanted.sizes)
        if theirs is not None:
            values[f"gfid/{size}"] = found.values[f"gfid/{theirs}"]
    return values, found.source


def table4(measured: Measured) -> Table:
    """Which teacher."""
    wanted = measured.grid.config.experiments.table4
    columns = _columns(measured, "rfid", "psnr", "probe", "agreement", "gfid")
    rows = []
    for teacher in wanted.teachers if wanted.seeds else ():
        cells = [
            GeneratorCell(TokenizerCell.of(wanted.dimension, teacher, "full", s), wanted.size) for s in wanted.seeds
        ]
        rows.append(_row(measured, (teacher,), columns, cells, paper.TABLE4.get(paper.family(teacher))))
    return Table(
        "table4", f"Table 4: teachers (d {wanted.dimension}, {wanted.size})", ("teacher",), columns, tuple(rows)
    )


def table5(measured: Measured) -> Table:
    """Which part of the loss."""
    wanted = measured.grid.config.experiments.table5
    columns = _columns(measured, "rfid", "psnr", "probe", "agreement", "gfid")
    rows = []
    for loss in wanted.losses if wanted.seeds else ():
        cells = [
            GeneratorCell(TokenizerCell.of(wanted.dimension, wanted.teacher, loss, s), wanted.size)
            for s in wanted.seeds
        ]
        rows.append(_row(measured, (LOSS_NAMES[loss],), columns, cells, paper.TABLE5.get(loss)))
    title = f"Table 5: parts of the alignment loss (d {wanted.dimension}, {wanted.teacher}, {wanted.size})"
    return Table("table5", title, ("loss",), columns, tuple(rows), "A single term has half the weight, as published.")


def _row(
    measured: Measured,
    labels: tuple[str, ...],
    columns: Sequence[Column],
    cells: Sequence[GeneratorCell],
    published: paper.Published | None,
) -> Row:
    ours = {column.key: measured.stat(column.key, cells) for column in columns}
    return Row(labels, ours, dict(published.values) if published else {}, published.source if published else "")


def table6(measured: Measured) -> Table:
    """Uniformity of every tokenizer, beside the gFID of its generator of the first size.

    The paper asks it of uniformity alone; the other columns show which number foretells gFID better.
    """
    columns = _columns(measured, "cv", "gini", "entropy", "rfid", "probe", "agreement", "gfid")
    size = measured.first_size
    groups: dict[tuple[int, str, str], list[GeneratorCell]] = {}
    for cell in measured.grid.tokenizers:
        # A tokenizer without a generator of this size has its uniformity all the same.
        groups.setdefault((cell.dimension, cell.teacher, cell.loss), []).append(GeneratorCell(cell, size))
    dimensions = _first([d for d, _, _ in groups])
    rows = []
    for (dimension, teacher, loss), cells in sorted(groups.items(), key=lambda item: item[0][0]):
        # The paper's d 32 and d 64 are its two dimensions here; nothing else is matched with them.
        same = dimension if all(d in paper.DIMENSIONS for d in dimensions) else None
        found = paper.TABLE6.get((same, paper.family(teacher))) if same and loss in ("full", "none") else None
        said = "" if loss in ("full", "none") else f" ({LOSS_NAMES[loss]})"
        rows.append(_row(measured, (str(dimension), f"{teacher}{said}"), columns, cells, found))
    seeds = measured.grid.config.measure.tsne_seeds
    runs = "one t-SNE run" if seeds == 1 else f"means over {seeds} t-SNE runs"
    note = (
        f"Uniformity: {runs} of test latents, one random position each. The paper has no more than that; the other "
        f"columns show which number of a tokenizer foretells g{measured.distance}."
    )
    return Table(
        "table6",
        f"Table 6: uniformity of latents, and g{measured.distance} of {size}",
        ("d", "teacher"),
        columns,
        tuple(rows),
        note,
    )


def table1(measured: Measured) -> Table:
    """The ladder from DiT to LightningDiT."""
    columns = _columns(measured, "gfid")
    groups: dict[str, list[GeneratorCell]] = {}
    for row, cell in measured.grid.ladder():
        groups.setdefault(row, []).append(cell)
    wanted = measured.grid.config.experiments.ladder
    rows = [
        _row(measured, (ROW_NAMES[name],), columns, cells, paper.TABLE1.get(name)) for name, cells in groups.items()
    ]
    note = (
        "Patch 2 on latents without alignment up to RoPE; the last row has patch 1 on latents aligned with "
        f"{wanted.teacher}."
    )
    return Table(
        "table1",
        f"Table 1: from DiT to LightningDiT (d {wanted.dimension}, {wanted.size})",
        ("up to",),
        columns,
        tuple(rows),
        note,
    )


def tables(measured: Measured) -> list[Table]:
    """All tables that the recipe asks for, in the order of the page."""
    every = (table2(measured), table4(measured), table5(measured), table6(measured), table1(measured))
    return [table for table in every if table.rows]


@dataclass(frozen=True)
class Correlation:
    """How a number of tokenizers goes with gFID.

    Attributes:
        metric: Heading of its column.
        pearson: Correlation of the values.
        spearman: Correlation of the ranks.
        count: Tokenizers behind it.
        group: Which tokenizers.
    """

    metric: str
    pearson: float
    spearman: float
    count: int
    group: str


def correlations(measured: Measured, table: Table) -> list[Correlation]:
    """Over all tokenizers of table 6, and over those of each dimension, where there are at least three."""
    from scipy.stats import pearsonr, spearmanr

    groups = {EVERY_TOKENIZER: list(table.rows)}
    groups |= {
        f"d {d}": [row for row in table.rows if row.labels[0] == d] for d in _first([r.labels[0] for r in table.rows])
    }
    found = []
    for group, rows in groups.items():
        for column in table.columns:
            if column.key == "gfid":
                continue
            pairs = [(r.ours[column.key].mean, r.ours["gfid"].mean) for r in rows]
            known = np.array([(a, b) for a, b in pairs if a is not None and b is not None])
            if len(known) >= 3 and known.std(0).min() > 0:
                x, y = known.T
                found.append(
                    Correlation(column.title, float(pearsonr(x, y)[0]), float(spearmanr(x, y)[0]), len(known), group)
                )
        if len(groups) == 2:  # one dimension only: it is all tokenizers
            break
    return found


def to_csv(table: Table) -> str:
    """A table as CSV: of each number mean, spread and seeds, and the published number in a column of its own."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ours = [f"{column.key} {part}" for column in table.columns for part in ("mean", "spread", "seeds")]
    published = [f"published {column.key}" for column in table.has_published]
    writer.writerow([*table.labels, *ours, *published, "published source"])
    for row in table.rows:
        cells: list[Any] = []
        for column in table.columns:
            stat = row.ours[column.key]
            cells += [
                "" if stat.mean is None else stat.mean,
                "" if stat.spread is None else stat.spread,
                len(stat.values),
            ]
        theirs = [row.published.get(column.key, "") for column in table.has_published]
        writer.writerow([*row.labels, *cells, *theirs, row.source])
    return buffer.getvalue()


def to_plain_table(table: Table) -> dict[str, Any]:
    """A table as JSON values."""
    return {
        "title": table.title,
        "note": table.note,
        "columns": {column.key: column.title for column in table.columns},
        "rows": [
            {
                "labels": dict(zip(table.labels, row.labels, strict=True)),
                "ours": {
                    key: {"mean": stat.mean, "spread": stat.spread, "values": list(stat.values), "wanted": stat.wanted}
                    for key, stat in row.ours.items()
                },
                "published": {"values": dict(row.published), "source": row.source},
            }
            for row in table.rows
        ],
    }
