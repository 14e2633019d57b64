"""Build the paper's tables from results: mean and spread over seeds, with the published numbers in separate columns."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vavae.frontier import published as paper
from vavae.frontier.config import LOSS_NAMES, METHOD_NAMES, ROW_NAMES, Kind, Method
from vavae.frontier.grid import Cell, GeneratorCell, Grid, TokenizerCell
from vavae.frontier.hidden import NEIGHBORS, TIME
from vavae.frontier.published import Published
from vavae.frontier.results import Results

EVERY_TOKENIZER = "all tokenizers"


@dataclass(frozen=True)
class Stat:
    """A number measured with several seeds."""

    values: tuple[float, ...]  # one per finished seed
    wanted: int  # number of seeds in the recipe
    images: int | None = None  # fewest samples or reference images of one of the values; None if it is not recorded

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
    """A measured column."""

    key: str  # metric, with the size of the generator after a slash if there are several
    kind: Kind  # kind of the jobs that measure it
    records: tuple[str, ...]  # names of its records
    title: str
    better: Literal["higher", "lower"]  # direction of better values
    decimals: int = 3
    published_decimals: int = 2  # digits after the point in the paper
    published_title: str = ""  # heading of the paper's numbers, if it differs


_COLUMNS = (
    Column("rfid", "tokenizer", ("rFID", "reconstruction Fréchet distance"), "rFID", "lower", 2),
    Column("psnr", "tokenizer", ("PSNR",), "PSNR", "higher", 2),
    Column("lpips", "tokenizer", ("LPIPS",), "LPIPS", "lower", published_decimals=3),
    Column("ssim", "tokenizer", ("SSIM",), "SSIM", "higher"),
    Column("probe", "tokenizer", ("linear probe",), "probe", "higher"),
    Column("agreement", "tokenizer", ("alignment: cosine after the best linear map",), "cosine", "higher"),
    Column("cv", "uniformity", ("uniformity: density cv",), "density CV", "lower", published_decimals=3),
    Column("gini", "uniformity", ("uniformity: Gini",), "Gini", "lower", published_decimals=3),
    Column(
        "entropy", "uniformity", ("uniformity: normalized entropy",), "norm. entropy", "higher", published_decimals=3
    ),
    Column("gfid", "generator", ("FID", "Fréchet distance"), "gFID", "lower", 2),
    Column("hidden_probe", "hidden", ("linear probe of hidden states",), "probe", "higher"),
    Column("cknna", "hidden", ("CKNNA of hidden states",), "CKNNA", "higher"),
    Column("velocity", "hidden", ("held-out velocity loss",), "velocity loss", "lower", 4),
)
_BY_KEY = {column.key: column for column in _COLUMNS}


# Columns that do not compare with other methods: REG's network sees a class token too, joint training has own latents.
_APART: Mapping[Method, tuple[str, ...]] = {"reg": ("hidden_probe", "cknna", "velocity"), "joint": ("velocity",)}


@dataclass(frozen=True)
class Row:
    """A row: one label per label column, our numbers by column key, and the paper's row."""

    labels: tuple[str, ...]
    ours: Mapping[str, Stat]
    published: Published
    apart: tuple[str, ...] = ()  # keys of columns whose number does not compare with the other rows'


@dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    name: str  # stem of its CSV file, for example `table2`
    title: str
    labels: tuple[str, ...]  # headings of the label columns
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""  # remarks below the table

    @property
    def published_columns(self) -> tuple[Column, ...]:
        """Columns for which the paper has numbers."""
        return tuple(column for column in self.columns if any(column.key in row.published.values for row in self.rows))

    def is_best(self, row: Row, column: Column) -> bool:
        """Return whether a row has the best mean of its column, if several differ."""
        rows = [each for each in self.rows if column.key not in each.apart]
        means = [mean for each in rows if (mean := each.ours[column.key].mean) is not None]
        best = max if column.better == "higher" else min
        return row in rows and len(set(means)) > 1 and row.ours[column.key].mean == best(means)


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
    """The finished results of a grid."""

    grid: Grid
    results: Results

    def content(self, kind: Kind, cell: Cell) -> dict[str, Any] | None:
        """Return the result of a cell, or None."""
        return self.results.read(self.grid.job(kind, cell).result)

    def stat(self, key: str, cells: Sequence[GeneratorCell]) -> Stat:
        """Return a metric (`rfid`, …) over cells that differ by seed; `gfid/S/1` takes the cells of size S/1."""
        metric, _, size = key.partition("/")
        column, cells = _BY_KEY[metric], [cell for cell in cells if cell.size == (size or cells[0].size)]
        records = []
        for cell in cells:
            content = self.content(column.kind, cell if column.kind in ("generator", "hidden") else cell.tokenizer)
            found = [r for r in (content or {"records": ()})["records"] if r["name"] in column.records]
            records += [r for r in found[:1] if math.isfinite(r["value"])]
        return Stat(tuple(float(record["value"]) for record in records), len(cells), _fewest_images(records))

    def curve(self, cell: GeneratorCell) -> list[tuple[int, float]]:
        """Return (images, gFID) along a run; empty if it is missing."""
        return [(p["images"], float(p["record"]["value"])) for p in self._points(cell)]

    def curve_images(self, cell: GeneratorCell) -> int | None:
        """Return the fewest samples or reference images of a point of a curve; None if they are not recorded."""
        return _fewest_images([p["record"] for p in self._points(cell)])

    def _points(self, cell: GeneratorCell) -> list[dict[str, Any]]:
        return (self.content("curve", cell) or {"points": []})["points"]

    @property
    def distance(self) -> str:
        """`FID`, or `FD` with another feature network."""
        return "FID" if self.grid.config.measure.is_fid else "FD"

    @property
    def first_size(self) -> str:
        """The size whose gFID table 6 shows."""
        return self.grid.generators[0].size

    def column(self, key: str) -> Column:
        """Return the column of a metric, or of a metric and a size (`gfid/S/1`)."""
        metric, _, size = key.partition("/")
        column = _BY_KEY[metric]
        if column.title.endswith("FID") and self.distance == "FD":
            column = replace(column, title=f"{column.title[0]}FD", decimals=1, published_title=column.title)
        if not size:
            return column
        published = f"gFID {paper.size_counterpart(size, self.grid.config.experiments.table2.sizes) or ''}"
        return replace(column, key=key, title=f"{column.title} {size}", published_title=published)


def tables(measured: Measured) -> dict[str, Table]:
    """Return the tables of the recipe by name, in the order of the page."""
    grid, wanted, distance = measured.grid, measured.grid.config.experiments, measured.distance
    seeds, first_size = grid.config.measure.tsne_seeds, measured.first_size
    t4, t5, ladder, methods = wanted.table4, wanted.table5, wanted.ladder, wanted.alignment
    one_size = "rfid psnr probe agreement gfid"

    def table(name: str, title: str, labels: tuple[str, ...], columns: str, cells: Cells, note: str = "") -> Table:
        found = tuple(measured.column(key) for key in columns.split())
        return Table(name, title, labels, found, _rows(measured, found, cells), note)

    found = (
        table(
            *("table2", "Table 2: reconstruction and generation", ("d", "teacher")),
            " ".join(["rfid psnr lpips ssim probe agreement", *(f"gfid/{size}" for size in wanted.table2.sizes)]),
            (
                ((str(c.tokenizer.dimension), c.tokenizer.teacher), c, _published2(measured, c.tokenizer))
                for c in grid.table2()
            ),
            "Probe: accuracy of a linear classifier on the latents. Cosine: of the latents, after the best linear map, "
            "with the features of one teacher, the same for all tokenizers. The paper has neither. Bold: best of its "
            "column.",
        ),
        table(
            *("table4", f"Table 4: teachers (d {t4.dimension}, {t4.size})", ("teacher",), one_size),
            (
                ((c.tokenizer.teacher,), c, paper.TABLE4.get(paper.family(c.tokenizer.teacher)))
                for c in grid.by_teacher(t4)
            ),
        ),
        table(
            *("table5", f"Table 5: parts of the alignment loss (d {t5.dimension}, {t5.teacher}, {t5.size})"),
            *(("loss",), one_size),
            (((LOSS_NAMES[c.tokenizer.loss],), c, paper.TABLE5.get(c.tokenizer.loss)) for c in grid.table5()),
            "A single term has half the weight, as published.",
        ),
        table(
            *("latents", f"Latents: aligned with {wanted.latents.teacher}, or its own", ("latent", "transformer")),
            "rfid psnr probe gfid",
            (((_latent(c.tokenizer), _transformer(grid, c)), c, None) for c in grid.latents()),
            "All tokenizers see the same images, and all generators as many latents. The teacher's own latents are "
            "decoded by a ViT (RAE), and have times shifted by their dimension.",
        ),
        table(
            *("alignment", f"Alignment inside the transformer: d {methods.dimension}, {methods.size}", ("method",)),
            "hidden_probe cknna velocity gfid",
            (((METHOD_NAMES[c.method],), c, None) for c in grid.by_method()),
            _alignment_note(measured),
        ),
        table(
            *("table6", f"Table 6: uniformity of latents, and g{distance} of {first_size}", ("d", "teacher")),
            "cv gini entropy rfid probe agreement gfid",
            (
                ((str(t.dimension), _with_loss(t)), GeneratorCell(t, first_size), _published6(measured, t))
                for t in sorted(grid.tokenizers, key=lambda t: t.dimension)
            ),
            f"Uniformity: {'one t-SNE run' if seeds == 1 else f'means over {seeds} t-SNE runs'} of test latents, one "
            "random position each. The paper has no more than that; the other columns show which number of a tokenizer "
            f"predicts g{distance}.",
        ),
        table(
            *("table1", f"Table 1: from DiT to LightningDiT (d {ladder.dimension}, {ladder.size})", ("up to",), "gfid"),
            (((ROW_NAMES[row],), cell, paper.TABLE1.get(row)) for row, cell in grid.ladder()),
            "Patch 2 on latents without alignment up to RoPE; the last row has patch 1 on latents aligned with "
            f"{ladder.teacher}.",
        ),
    )
    return {one.name: one for one in found if one.rows}


Cells = Iterable[tuple[tuple[str, ...], GeneratorCell, Published | None]]  # labels of the row, cell, the paper's row


def _rows(measured: Measured, columns: Sequence[Column], cells: Cells) -> tuple[Row, ...]:
    """Return rows; cells with the same labels, which differ by seed and size, are one row."""
    groups: dict[tuple[str, ...], list[GeneratorCell]] = {}
    published: dict[tuple[str, ...], Published] = {}
    for labels, cell, numbers in cells:
        groups.setdefault(labels, []).append(cell)
        published[labels] = numbers or Published({}, "")
    return tuple(
        Row(
            labels,
            {column.key: measured.stat(column.key, group) for column in columns},
            published[labels],
            _APART.get(group[0].method, ()),
        )
        for labels, group in groups.items()
    )


def _published2(measured: Measured, tokenizer: TokenizerCell) -> Published | None:
    """Return the paper's row of Table 2 for a tokenizer, with our sizes in the keys."""
    wanted = measured.grid.config.experiments.table2
    dimension = paper.counterpart(tokenizer.dimension, wanted.dimensions)
    found = paper.TABLE2.get((dimension, paper.family(tokenizer.teacher))) if dimension is not None else None
    if found is None:
        return None
    sizes = {size: paper.size_counterpart(size, wanted.sizes) for size in wanted.sizes}
    values = {key: value for key, value in found.values.items() if "/" not in key}
    values |= {f"gfid/{ours}": found.values[f"gfid/{size}"] for ours, size in sizes.items() if size is not None}
    return Published(values, found.source)


def _published6(measured: Measured, tokenizer: TokenizerCell) -> Published | None:
    """Return the paper's row of Table 6, if all our dimensions are the paper's."""
    dimensions = {t.dimension for t in measured.grid.tokenizers if not t.own}
    if tokenizer.loss not in ("full", "none") or not dimensions <= set(paper.DIMENSIONS):
        return None
    return paper.TABLE6.get((tokenizer.dimension, paper.family(tokenizer.teacher)))


def _alignment_note(measured: Measured) -> str:
    """Return the protocol of the table of methods, and what does not compare in it."""
    grid = measured.grid
    cells, measure = list(grid.by_method()), grid.config.measure
    if not cells:
        return ""
    images = grid.generator(cells[0]).training.images
    return (
        f"All transformers see {images:,} images, on latents of the same tokenizer without alignment; joint training "
        f"also tunes that tokenizer. REG is REPA with a class token. Teacher: {grid.aligning_teacher.name}. Hidden "
        f"states: mean token after block {grid.block(cells[0])}, where REPA aligns, at t = {TIME:g} (1: data), with no "
        f"label. Probe: accuracy of a linear classifier on them, over at most {measure.latents:,} test images. CKNNA: "
        f"with the teacher's features, k = {NEIGHBORS}. Velocity loss: mean squared error of the averaged network on "
        "the same images, with the same times and noise in all rows. † Not comparable, and never bold: after joint "
        "training the latents are its own, so its velocity loss is that of another task, and "
        f"g{measured.distance} that of another decoder; REG's network also sees a noised class token of the image."
    )


def _with_loss(tokenizer: TokenizerCell) -> str:
    """Return the teacher, with the loss in brackets if a part of it is off."""
    loss = "" if tokenizer.loss in ("full", "none") else f" ({LOSS_NAMES[tokenizer.loss]})"
    return f"{tokenizer.teacher}{loss}{' (own latent)' if tokenizer.own else ''}"


def _latent(tokenizer: TokenizerCell) -> str:
    """Return what the latent is, with its channels."""
    return f"{'own' if tokenizer.own else 'aligned'}, d {tokenizer.dimension}"


def _transformer(grid: Grid, cell: GeneratorCell) -> str:
    """Return size and kind of a generator."""
    return f"{cell.size}, {'DiT^DH' if grid.generator(cell).transformer.has_head else 'LightningDiT'}"


@dataclass(frozen=True)
class Correlation:
    """Correlation of a number of the tokenizers with gFID."""

    metric: str  # heading of its column
    pearson: float  # correlation of the values
    spearman: float  # correlation of the ranks
    count: int  # number of tokenizers
    group: str  # which tokenizers

    @property
    def error(self) -> float:
        """Standard error of `pearson`: √((1 − r²) / (n − 2))."""
        return math.sqrt(max(0.0, 1 - self.pearson**2) / (self.count - 2))


def correlations(table: Table) -> list[Correlation]:
    """Return correlations over all rows of table 6, and over the rows of each dimension, for at least three rows."""
    groups = {EVERY_TOKENIZER: list(table.rows)}
    dimensions = dict.fromkeys(row.labels[0] for row in table.rows)
    if len(dimensions) > 1:
        groups |= {f"d {d}": [row for row in table.rows if row.labels[0] == d] for d in dimensions}
    found = []
    for group, rows in groups.items():
        for column in table.columns[:-1]:  # the last one is gFID
            pairs = [(r.ours[column.key].mean, r.ours["gfid"].mean) for r in rows]
            known = np.array([(a, b) for a, b in pairs if a is not None and b is not None])
            if len(known) >= 3 and np.ptp(known, 0).min() > 0:
                from scipy.stats import pearsonr, spearmanr  # takes seconds

                x, y = known.T
                numbers = float(pearsonr(x, y)[0]), float(spearmanr(x, y)[0])
                found.append(Correlation(column.title, *numbers, len(known), group))
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
            apart = " †" if column.key in row.apart else ""
            cells.append("–" if stat.mean is None else f"{stat.mean:.{column.decimals}f}{spread}{apart}")
        for column in table.published_columns:
            number = row.published.values.get(column.key)
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
        stats = (row.ours[column.key] for column in table.columns)
        cells = [cell for stat in stats for cell in (stat.mean, stat.spread, len(stat.values))]  # None is empty
        numbers = [row.published.values.get(column.key) for column in table.published_columns]
        writer.writerow([*row.labels, *cells, *numbers, row.published.source])
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
                "published": {"values": dict(row.published.values), "source": row.published.source},
            }
            for row in table.rows
        ],
    }
