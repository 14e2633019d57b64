"""Measure a tokenizer with its generator as `vavae evaluate` does, and take the pictures of the page."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from vavae.checkpoints.registry import get_model
from vavae.data import ImageSource, to_uint8
from vavae.data.images import Selection, class_balanced
from vavae.demo.contents import Gallery, RunResult
from vavae.demo.plan import FACTOR, SAMPLING, Config
from vavae.device import autocast, resolve_device, resolve_precision
from vavae.evaluation import tokenizer as of_tokenizer
from vavae.evaluation.features import BlockStore, ImageSet, extract
from vavae.evaluation.generation import Measuring, Reference, generation_records
from vavae.evaluation.images import generated_images, source_images
from vavae.evaluation.reconstruction import EvaluationContext
from vavae.evaluation.records import sampling_protocol, uniformity_records
from vavae.losses import LPIPS
from vavae.metrics import MeasurementProtocol, MetricRecord, latent_uniformity, tsne_points
from vavae.models import Generator, Tokenizer
from vavae.models.sampling import choose_labels, draw
from vavae.teachers import Teacher
from vavae.training.parallel import World
from vavae.training.run_log import read_metrics

SHOWN = 10  # originals, and classes of samples
_BATCH = 100
_FORMING = 3  # samples whose formation is shown
_FRECHET = Measuring(("frechet",))


class ReferenceImages:
    """What both runs are measured against: images, the teacher, and its features of the test images.

    `records` has the lowest Fréchet distance that a generator can reach, measured with as many training images as
    samples.
    """

    def __init__(self, config: Config, train: ImageSource, test: ImageSource, teacher: Teacher) -> None:
        self.train, self.test, self.teacher = train, test, teacher
        self.side = config.size // FACTOR  # of the latent grid
        at = "" if config.teacher_size is None else f"@{config.teacher_size}"
        self.network = replace(
            of_tokenizer.grid_network(teacher, (self.side, self.side)),
            name=f"teacher:{config.teacher}{at}",
            fingerprint=teacher.fingerprint(),
        )
        self.name = f"{test.name} (test)"
        self.shown = class_balanced(SHOWN, test)  # indices of the test images on the page
        self.store = BlockStore(config.folder("features"))
        images, parts = source_images(test, config.size), self.network.parts
        self.features = extract(images, [self.network], self.store, _BATCH, World(), "test images", parts)[
            self.network.name
        ]
        chosen = Selection(train, np.array(class_balanced(config.budget.samples, train)))
        protocol = MeasurementProtocol(len(chosen), image_size=config.size, split=f"{train.name} (train)")
        name = "Fréchet distance of real training images"
        self.records = (self.distance(name, source_images(chosen, config.size), "training images", protocol),)

    def teacher_maps(self) -> np.ndarray:
        """Return the teacher's features of the shown images on the latent grid, (N, h, w, D)."""
        grids = self.features.all("grid")[self.shown].unflatten(1, (-1, self.side, self.side))  # (N, D, h, w)
        return grids.permute(0, 2, 3, 1).numpy()

    def distance(self, name: str, images: ImageSet, what: str, protocol: MeasurementProtocol) -> MetricRecord:
        """Return the Fréchet distance between images and the test images, under a name."""
        found = extract(images, [self.network], self.store, _BATCH, World(), what)
        reference = Reference(self.name, {self.network.name: self.features}, {}, None)
        (record,) = generation_records(found, reference, protocol, _FRECHET)
        return replace(record, name=name)


def measure(
    config: Config, name: str, tokenizer: Tokenizer, generator: Generator, reference: ReferenceImages
) -> RunResult:
    """Measure one run and take its pictures."""
    test_images, train_images, device = reference.test, reference.train, tokenizer.device
    context = EvaluationContext(reference.store, World(), _BATCH, "auto", config.seed)
    protocol = MeasurementProtocol(
        samples=len(test_images),
        split=reference.name,
        dtype=resolve_precision("auto", device),
        image_size=config.size,
        checkpoint=str(config.folder(name, "tokenizer/tokenizer")),
        checkpoint_hash=tokenizer.fingerprint(),
    )
    # Reconstructions
    perceptual = {"lpips_vgg16": LPIPS.pretrained("vgg16").to(device)}
    records, _ = of_tokenizer.reconstruction(
        tokenizer, test_images, config.size, "strict", [reference.network], perceptual, protocol, context
    )
    records[-1] = replace(records[-1], name="Fréchet distance of reconstructions")
    # Latents
    test = of_tokenizer.encode(tokenizer, test_images, config.size, len(test_images), context)
    train = None
    if train_images.num_classes > 1:
        train = of_tokenizer.encode(tokenizer, train_images, config.size, len(train_images), context)
    records += of_tokenizer.meaning_records(train, test, reference.teacher, reference.features, protocol)
    points = tsne_points(test.values, 42) if len(test_images) > 30 else None  # 30 is the perplexity of t-SNE
    if points is not None:
        measured = replace(protocol, posterior="mean", seed=42)
        records += uniformity_records(latent_uniformity(points), measured)
    # Samples
    labels = choose_labels(config.budget.samples, generator.num_classes, "balanced", config.seed)
    fingerprint = generator.fingerprint()
    protocol = replace(
        sampling_protocol(SAMPLING, len(labels), config.seed, "balanced"),
        dtype=resolve_precision("auto", device),
        image_size=config.size,
        checkpoint=str(config.folder(name, "generator/generator")),
        checkpoint_hash=fingerprint,
    )
    images = generated_images(generator, labels, config.seed, SAMPLING, "auto", fingerprint)
    records.append(reference.distance("Fréchet distance of samples", images, "sampling", protocol))
    # Pictures
    labels = _shown_labels(config, generator)
    shown = test.values[reference.shown]
    with autocast(resolve_precision("auto", device), device):
        reconstructions = tokenizer.decode(shown).float()
    return RunResult(
        name=name,
        records=records,
        reconstructions=to_uint8(reconstructions).cpu().numpy(),
        latents=shown.permute(0, 2, 3, 1).numpy(),  # (N, C, h, w) -> (N, h, w, C)
        tsne_points=points,
        tsne_labels=test.labels.numpy(),
        samples=draw(generator, labels, range(len(labels)), config.seed, SAMPLING, "auto"),
        sample_labels=labels,
        formation=_formation(config, generator, labels),
        tokenizer_log=read_metrics(config.folder(name, "tokenizer")),
        generator_log=read_metrics(config.folder(name, "generator")),
    )


def shipped_gallery(config: Config) -> Gallery:
    """Draw samples of the model in the package."""
    generator = Generator.from_pretrained(get_model("demo").folder or "demo", resolve_device(config.device))
    labels = _shown_labels(config, generator)
    samples = draw(generator, labels, range(len(labels)), config.seed, generator.sampling, "auto")
    tokenizer_seen, generator_seen = (m.provenance["images_seen"] for m in (generator.tokenizer, generator))
    note = (
        f"The model in the package, which “vavae sample” uses: its tokenizer saw {tokenizer_seen:,} images, its "
        f"transformer {generator_seen:,} latents. The models of this run saw {config.budget.tokenizer_images:,} and "
        f"{config.budget.generator_images:,}."
    )
    return Gallery(note, samples, labels, generator.class_names, generator.sampling.in_words())


def _shown_labels(config: Config, generator: Generator) -> list[int]:
    """Return the labels of the samples on the page, in rows of equal label."""
    classes = range(min(SHOWN, generator.num_classes))
    return [label for label in classes for _ in range(config.budget.samples_per_class)]


def _formation(config: Config, generator: Generator, labels: Sequence[int]) -> list[tuple[float, np.ndarray]]:
    """Return the expected results of some samples, of different classes, at nine times on their way from noise."""
    indices = range(0, len(labels), config.budget.samples_per_class)[:_FORMING]
    kept: list[tuple[float, Tensor]] = []
    steps = set(np.linspace(0, SAMPLING.steps - 2, 8).round().astype(int).tolist())

    def keep(step: int, t: float, x: Tensor, data: Tensor) -> None:
        if step in steps:
            kept.append((float(t), data))

    device = generator.tokenizer.device
    with autocast(resolve_precision("auto", device), device):
        drawing = generator.with_sampling(SAMPLING)
        final = drawing.latents([labels[i] for i in indices], config.seed, indices, callback=keep)
    kept.append((1.0, final))
    return [(t, to_uint8(generator.tokenizer.decode(latents.float())).cpu().numpy()) for t, latents in kept]
