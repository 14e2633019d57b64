"""Build the paper's tables from results: mean and spread over seeds, with the published numbers in separate columns."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from vavae.frontier import published as paper
from vavae.frontier.config import Kind
from vavae.frontier.grid import LOSS_NAMES, ROW_NAMES, Cell, GeneratorCell, Grid, TokenizerCell
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
EVERY_TOKENIZER = "all tokenizers"


@dataclass(frozen=True)
class Stat:
    """A number measured with several seeds.

    Attributes:
        values: One per finished seed.
        wanted: Number of seeds in the recipe.
        images: Fewest samples or reference images of one of the values; None if it is not recorded.
    """

    values: tuple[float, ...]
    wanted: int
    images: int | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None if no seed is finished."""
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
        better: Direction of better values.
        published_title: Heading of the paper's numbers, if it differs.
    """

    key: str
    title: str
    decimals: int
    better: Literal["higher", "lower"]
    published_title: str = ""

    @property
    def published_decimals(self) -> int:
        """Number of decimals in the paper."""
        return 3 if self.key in ("lpips", "cv", "gini", "entropy") else 2


@dataclass(frozen=True)
class Row:
    """A row: labels, our numbers, and the published numbers.

    Attributes:
        labels: One per label column.
        ours: By column key.
        published: By column key; empty if the paper has no such row.
        source: Table and row in the paper.
    """

    labels: tuple[str, ...]
    ours: Mapping[str, Stat]
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        name: Stem of its CSV file, for example `table2`.
        title: Heading.
        labels: Headings of the label columns.
        columns: Measured columns.
        rows: Rows.
        note: Remarks below the table.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def published_columns(self) -> tuple[Column, ...]:
        """Columns for which the paper has numbers."""
        return tuple(column for column in self.columns if any(column.key in row.published for row in self.rows))


def _fewest_images(records: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the fewest samples or reference images in records; None if one of them has neither."""
    counts: list[int] = []
    for record in records:
        protocol = record.get("protocol", {})
        recorded = [count for key in ("samples", "reference_samples") if (count := protocol.get(key)) is not None]
        if not recorded:
            return None
        counts += recorded
    return min(counts, default=None)


@dataclass(frozen=True, eq=False)
class Measured:
    """The finished results of a grid.

    Args:
        grid: The grid.
        results: Its results.
    """

    grid: Grid
    results: Results

    def content(self, kind: Kind, cell: Cell) -> dict[str, Any] | None:
        """Return the result of a cell, or None."""
        return self.results.read(self.grid.job(kind, cell).result)

    def record(self, metric: str, cell: GeneratorCell) -> dict[str, Any] | None:
        """Return the record of a metric of a generator or of its tokenizer, or None."""
        kind, names = _METRICS[metric]
        content = self.content(kind, cell if kind == "generator" else cell.tokenizer)
        found = [r for r in (content or {"records": ()})["records"] if r["name"] in names]
        return found[0] if found and math.isfinite(found[0]["value"]) else None

    def stat(self, key: str, cells: Sequence[GeneratorCell]) -> Stat:
        """Return a metric over cells that differ by seed.

        Args:
            key: `rfid`, `gfid`, …, of the cells of the first cell's size, or `gfid/S/1`, of the cells of size S/1.
            cells: The cells.
        """
        metric, _, size = key.partition("/")
        cells = [cell for cell in cells if cell.size == (size or cells[0].size)]
        records = [record for cell in cells if (record := self.record(metric, cell)) is not None]
        return Stat(tuple(float(record["value"]) for record in records), len(cells), _fewest_images(records))

    def curve(self, cell: GeneratorCell) -> list[tuple[int, float]]:
        """Return (images, gFID) along a run; empty if it is missing."""
        content = self.content("curve", cell)
        return [] if content is None else [(p["images"], float(p["record"]["value"])) for p in content["points"]]

    def curve_images(self, cell: GeneratorCell) -> int | None:
        """Return the fewest samples or reference images of a point of a curve; None if they are not recorded."""
        content = self.content("curve", cell)
        return _fewest_images([p["record"] for p in (content or {"points": ()})["points"]])

    @property
    def distance(self) -> str:
        """`FID`, or `FD` with another feature network."""
        return "FID" if self.grid.config.measure.is_fid else "FD"

    @property
    def first_size(self) -> str:
        """The size whose gFID table 6 shows."""
        experiments = self.grid.config.experiments
        if experiments.table2.seeds:
            return experiments.table2.sizes[0]
        return experiments.table4.size if experiments.table4.seeds else experiments.table5.size


def _column(distance: str, key: str) -> Column:
    metric, _, size = key.partition("/")
    small = 2 if distance == "FID" else 1
    column = {
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
    }[metric]
    return replace(column, key=key, title=f"{column.title} {size}") if size else column


Cells = Iterable[tuple[tuple[str, ...], GeneratorCell, paper.Published | None]]


def _table(
    measured: Measured,
    name: str,
    title: str,
    labels: tuple[str, ...],
    columns: Sequence[Column],
    cells: Cells,
    note: str = "",
) -> Table:
    """Return a table; cells with the same labels, which differ by seed and size, are one row.

    Args:
        measured: What is finished.
        name: Stem of its file.
        title: Heading.
        labels: Headings of the label columns.
        columns: Measured columns.
        cells: Labels of the row, cell, and the paper's numbers for the row.
        note: Remarks below the table.
    """
    groups: dict[tuple[str, ...], list[GeneratorCell]] = {}
    published: dict[tuple[str, ...], paper.Published] = {}
    for row, cell, numbers in cells:
        groups.setdefault(row, []).append(cell)
        published[row] = numbers or paper.Published({}, "")
    rows = [
        Row(
            row,
            {column.key: measured.stat(column.key, group) for column in columns},
            dict(published[row].values),
            published[row].source,
        )
        for row, group in groups.items()
    ]
    return Table(name, title, labels, tuple(columns), tuple(rows), note)


def tables(measured: Measured) -> dict[str, Table]:
    """Return the tables of the recipe by name, in the order of the page."""
    grid, wanted, distance = measured.grid, measured.grid.config.experiments, measured.distance
    seeds = grid.config.measure.tsne_seeds
    one_size = ("rfid", "psnr", "probe", "agreement", "gfid")

    def columns(*keys: str) -> list[Column]:
        return [_column(distance, key) for key in keys]

    def teacher(cell: GeneratorCell) -> str:
        return paper.family(cell.tokenizer.teacher)

    size_columns = [
        replace(column, published_title=f"gFID {paper.size_counterpart(size, wanted.table2.sizes) or ''}")
        for size, column in zip(wanted.table2.sizes, columns(*(f"gfid/{s}" for s in wanted.table2.sizes)), strict=True)
    ]
    t4, t5, ladder, first_size = wanted.table4, wanted.table5, wanted.ladder, measured.first_size
    by_dimension = sorted(grid.tokenizers, key=lambda t: t.dimension)
    found = (
        _table(
            *(measured, "table2", "Table 2: reconstruction and generation", ("d", "teacher")),
            [*columns("rfid", "psnr", "lpips", "ssim", "probe", "agreement"), *size_columns],
            [
                ((str(c.tokenizer.dimension), c.tokenizer.teacher), c, _published2(measured, c.tokenizer))
                for c in grid.table2()
            ],
            "Probe: accuracy of a linear classifier on the latents. Cosine: of the latents, after the best linear map, "
            "with the features of one teacher, the same for all tokenizers. The paper has neither. Bold: best of its "
            "column.",
        ),
        _table(
            *(measured, "table4", f"Table 4: teachers (d {t4.dimension}, {t4.size})", ("teacher",)),
            columns(*one_size),
            [((c.tokenizer.teacher,), c, paper.TABLE4.get(teacher(c))) for c in grid.table4()],
        ),
        _table(
            *(measured, "table5"),
            f"Table 5: parts of the alignment loss (d {t5.dimension}, {t5.teacher}, {t5.size})",
            ("loss",),
            columns(*one_size),
            [((LOSS_NAMES[c.tokenizer.loss],), c, paper.TABLE5.get(c.tokenizer.loss)) for c in grid.table5()],
            "A single term has half the weight, as published.",
        ),
        _table(
            *(measured, "table6", f"Table 6: uniformity of latents, and g{distance} of {first_size}", ("d", "teacher")),
            columns("cv", "gini", "entropy", "rfid", "probe", "agreement", "gfid"),
            [
                ((str(t.dimension), _with_loss(t)), GeneratorCell(t, first_size), _published6(measured, t))
                for t in by_dimension
            ],
            f"Uniformity: {'one t-SNE run' if seeds == 1 else f'means over {seeds} t-SNE runs'} of test latents, one "
            "random position each. The paper has no more than that; the other columns show which number of a tokenizer "
            f"predicts g{distance}.",
        ),
        _table(
            *(measured, "table1", f"Table 1: from DiT to LightningDiT (d {ladder.dimension}, {ladder.size})"),
            ("up to",),
            columns("gfid"),
            [((ROW_NAMES[row],), cell, paper.TABLE1.get(row)) for row, cell in grid.ladder()],
            "Patch 2 on latents without alignment up to RoPE; the last row has patch 1 on latents aligned with "
            f"{ladder.teacher}.",
        ),
    )
    return {table.name: table for table in found if table.rows}


def _published2(measured: Measured, tokenizer: TokenizerCell) -> paper.Published | None:
    """Return the paper's row of Table 2 for a tokenizer, with our sizes in the keys."""
    wanted = measured.grid.config.experiments.table2
    dimension = paper.counterpart(tokenizer.dimension, wanted.dimensions)
    found = paper.TABLE2.get((dimension, paper.family(tokenizer.teacher))) if dimension is not None else None
    if found is None:
        return None
    sizes = {size: paper.size_counterpart(size, wanted.sizes) for size in wanted.sizes}
    values = {key: value for key, value in found.values.items() if "/" not in key}
    values |= {f"gfid/{ours}": found.values[f"gfid/{size}"] for ours, size in sizes.items() if size is not None}
    return paper.Published(values, found.source)


def _published6(measured: Measured, tokenizer: TokenizerCell) -> paper.Published | None:
    """Return the paper's row of Table 6, if all our dimensions are the paper's."""
    dimensions = {t.dimension for t in measured.grid.tokenizers}
    if tokenizer.loss not in ("full", "none") or not dimensions <= set(paper.DIMENSIONS):
        return None
    return paper.TABLE6.get((tokenizer.dimension, paper.family(tokenizer.teacher)))


def _with_loss(tokenizer: TokenizerCell) -> str:
    """Return the teacher, with the loss in brackets if a part of it is off."""
    loss = "" if tokenizer.loss in ("full", "none") else f" ({LOSS_NAMES[tokenizer.loss]})"
    return f"{tokenizer.teacher}{loss}"


@dataclass(frozen=True)
class Correlation:
    """Correlation of a number of the tokenizers with gFID.

    Attributes:
        metric: Heading of its column.
        pearson: Correlation of the values.
        spearman: Correlation of the ranks.
        count: Number of tokenizers.
        group: Which tokenizers.
    """

    metric: str
    pearson: float
    spearman: float
    count: int
    group: str

    @property
    def error(self) -> float:
        """Standard error of `pearson`: √((1 − r²) / (n − 2))."""
        return math.sqrt(max(0.0, 1 - self.pearson**2) / (self.count - 2))


def correlations(table: Table) -> list[Correlation]:
    """Return correlations over all rows of table 6, and over the rows of each dimension, for at least three rows."""
    from scipy.stats import pearsonr, spearmanr

    groups = {EVERY_TOKENIZER: list(table.rows)}
    for row in table.rows:
        groups.setdefault(f"d {row.labels[0]}", []).append(row)
    if len(groups) == 2:  # the only dimension is the same group
        groups = {EVERY_TOKENIZER: groups[EVERY_TOKENIZER]}
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
    return found


def to_markdown(table: Table) -> str:
    """Return a table in Markdown: our means with their spreads over seeds, and the paper's numbers."""
    published = [f"published {column.published_title or column.title}" for column in table.published_columns]
    heads = [*table.labels, *(column.title for column in table.columns), *published]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in table.rows:
        cells = list(row.labels)
        for column in table.columns:
            stat = row.ours[column.key]
            spread = f" ± {stat.spread:.{column.decimals}f}" if stat.spread is not None else ""
            cells.append("–" if stat.mean is None else f"{stat.mean:.{column.decimals}f}{spread}")
        for column in table.published_columns:
            number = row.published.get(column.key)
            cells.append("–" if number is None else f"{number:.{column.published_decimals}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Return a table as CSV: mean, spread and number of seeds of each number, and the published number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ours = [f"{column.key} {part}" for column in table.columns for part in ("mean", "spread", "seeds")]
    published = [f"published {column.key}" for column in table.published_columns]
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
        published_numbers = [row.published.get(column.key, "") for column in table.published_columns]
        writer.writerow([*row.labels, *cells, *published_numbers, row.source])
    return buffer.getvalue()


def to_plain_table(table: Table) -> dict[str, Any]:
    """Return a table as JSON values."""
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
