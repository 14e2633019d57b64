"""Train and measure one cell of a frontier."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from vavae.config import to_plain
from vavae.data import ImageSource, load_images, to_uint8
from vavae.data.images import Selection, class_balanced
from vavae.device import resolve_device, resolve_precision
from vavae.evaluation import tokenizer as of_tokenizer
from vavae.evaluation.features import BlockStore, extract
from vavae.evaluation.generation import Measuring, Reference, generation_records, open_reference
from vavae.evaluation.images import generated_images, source_images
from vavae.evaluation.reconstruction import EvaluationContext
from vavae.evaluation.records import sampling_protocol, uniformity_records
from vavae.frontier.config import Config, Kind
from vavae.frontier.grid import Cell, GeneratorCell, Grid, Job, TokenizerCell
from vavae.frontier.hidden import SeenImages, hidden_records
from vavae.frontier.results import Results
from vavae.io.files import write_text
from vavae.losses import LPIPS
from vavae.metrics import (
    FeatureNetwork,
    MeasurementProtocol,
    MetricRecord,
    latent_uniformity,
    load_feature_network,
    tsne_points,
)
from vavae.metrics.uniformity import average
from vavae.models import Generator, Tokenizer
from vavae.models.sampling import choose_labels, draw
from vavae.progress import track
from vavae.report.images import image_grid, image_uri
from vavae.stages import encode, train_dit, train_joint, train_tokenizer
from vavae.teachers import Teacher, load_teacher
from vavae.training.compile import compile_network
from vavae.training.parallel import World
from vavae.training.posthoc_ema import list_snapshots
from vavae.training.run_log import read_metrics, versions

_SHOWN = 16  # reconstructions
_ROWS, _COLUMNS = 4, 8  # samples
_POINTS = 1000  # of a t-SNE picture
# Folders with the features of a job that is not finished.
_MEASURED: dict[Kind, str] = {
    "tokenizer": "features",
    "uniformity": "features-of-latents",
    "generator": "features",
    "curve": "features-of-curve",
    "hidden": "features-of-hidden",
}


@dataclass(eq=False)
class CellContext:
    """What all measurements share; networks and images are loaded on first use."""

    config: Config
    grid: Grid
    results: Results

    def done(self, kind: Kind, cell: Cell) -> bool:
        """Return whether a cell has a result of this kind."""
        return self.results.read(self.grid.job(kind, cell).result) is not None

    @cached_property
    def device(self) -> torch.device:
        """The device of the recipe."""
        return resolve_device(self.config.device)

    @cached_property
    def train(self) -> ImageSource:
        """Training images."""
        return self.config.data.open("train")

    @cached_property
    def test(self) -> ImageSource:
        """Test images."""
        return self.config.data.open("test")

    @cached_property
    def network(self) -> FeatureNetwork:
        """Feature network of the distances."""
        return load_feature_network(self.config.measure.network, self.device)

    @cached_property
    def perceptual(self) -> dict[str, LPIPS]:
        """LPIPS by the name of its metric."""
        return {"lpips_vgg16": LPIPS.pretrained("vgg16").to(self.device)}

    @cached_property
    def teacher(self) -> Teacher | None:
        """The teacher with which agreement is measured."""
        if self.config.measure.teacher is None:
            return None
        recipe = self.grid.teacher(self.config.measure.teacher, self.grid.aligned_side)
        return load_teacher(recipe.name, input_size=recipe.input_size).to(self.device)

    @cached_property
    def aligning_network(self) -> FeatureNetwork:
        """The teacher of the methods that align the transformer, by its features of whole images."""
        recipe = self.grid.aligning_teacher
        teacher = load_teacher(recipe.name, input_size=recipe.input_size).to(self.device)
        return of_tokenizer.grid_network(teacher, (self.grid.aligned_side, self.grid.aligned_side))

    @cached_property
    def store(self) -> BlockStore:
        """The features of real images, shared by all cells."""
        return BlockStore(self.grid.folder / "features")

    @contextmanager
    def sharing(self, what: str) -> Iterator[BlockStore]:
        """Yield `store` under a lock, so that one process computes the features `what` and the others read them."""
        self.store.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.store.folder / f".{what.replace(' ', '-')}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for {what}, which another process computes", flush=True)
            with lock:  # released at once, so that all waiting processes read at the same time
                pass
        try:
            yield self.store
        finally:
            lock.release()

    @cached_property
    def reference(self) -> Reference:
        """The training images that samples are compared with."""
        images = source_images(_part(self.train, self.config.measure.reference_images), self.config.data.size)
        batch = self.config.measure.batch_size
        with self.sharing("features of training images") as store:
            return open_reference(images, None, [self.network], ("frechet",), store, batch, World())

    def work(self, folder: Path) -> EvaluationContext:
        """Return how a tokenizer is measured; its features are kept in `folder` until its result is written."""
        measure = self.config.measure
        originals = partial(self.sharing, "features of test images")
        return EvaluationContext(
            BlockStore(folder), World(), measure.batch_size, measure.precision, measure.seed, originals=originals
        )

    def protocol(self, tokenizer: Tokenizer, samples: int) -> MeasurementProtocol:
        """Return the protocol of a tokenizer's numbers."""
        return MeasurementProtocol(
            samples=samples,
            split=f"{self.test.name} (test)",
            dtype=resolve_precision(self.config.measure.precision, self.device),
            image_size=self.config.data.size,
            checkpoint_hash=tokenizer.fingerprint(),
        )


def _part(source: ImageSource, count: int | None) -> ImageSource:
    """Return at most `count` images, balanced over the classes."""
    if count is None or len(source) <= count:
        return source
    return Selection(source, np.array(sorted(class_balanced(count, source))))


def run_job(context: CellContext, job: Job, known: dict[str, Any] | None) -> dict[str, Any]:
    """Run a job, or resume it, and return the content of its result file.

    `known` is its result, if it exists and only the models are missing.
    """
    cell, folder = job.cell, context.grid.cell_folder(job.cell)
    recipe = context.config.tokenizer if isinstance(cell, TokenizerCell) else context.config.generator
    with _timed(folder / f"{job.kind}.seconds") as seconds:
        if isinstance(cell, TokenizerCell):
            found = _uniformity(context, cell) if job.kind == "uniformity" else _tokenizer(context, cell, folder, known)
        elif job.kind == "hidden":
            found = _hidden(context, cell, folder)
        else:
            found = _curve(context, cell, folder, job) if job.kind == "curve" else _generator(context, cell, folder)
    return {
        "kind": job.kind,
        "cell": to_plain(job.cell),
        "label": job.cell.label,
        "name": job.name,
        "measure": to_plain(context.config.measure),
        "versions": versions(),
        "precision": resolve_precision(recipe.training.precision, context.device),  # `auto` differs between machines
        "seconds": round(seconds[0], 1),
        **found,
    }


def delete_intermediates(grid: Grid, job: Job) -> None:
    """Remove the intermediate files of a job, once its result is on the disk."""
    folder = grid.cell_folder(job.cell)
    shutil.rmtree(folder / _MEASURED[job.kind], ignore_errors=True)
    if job.kind == "curve":
        Results(folder).path(f"{job.result}.partial").unlink(missing_ok=True)
        _remove_averages(folder / "run")


def _remove_averages(run: Path) -> None:
    """Remove the averages of a run; the rename makes it atomic, since some of them would pass for a shorter curve."""
    gone = run / "averages.gone"
    shutil.rmtree(gone, ignore_errors=True)  # left by a stopped call
    with suppress(FileNotFoundError):
        (run / "averages").rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _points_so_far(folder: Path, job: Job) -> list[dict[str, Any]]:
    """Return the points of a curve that a stopped call measured; an empty list if they are damaged."""
    found = Results(folder).read(f"{job.result}.partial")
    return [] if found is None else found["points"]


@contextmanager
def _timed(path: Path) -> Iterator[list[float]]:
    """Add the seconds of the block to the time of stopped calls; the yielded list has the sum when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    former = 0.0
    with suppress(OSError, ValueError):  # of a damaged file only the time is lost
        stored = float(path.read_text())
        former = stored if 0 <= stored < math.inf else 0.0
    seconds, began = [former], time.perf_counter()
    try:
        yield seconds
    finally:
        seconds[0] = former + time.perf_counter() - began
        write_text(path, f"{seconds[0]}\n")


def trained_tokenizer(grid: Grid, cell: TokenizerCell) -> bool:
    """Return whether the tokenizer and its latents exist."""
    tokenizer = grid.cell_folder(cell) / "run/tokenizer/config.json"
    return tokenizer.exists() and (grid.latents_folder(cell) / "index.json").exists()


def trained_generator(grid: Grid, cell: GeneratorCell, with_averages: bool = False) -> bool:
    """Return whether the generator exists, and its averages along the run if `with_averages`."""
    run = grid.cell_folder(cell) / "run"
    return (run / "generator/config.json").exists() and (not with_averages or (run / "averages").is_dir())


def _load_tokenizer(context: CellContext, cell: TokenizerCell) -> Tokenizer:
    return Tokenizer.from_pretrained(context.grid.cell_folder(cell) / "run/tokenizer", context.device)


def _tokenizer(context: CellContext, cell: TokenizerCell, folder: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    if not (folder / "run/tokenizer/config.json").exists():
        print(f"training {cell.label}", flush=True)
        if context.config.tokenizer.compile:
            torch.compiler.reset()
        # The folder's name is a hash of all that the numbers depend on; paths and sampling may differ in the recipe.
        train_tokenizer.run(context.grid.placed_tokenizer(cell), any_recipe=True)
    encode.run(context.grid.encoding(cell))
    _forget_training(folder / "run")
    if known is not None:
        return {key: known[key] for key in ("recipe", "trained", "records", "log", "pictures")}
    tokenizer = _load_tokenizer(context, cell)
    config, measure = context.config, context.config.measure
    images = _part(context.test, measure.reconstructions)
    protocol, work = context.protocol(tokenizer, len(images)), context.work(folder / _MEASURED["tokenizer"])
    records, _ = of_tokenizer.reconstruction(
        tokenizer, images, config.data.size, "strict", [context.network], context.perceptual, protocol, work
    )
    test = of_tokenizer.encode(tokenizer, context.test, config.data.size, measure.latents, work)
    train = None
    if context.train.num_classes > 1:
        train = of_tokenizer.encode(tokenizer, context.train, config.data.size, measure.latents, work)
    features = None
    if context.teacher is not None:
        side = context.grid.side(cell)
        seen = of_tokenizer.grid_network(context.teacher, (side, side))
        with context.sharing("the teacher's features of test images") as store:
            features = extract(
                test.images, [seen], store, measure.batch_size, World(), f"features of {seen.name}", seen.parts
            )[seen.name]
    records += of_tokenizer.meaning_records(train, test, context.teacher, features, protocol)
    return {
        "recipe": to_plain(context.grid.tokenizer(cell)),
        "trained": dict(tokenizer.provenance),
        "records": [record.to_dict() for record in records],
        "log": read_metrics(folder / "run"),
        "pictures": {"reconstructions": _reconstructions(context, tokenizer)},
    }


def _forget_training(run: Path) -> None:
    """Remove the checkpoints of a finished training, which are several times as large as the model."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def _reconstructions(context: CellContext, tokenizer: Tokenizer) -> str:
    """Return originals above their reconstructions, as a data URI."""
    images = load_images(context.test, torch.tensor(class_balanced(_SHOWN, context.test)), context.config.data.size)
    rebuilt = tokenizer.decode(tokenizer.encode(images.to(context.device))).float().cpu()
    rows = [row for pair in zip(images.split(_COLUMNS), rebuilt.split(_COLUMNS), strict=True) for row in pair]
    return image_uri(image_grid(to_uint8(torch.cat(rows)).numpy(), columns=_COLUMNS, padding=1))


def _uniformity(context: CellContext, cell: TokenizerCell) -> dict[str, Any]:
    """Measure uniformity as in the paper's Table 6, with the first t-SNE for its Figure 6."""
    measure = context.config.measure
    tokenizer = _load_tokenizer(context, cell)
    work = context.work(context.grid.cell_folder(cell) / _MEASURED["uniformity"])
    latents = of_tokenizer.encode(tokenizer, context.test, context.config.data.size, measure.latents, work)
    runs, first = [], None
    with track(f"t-SNE of {len(latents.values):,} latents", measure.tsne_seeds, "runs") as bar:
        for seed in range(measure.tsne_seeds):
            points = tsne_points(latents.values, seed)
            first = points if first is None else first
            runs.append(latent_uniformity(points))
            bar.advance()
    mean = average(runs)
    protocol = replace(
        context.protocol(tokenizer, len(latents.values)),
        posterior="mean",
        preprocessing=f"t-SNE, mean of seeds 0 to {measure.tsne_seeds - 1}",
    )
    assert first is not None
    shown = np.array(sorted(class_balanced(_POINTS, Selection(latents.source, np.arange(len(latents.labels))))))
    return {
        "records": [record.to_dict() for record in uniformity_records(mean, protocol)],
        "points": np.round(first[shown], 2).tolist(),
        "labels": latents.labels[shown].tolist(),
    }


def _train_generator(context: CellContext, cell: GeneratorCell, folder: Path) -> None:
    """Train a generator that does not exist; keep its averages along the run until its curve is measured."""
    with_averages = cell in context.grid.curves and not context.done("curve", cell)
    if not trained_generator(context.grid, cell, with_averages):
        _run_training(context, cell, folder)
    _forget_training(folder / "run")
    if not with_averages:
        _remove_averages(folder / "run")


def _run_training(context: CellContext, cell: GeneratorCell, folder: Path) -> None:
    if (folder / "run/generator").exists():  # only a new run makes averages
        shutil.rmtree(folder / "run")
    print(f"training {cell.label}", flush=True)
    if context.config.generator.compile:
        torch.compiler.reset()  # torch keeps few compiled versions of a function; its cache on the disk stays
    recipe = context.grid.placed_generator(cell)
    if isinstance(recipe, train_joint.Config):
        train_joint.run(recipe, any_recipe=True)  # as for tokenizers
    else:
        train_dit.run(recipe, any_recipe=True)


def _load_generator(context: CellContext, cell: GeneratorCell, folder: Path) -> Generator:
    generator = Generator.from_pretrained(folder / "run/generator", context.device)
    generator.sampling = context.grid.generator(cell).sampling.for_latents(generator.latent_shape)
    if context.config.generator.compile:
        torch.compiler.reset()  # otherwise batch sizes of the training make the graphs dynamic
        compile_network(generator.transformer, list(generator.transformer.blocks), "blocks")
    return generator


def _generator(context: CellContext, cell: GeneratorCell, folder: Path) -> dict[str, Any]:
    _train_generator(context, cell, folder)
    generator = _load_generator(context, cell, folder)
    store = BlockStore(folder / _MEASURED["generator"])
    records = _distance(context, generator, context.config.measure.samples, store, "averaged over the last steps")
    return {
        "recipe": to_plain(context.grid.recipe(cell)),
        "trained": {key: value for key, value in generator.provenance.items() if key != "initial"},  # a path
        "parameters": sum(parameter.numel() for parameter in generator.transformer.parameters()),
        "records": [record.to_dict() for record in records],
        "log": read_metrics(folder / "run"),
        "pictures": {"samples": _samples(context, generator)},
    }


def _distance(
    context: CellContext, generator: Generator, count: int, store: BlockStore, description: str
) -> list[MetricRecord]:
    """Return the Fréchet distance of samples to the training images; the samples are not stored."""
    config, seed = context.config, context.config.measure.seed
    sampling, mode = generator.sampling, config.measure.sampling_precision
    reference = context.reference
    fingerprint = generator.fingerprint()
    labels = choose_labels(count, generator.num_classes, "balanced", seed)
    images = generated_images(generator, labels, seed, sampling, mode, fingerprint)
    features = extract(images, [context.network], store, config.measure.batch_size, World(), "sampling and measuring")
    protocol = replace(
        sampling_protocol(sampling, count, seed, "balanced"),
        dtype=resolve_precision(mode, context.device),
        image_size=config.data.size,
        checkpoint=description,
        checkpoint_hash=fingerprint,
    )
    return list(generation_records(features, reference, protocol, Measuring(("frechet",), device=str(context.device))))


def _curve(context: CellContext, cell: GeneratorCell, folder: Path, job: Job) -> dict[str, Any]:
    """Return the distance at every stored average of the run; points are stored until all are measured."""
    _train_generator(context, cell, folder)
    store = BlockStore(folder / _MEASURED["curve"])
    done = _points_so_far(folder, job)
    snapshots = list_snapshots(folder / "run/averages", "transformer")
    base = _load_generator(context, cell, folder)
    for snapshot in snapshots[len(done) :]:
        base.transformer.load_state_dict({k: v.to(context.device) for k, v in load_file(snapshot.path).items()})
        description = f"average of relative width {snapshot.width} at {snapshot.images:,} images"
        found = _distance(context, base, context.config.measure.curve_samples, store, description)
        done.append({"images": snapshot.images, "record": found[0].to_dict()})
        Results(folder).write(f"{job.result}.partial", {"points": done})
        shutil.rmtree(store.folder, ignore_errors=True)
    return {"points": done}


def _hidden(context: CellContext, cell: GeneratorCell, folder: Path) -> dict[str, Any]:
    """Measure the hidden states of a generator, and its velocity loss."""
    _train_generator(context, cell, folder)
    config, measure, network = context.config, context.config.measure, context.aligning_network
    generator, work = _load_generator(context, cell, folder), context.work(folder / _MEASURED["hidden"])
    seen = []
    for source, name in ((context.train, "training"), (context.test, "test")):
        latents = of_tokenizer.encode(generator.tokenizer, source, config.data.size, measure.latents, work)
        description = f"{network.name} of {name} images"
        with context.sharing(f"the teacher's features of {name} images") as store:
            features = extract(latents.images, [network], store, measure.batch_size, World(), description)
        seen.append(SeenImages(latents, features[network.name].all()))
    train, test = seen
    protocol = replace(
        context.protocol(generator.tokenizer, len(test.features)),
        reference_samples=len(train.features),
        reference="training images",
        posterior="mean",
        seed=measure.seed,
        dtype="fp32",
        feature_network=network.name,
        feature_network_hash=network.fingerprint,
        checkpoint_hash=generator.fingerprint(),
    )
    flow, block = context.grid.generator(cell).flow, context.grid.block(cell)
    records = hidden_records(generator, flow, block, train, test, protocol, measure.batch_size)
    return {"records": [record.to_dict() for record in records]}


def _samples(context: CellContext, generator: Generator) -> str:
    """Return samples drawn as for the metrics, a row per class, as a data URI."""
    classes = min(_ROWS, max(generator.num_classes, 1))
    labels = [label for label in range(classes) for _ in range(_ROWS * _COLUMNS // classes)]
    sampling, measure = generator.sampling, context.config.measure
    with torch.compiler.set_stance("force_eager"):  # no compilation for a single batch of another size
        pixels = draw(generator, labels, range(len(labels)), measure.seed, sampling, measure.sampling_precision)
    return image_uri(image_grid(pixels, columns=_COLUMNS, padding=1))


def main_values(kind: str, content: dict[str, Any]) -> str:
    """Return the numbers of a result that the terminal shows."""
    shown = {"tokenizer": ("rFID", "reconstruction Fréchet distance", "PSNR"), "generator": ("FID", "Fréchet distance"),
             "uniformity": ("uniformity: density cv",),
             "hidden": ("linear probe of hidden states", "held-out velocity loss")}  # fmt: skip
    if kind == "curve":
        values = [(f"at {p['images']:,}", p["record"]["value"]) for p in content["points"][-1:]]
    else:
        values = [(r["name"], r["value"]) for r in content["records"] if r["name"] in shown[kind]]
    return ", ".join(f"{name} {value:.4g}" for name, value in values)
