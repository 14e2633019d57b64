"""Measure tokenizers, generators and samples; every number carries its protocol."""

import glob
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vavae import assets
from vavae.config.image_size import Size, as_size, format_size
from vavae.data import ImageSource, has_part
from vavae.data.images import ImagesConfig, note, report
from vavae.data.sources import DEMO_SIDE, Split
from vavae.device import InferencePrecision, resolve_device, resolve_precision
from vavae.errors import UserError
from vavae.evaluation import tokenizer as of_tokenizer
from vavae.evaluation.compare import compare_files, print_comparison
from vavae.evaluation.features import BlockStore, ImageSet, StoredFeatures, compiled_features, extract
from vavae.evaluation.generation import (
    METRICS,
    Measuring,
    Metric,
    generation_records,
    open_reference,
    parts_for,
    save_statistics,
)
from vavae.evaluation.images import folder_images, generated_images, npz_images, one_part, source_images
from vavae.evaluation.options import refuse_unused
from vavae.evaluation.reconstruction import EvaluationContext, Reconstructions
from vavae.evaluation.records import check_writable, sampling_protocol, write_records
from vavae.evaluation.table import plot, print_table
from vavae.extras import require_extra
from vavae.io.files import drop_drafts
from vavae.metrics import Convention, FeatureNetwork, MeasurementProtocol, MetricRecord, load_feature_network
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.models.compilation import compile_while_sampling
from vavae.models.sampling import SamplingOptions, check_count, choose_labels
from vavae.models.weak_model import check_weak_model, open_generator
from vavae.stages.encode import check_grid
from vavae.teachers import load_teacher
from vavae.training.compile import CompileOption
from vavae.training.parallel import World, sharing_processes
from vavae.training.run_log import versions


@dataclass(frozen=True)
class Config(SamplingOptions):
    """Evaluate tokenizers, generators or stored samples, or compare two results.

    Under torchrun several processes share the work. The same command resumes a stopped run.

    Attributes:
        what: `tokenizer`, `generator`, `samples`, or `compare` for two JSON files of results.
        model: Folders, hub ids or short names (`vavae models`) of the models; for `samples` folders of images or npz
            files; for `compare` two JSON files.
        data: Images to reconstruct, or the reference of generated images.
        split: Part of the images that is reconstructed or is the reference. The probe is fitted on `train`, and left
            out if both parts are the same images.
        reference: An npz instead of `data` as the reference: statistics (`mu`, `sigma`, `mu_s`, `sigma_s`), images
            (`arr_0`), or both.
        save_reference: Write the statistics of the first network on the reference images to this npz.
        real_split: Also compute FDr: distances divided by the distance between this part of `data` and the reference.
        network: Feature networks, separated by commas: `inception`, `inception-pytorch-fid`, `inception-clean`, each
            with `:FILE` for weights in a file, and `teacher:NAME`; null computes no distances.
        metrics: Which generation metrics: frechet, sfid, inception_score, precision_recall, kid; empty computes all
            that the network and the reference allow, except those that would take hours with so many images.
        count: Samples to draw from a generator.
        label_protocol: Labels of those samples: `balanced` over the classes, or `random` as published.
        guidance_scales: Guidance scales to measure, one after the other; empty is the generator's.
        weak_model: Folder, hub id or short name of a weaker generator on the same latents, for autoguidance.
        conventions: Conventions of reconstructions: `strict` (8-bit pixels, ADM crop, posterior mean) and `published`.
        latents: Number of latents for uniformity, probes, alignment and interpolation, at most.
        tsne_seeds: Runs of t-SNE to average for the published uniformity; 0 leaves it out.
        teacher: Also measure how latents agree with this teacher's features (tokenizers only).
        teacher_size: Input size of the teacher, one number or [height, width]; null is its own size, and for images
            that are not square about that area in their shape.
        bootstrap: Repetitions for 95 % intervals of distances and means; 0 computes none.
        features: Folder where features are kept for later runs; null is `features` in vavae's cache.
        seed: Seed of samples, posteriors and the bootstrap.
        batch_size: Images at once.
        reconstructions: Folder for the reconstructions of one tokenizer as PNGs, `strict/000000.png`, … and
            `published/000000.png`, …, numbered in the order of the images; null writes none.
        output: JSON file for the records; per-image values, spectrum and plot are written next to it. null prints only.
        force: Also compare numbers that were measured by different protocols.
        device: auto, cpu, cuda, mps, …
        precision: Compute precision of tokenizer and generator: auto, fp32, bf16, or tf32, which is float32 with TF32
            products on GPUs, like the published samples. Features are fp32.
        compile: Compile the transformer's blocks, and the feature networks, with torch.compile: `true`, `false`, or
            `auto` if sampling takes more than about five minutes on a CPU or one on an NVIDIA GPU, or features five
            times that.
    """

    what: Literal["tokenizer", "generator", "samples", "compare"] = "tokenizer"
    model: list[str] = field(default_factory=list)
    data: ImagesConfig = field(default_factory=ImagesConfig)
    split: Split = "test"
    reference: str | None = None
    save_reference: str | None = None
    real_split: Split | None = None
    network: str | None = "inception"
    metrics: list[Metric] = field(default_factory=list)
    count: int = 50_000
    label_protocol: Literal["balanced", "random"] = "balanced"
    guidance_scales: list[float] = field(default_factory=list)
    weak_model: str | None = None
    conventions: list[Convention] = field(default_factory=lambda: ["strict", "published"])
    latents: int = 10_000
    tsne_seeds: int = 10
    teacher: str | None = None
    teacher_size: Size | None = None
    bootstrap: int = 0
    features: str | None = None
    seed: int = 0
    batch_size: int = 64
    reconstructions: str | None = None
    output: str | None = None
    force: bool = False
    device: str = "auto"
    precision: InferencePrecision = "fp32"
    compile: CompileOption = "auto"

    def __post_init__(self) -> None:
        if self.teacher_size is not None:
            object.__setattr__(self, "teacher_size", as_size("teacher_size", self.teacher_size))
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
        check_count(self.count, 2)
        if self.latents < 4 or self.tsne_seeds < 0 or self.bootstrap < 0 or self.bootstrap == 1:
            raise UserError(
                "latents must be at least 4, tsne_seeds at least 0, bootstrap 0 or at least 2, got "
                f"{self.latents}, {self.tsne_seeds} and {self.bootstrap}"
            )

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the feature networks, without duplicates."""
        return tuple(dict.fromkeys(n.strip() for n in (self.network or "").split(",") if n.strip()))

    def sampling(self, generator: Generator) -> list[SamplingConfig]:
        """Return the generator's settings with this recipe's changes, once for each guidance scale."""
        base = generator.sampling.changed_by(self).for_latents(generator.latent_shape)
        return [replace(base, guidance_scale=scale) for scale in self.guidance_scales] or [base]


def run(config: Config) -> list[MetricRecord]:
    """Measure, print a table, and write JSON and plot; or compare two results.

    After an error or Ctrl-C, the numbers measured so far are printed and written.

    Returns:
        The records; empty for `compare`, and on all processes but the first.

    Raises:
        UserError: A model, images or a network do not exist; they do not allow a metric; a file cannot be written; or
            the results to compare were measured by different protocols.
        KeyboardInterrupt: A stop was asked for; complete blocks of images are kept.
    """
    if config.what == "compare":
        if len(config.model) != 2:
            raise UserError(f"compare must have two JSON files, got {len(config.model)}")
        refuse_unused(config)
        first, second = config.model
        print_comparison(compare_files(first, second, config.force), first, second)
        return []
    if not config.model:
        raise UserError(f"model must name at least one {config.what}: give it after the word {config.what}")
    _check_extras(config)
    measure = {"tokenizer": _tokenizers, "generator": _generators, "samples": _samples}[config.what]
    store = BlockStore(config.features or assets.cache_folder() / "features")
    _check_outputs(config, store)
    opened = _check_models(config)
    refuse_unused(config)
    with sharing_processes() as world:
        world.once(lambda: _drop_old(config))
        records: list[MetricRecord] = []
        found = versions()
        try:
            for record in measure(config, store, world, opened):
                records.append(replace(record, versions=found))
        except KeyboardInterrupt:
            message = f"stopped; finished features are in {store.folder}, and the same command resumes"
            raise KeyboardInterrupt(message) from None
        finally:
            if records:  # after an error too: they may have taken hours
                _report(config, records)
    return records


def _check_extras(config: Config) -> None:
    """Raise UserError if a package is missing that only some evaluations need."""
    if config.what == "tokenizer" and config.tsne_seeds:
        require_extra("metrics", "the published uniformity, which --tsne_seeds 0 leaves out,")
    if config.output is not None and (len(config.guidance_scales) > 1 or len(config.model) > 1):
        require_extra("report", "the plot of several models or guidance scales next to output")


def _check_outputs(config: Config, store: BlockStore) -> None:
    """Raise UserError if an output could not be written later."""
    check_writable("features", store.folder, folder=True)
    used = {Path(path).resolve() for path in (*config.model, config.reference) if path is not None}
    for key, path in (("save_reference", config.save_reference), ("output", config.output)):
        if path is None:
            continue
        check_writable(key, path)
        if Path(path).resolve() in used:
            raise UserError(f"{key}: {path} is another file of this command; choose another name")
        used.add(Path(path).resolve())
    if config.reconstructions is not None:
        check_writable("reconstructions", config.reconstructions, folder=True)
        if len(config.model) != 1 or not config.conventions:
            raise UserError("reconstructions needs one tokenizer, and at least one of the conventions")
    if config.output is not None and Path(config.output).suffix == ".png":
        raise UserError(f"output must be a .json file, got {config.output}, the name of the plot")


def _check_models(config: Config) -> Tokenizer | Generator | None:
    """Open models, samples and reference, so that a mistake is reported before hours of work.

    A single model is returned, which is then not read again. Several would need the memory of all.
    """
    opened: Tokenizer | Generator | None = None
    generated = config.what != "tokenizer"
    if config.metrics and not generated:
        raise UserError(f"metrics must be empty for a tokenizer, got {config.metrics[0]}, a metric of generated images")
    if generated and not config.networks:
        raise UserError(f"network must name a feature network to measure {config.what}, got none")
    if generated and config.reference is None and config.real_split == config.split:
        raise UserError(f"real_split must not be the reference (split), got {config.real_split}; choose the other part")
    if generated and config.real_split is not None and config.metrics and "frechet" not in config.metrics:
        raise UserError("real_split needs frechet: FDr is a ratio of Fréchet distances; add it to the metrics")
    size: Size | None = config.data.size
    if generated and config.reference is not None:
        held = npz_images(config.reference)
        size = None if held is None else held.size
    for path in config.model:
        if config.what == "tokenizer":
            opened = Tokenizer.from_pretrained(path)
        elif config.what == "generator":
            opened = generator = open_generator(path, config.weak_model, torch.device("cpu"))
            settings = config.sampling(generator)
            check_weak_model(config.weak_model, settings)
            for sampling in settings:
                generator.check((), sampling=sampling)
            _check_size(path, generator.image_size, size)
        else:
            _check_size(path, _sample_images(path).size, size)
    if config.data.images == "demo" and config.data.size != DEMO_SIDE and not (generated and config.reference):
        # Without --data.images, a model of other images would be measured on enlarged demo images.
        raise UserError(
            f"data.size must be {DEMO_SIDE} for data.images demo, got {format_size(config.data.size)}; name the "
            f"images to measure with, or give --data.size {DEMO_SIDE}"
        )
    return opened if len(config.model) == 1 else None


def _check_size(name: str, size: Size | None, reference: Size | None) -> None:
    if size is not None and reference is not None and size != reference:
        raise UserError(
            f"{name}: images must have the size of the reference, {format_size(reference)} px (data.size), got "
            f"{format_size(size)} px"
        )


def _sample_images(path: str) -> ImageSet:
    images = npz_images(path) if Path(path).is_file() else folder_images(path)
    if images is None:
        raise UserError(f"{path} must have images (arr_0), got statistics only")
    if images.count < 2:
        raise UserError(f"{path} must have at least 2 samples, got {images.count}")
    return images


def _drop_old(config: Config) -> None:
    """Remove what an earlier call wrote next to its records, and half-written files that killed calls left."""
    if config.output is not None and Path(config.output).exists():
        output = Path(config.output)
        for kind in ("images.json", "png", "images.csv", "spectrum.txt", "*[0-9].images.csv", "*[0-9].spectrum.txt"):
            for old in output.parent.glob(f"{glob.escape(output.stem)}.{kind}"):
                old.unlink()
    for path in (config.output, config.save_reference):
        if path is not None and Path(path).parent.is_dir():
            drop_drafts(Path(path).parent, f"{glob.escape(Path(path).stem)}.*")


def _open(config: Config, world: World, split: Split, what: str) -> ImageSource:
    """Open a part of the images; print what was found, and write it next to the records."""

    def open_and_note() -> ImageSource:
        source = config.data.open(split, what=what)
        if config.output is not None:
            note(Path(config.output).with_suffix(".images.json"), what, len(source), source.class_names, source.found)
        return source

    return world.once(open_and_note)


def _batches(config: Config, images: int, world: World) -> int:
    """Return the number of batches of a process."""
    return math.ceil(images / world.size / config.batch_size)


def _networks(config: Config, names: Sequence[str], images: int, world: World) -> list[FeatureNetwork]:
    """Load feature networks, which are compiled while they work on `images` images if that pays."""
    device, batches = resolve_device(config.device), _batches(config, images, world)
    networks = [load_feature_network(name, device) for name in names]
    return [compiled_features(network, config.compile, batches, world.say) for network in networks]


def _tokenizers(config: Config, store: BlockStore, world: World, opened: Any) -> Iterator[MetricRecord]:
    evaluation = _TokenizerEvaluation(config, store, world)
    for number, path in enumerate(config.model):
        tokenizer = opened or Tokenizer.from_pretrained(path)
        yield from evaluation.records(number, path, tokenizer.to(evaluation.device))


def _generators(config: Config, store: BlockStore, world: World, opened: Any) -> Iterator[MetricRecord]:
    device = resolve_device(config.device)
    comparison = _Comparison(config, store, world, config.count)
    for path in config.model:
        generator = (opened or open_generator(path, config.weak_model, torch.device("cpu"))).to(device)
        fingerprint = generator.fingerprint()
        weak_fingerprint = None if generator.weak_model is None else generator.weak_model.fingerprint()
        labels = choose_labels(config.count, generator.num_classes, config.label_protocol, config.seed)
        settings = config.sampling(generator)
        evaluations = _batches(config, config.count, world) * sum(sampling.solver_steps for sampling in settings)
        compile_while_sampling(generator, config.compile, evaluations, world.say)
        for sampling in settings:
            weak = None if sampling.guidance is None else weak_fingerprint
            weights = fingerprint if weak is None else f"{fingerprint} {weak}"
            images = generated_images(generator, labels, config.seed, sampling, config.precision, weights)
            protocol = replace(
                sampling_protocol(sampling, config.count, config.seed, config.label_protocol),
                weak_model=config.weak_model if weak else None,
                weak_model_hash=weak,
                dtype=resolve_precision(config.precision, device),
                image_size=images.size,
                checkpoint=path,
                checkpoint_hash=fingerprint,
            )
            yield from comparison.records(images, protocol)


def _samples(config: Config, store: BlockStore, world: World, _: Any) -> Iterator[MetricRecord]:
    sets = [_sample_images(path) for path in config.model]
    for images in sets if world.first else ():
        report("samples", images.count, (), images.found)
    comparison = _Comparison(config, store, world, min(images.count for images in sets))
    for path, images in zip(config.model, sets, strict=True):
        protocol = MeasurementProtocol(samples=images.count, image_size=images.size, checkpoint=path)
        yield from comparison.records(images, protocol)


class _Comparison:
    """The reference of generated images, which is opened once; `samples` is the size of their smallest set."""

    def __init__(self, config: Config, store: BlockStore, world: World, samples: int) -> None:
        self.config, self.store, self.world = config, store, world
        metrics = tuple(config.metrics) or METRICS
        # With an npz, `data` is not read and may not exist.
        source = self._images(config.split, "reference") if config.reference is None else None
        other = self._images(config.real_split, "real_split") if config.real_split is not None else None
        if source is not None and other is not None and one_part(config.data):
            raise UserError(
                f"real_split needs a test part, and {config.data.images} has none: keep images for one with "
                "--data.holdout 0.1, here and in training"
            )
        device = resolve_device(config.device)
        networks = self.networks = _networks(config, config.networks, samples, world)
        self.measuring = Measuring(
            metrics, tuple(config.metrics), bootstrap=config.bootstrap, seed=config.seed, device=str(device)
        )
        self.reference = open_reference(
            source, config.reference, networks, metrics, store, config.batch_size, world, config.metrics, samples
        )
        if config.save_reference is not None:
            if networks[0].name not in self.reference.features:
                raise UserError("save_reference needs a reference with images, got statistics")
            if world.first:
                save_statistics(config.save_reference, self.reference.features[networks[0].name])
        self.real = None if other is None else self._features(other, "real images")

    def _images(self, split: Split, what: str) -> ImageSet:
        data = self.config.data
        return source_images(_open(self.config, self.world, split, what), data.size, data.workers)

    def _features(self, images: ImageSet, name: str, parts: Sequence[str] = ("pool",)) -> dict[str, StoredFeatures]:
        return extract(images, self.networks, self.store, self.config.batch_size, self.world, name, parts)

    def records(self, images: ImageSet, protocol: MeasurementProtocol) -> Iterator[MetricRecord]:
        """Measure a set of generated images; nothing on all processes but the first."""
        _check_size(images.name, images.size, self.reference.size)
        features = self._features(images, images.name, parts_for(self.measuring.metrics))
        if not self.world.first:
            return
        if protocol.checkpoint_hash is None:
            protocol = replace(protocol, checkpoint_hash=next(iter(features.values())).content)
        yield from generation_records(features, self.reference, protocol, self.measuring, self.real)


class _TokenizerEvaluation:
    """Images and networks by which tokenizers are measured, which are opened once."""

    def __init__(self, config: Config, store: BlockStore, world: World) -> None:
        self.config, self.device, workers = config, resolve_device(config.device), config.data.workers
        images = None if config.reconstructions is None else Path(config.reconstructions)
        self.work = EvaluationContext(
            store, world, config.batch_size, config.precision, config.seed, config.bootstrap, workers, images=images
        )
        self.source = _open(config, world, config.split, "images")
        if len(self.source) < 2 and (config.networks or config.teacher is not None):
            raise UserError(
                f"data.images must have at least 2 images for distances, got 1 in {self.source.name}: --network null "
                "without a teacher measures one"
            )
        # A probe is fitted on the training part, and needs another part to be tested on.
        self.part = "all" if config.split == "test" and one_part(config.data) else config.split
        self.train_source = None
        obstacle = self._obstacle_to_probes()
        if obstacle is not None:
            world.once(lambda: print(f"linear probe and k-NN are left out: {obstacle}"))
        else:
            self.train_source = _open(config, world, "train", "training images of the probe")
        self.perceptual = {}
        if config.conventions:
            self.perceptual = of_tokenizer.perceptual_networks(self.device, config.data.size, world.say)
        strict = _networks(config, config.networks, len(self.source), world)
        self.networks = {"strict": strict, "published": strict}
        # A published rFID is by pytorch-fid's Inception, which has its own resize.
        as_published = tuple(re.sub("^inception(?=:|$)", "inception-pytorch-fid", name) for name in config.networks)
        if "published" in config.conventions and as_published != config.networks:
            self.networks["published"] = _networks(config, tuple(dict.fromkeys(as_published)), len(self.source), world)
        self.teacher = None
        if config.teacher is not None:
            teacher = load_teacher(config.teacher, input_size=config.teacher_size, image_size=config.data.size)
            self.teacher = teacher.to(self.device)

    def _obstacle_to_probes(self) -> str | None:
        """Return why a probe cannot be fitted, or None."""
        images = self.config.data.images
        if self.part == "train":
            return "they are tested on images that they are not fitted to: --split test"
        if self.part == "all":
            return f"{images} has no test part; --data.holdout 0.1, here and in training, keeps images for one"
        if self.source.num_classes < 2:
            return "the images have no labels, or one class only"
        if self.config.data.holdout == 0 and not has_part(images, "train"):
            return f"{images} has no training part"
        return None

    def records(self, number: int, path: str, tokenizer: Tokenizer) -> Iterator[MetricRecord]:
        """Measure one tokenizer, the `number`th of the call."""
        config, work, source, size = self.config, self.work, self.source, self.config.data.size
        store, world = work.store, work.processes
        check_grid(tokenizer.autoencoder, config.data.latent_size(tokenizer.factor), size)
        protocol = MeasurementProtocol(
            samples=len(source),
            split=f"{source.name} ({self.part})",
            dtype=resolve_precision(config.precision, self.device),
            image_size=size,
            checkpoint=path,
            checkpoint_hash=tokenizer.fingerprint(),
        )
        if config.reconstructions is not None:
            for convention in config.conventions:  # a folder with other files is refused before the work
                rebuilt = Reconstructions(tokenizer, source, size, convention, self.perceptual, work)
                world.once(rebuilt.claim_folder)
        per_image: dict[str, dict[str, Tensor]] = {}
        for convention in config.conventions:
            records, per_image[convention] = of_tokenizer.reconstruction(
                tokenizer, source, size, convention, self.networks[convention], self.perceptual, protocol, work
            )
            yield from records
        test = of_tokenizer.encode(tokenizer, source, size, config.latents, work)
        train = None
        if self.train_source is not None:
            train = of_tokenizer.encode(tokenizer, self.train_source, size, config.latents, work)
        if self.networks["strict"]:
            yield from of_tokenizer.interpolation(tokenizer, test, self.networks["strict"], protocol, work)
        grid = None
        if self.teacher is not None:
            seen = of_tokenizer.grid_network(self.teacher, (test.values.shape[2], test.values.shape[3]))
            name = f"features of {self.teacher.name}"
            (grid,) = extract(test.images, [seen], store, work.batch_size, world, name, seen.parts).values()
        if not world.first:
            return
        yield from of_tokenizer.latent_records(test, protocol, config.tsne_seeds)
        yield from of_tokenizer.meaning_records(train, test, self.teacher, grid, protocol)
        if config.output is not None:
            name = Path(config.output).stem + (f".{number}" if len(config.model) > 1 else "")
            if per_image:
                of_tokenizer.write_values(Path(config.output).with_name(f"{name}.images.csv"), per_image)
            of_tokenizer.write_spectrum(Path(config.output).with_name(f"{name}.spectrum.txt"), test)


def _report(config: Config, records: list[MetricRecord]) -> None:
    """Print a table; with `output`, write JSON and plot."""
    print_table(records)
    if config.output is not None:
        output = Path(config.output)
        write_records(output, records)
        print(f"records: {output}")
        if plot(records, output.with_suffix(".png")):
            print(f"plot: {output.with_suffix('.png')}")
