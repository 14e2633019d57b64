"""The whole path on real images, on the CPU: tokenizer, latents, transformer, samples, metrics, page."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vavae import assets
from vavae.config import to_plain
from vavae.config.command_line import command_line
from vavae.data import ImageSource
from vavae.data.images import check_same_classes, note, printed_once
from vavae.demo.contents import StepTiming
from vavae.demo.measure import Measured, ReferenceImages, measure, shipped_gallery
from vavae.demo.plan import ALIGNED, DEFAULT, QUICK, TOKENIZER_BATCH, UNALIGNED, Plan
from vavae.demo.steps_page import headline, write_report
from vavae.device import resolve_device
from vavae.errors import UserError
from vavae.io.files import check_not_foreign, read_json_object, written_whole
from vavae.models import Generator, Tokenizer
from vavae.progress import format_duration
from vavae.stages import encode, train_dit, train_tokenizer
from vavae.stages.run_folder import RUN_FILES, check_no_own_recipe, exclusive, open_run_folder
from vavae.teachers import load_teacher
from vavae.training.run_log import versions


@dataclass(frozen=True)
class Config:
    """Train an aligned tokenizer and a generator on its latents, measure both, and write a page about it.

    Attributes:
        output: Run folder; the page is `report.html` in it, every number is in `results.json`. A second call with the
            same settings goes on where the first stopped.
        images: `demo` (embedded CIFAR-10 images), `cifar10` (all of it), or a folder: one sub-folder per class, or
            images without classes.
        size: Side to which images are cropped and resized, a multiple of 4. Time grows with its square.
        compare: Also train a tokenizer without alignment and its generator on the same budget.
        quick: A small part of the budget, to see that everything works; the images are not good.
        teacher: The foundation model to align with; `vavae assets list` and `vavae train-tokenizer --help` name others.
        seed: Seed of everything.
        device: auto, cpu, cuda, mps, …
    """

    output: str = "runs/demo"
    images: str = "demo"
    size: int = 32
    compare: bool = False
    quick: bool = False
    teacher: str = "dinov2-small-focus"
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 4:
            raise UserError(f"size: {self.size} is not a multiple of 4 of at least 16")


class _Steps:
    """How long each step took, over all calls on the folder as far as they can be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = {timing.name: timing for timing in _former_timings(path)}

    @contextmanager
    def __call__(self, name: str, detail: str = "") -> Iterator[None]:
        former = self._done[name].seconds if name in self._done else 0.0
        began = time.perf_counter()
        print(f"-- {name}", flush=True)
        try:
            yield
        finally:
            self._done[name] = StepTiming(name, former + time.perf_counter() - began, detail)
            rows = {step.name: {"seconds": step.seconds, "detail": step.detail} for step in self.timings}
            with written_whole(self._path) as temporary:
                temporary.write_text(json.dumps(rows, indent=1))

    @property
    def timings(self) -> list[StepTiming]:
        return list(self._done.values())


def _former_timings(path: Path) -> list[StepTiming]:
    """What former calls noted; nothing where that is damaged, since no result depends on it."""
    try:
        rows = read_json_object(path) if path.exists() else {}
        return [StepTiming(name, float(row["seconds"]), str(row["detail"])) for name, row in rows.items()]
    except (UserError, KeyError, TypeError, ValueError):
        return []


@printed_once()
def run(config: Config) -> Path:
    """Run the demo; returns the path of the page.

    Raises:
        UserError: Images or teacher are wrong, or the folder holds a demo with other settings, or something else.
        KeyboardInterrupt: A stop was asked for; the same command goes on.
    """
    folder = Path(config.output)
    plan = Plan(
        folder,
        config.images,
        config.size,
        config.teacher,
        QUICK if config.quick else DEFAULT,
        config.seed,
        config.device,
    )
    check_no_own_recipe(folder)
    check_not_foreign(folder, lambda it: (it / "versions.json").exists(), "demo", RUN_FILES)
    test = _test_images(plan)  # before the folder is claimed: a mistake must not leave anything in it
    with exclusive(folder):
        open_run_folder(folder, config)
        try:
            return _run(config, plan, test)
        except KeyboardInterrupt as interrupt:
            message = str(interrupt) or f"stopped; what is finished is in {folder}, and the same command goes on"
            raise KeyboardInterrupt(message) from interrupt


def _test_images(plan: Plan) -> ImageSource:
    test = plan.data("test").open("test", what="test images")
    if len(test) < 2:
        raise UserError(f"{plan.images}: {len(test)} test image is too few to measure on; give 15 images or more")
    return test


def _run(config: Config, plan: Plan, test: ImageSource) -> Path:
    steps = _Steps(plan.folder / "steps.json")
    budget = plan.budget
    train = plan.data("train").open("train", plan.folder)
    note(plan.folder / "images.json", "test images", len(test), test.class_names, test.found)
    check_same_classes(train, test)
    with steps("fetch the pretrained weights", f"LPIPS and {plan.teacher}"):
        assets.fetch("lpips-vgg16")
        teacher = load_teacher(plan.teacher, input_size=plan.teacher_size, dtype=plan.teacher_dtype)
        teacher = teacher.to(resolve_device(plan.device))
    runs: list[Measured] = []
    with steps("features of the test images", f"{len(test):,} images"):
        reference = ReferenceImages.of(plan, train, test, teacher)
    for name in (ALIGNED, UNALIGNED) if config.compare else (ALIGNED,):
        with steps(
            f"train the {name} tokenizer", f"{budget.tokenizer_images:,} images seen, batches of {TOKENIZER_BATCH}"
        ):
            train_tokenizer.run(plan.tokenizer(name))
        with steps(f"encode ({name})", f"{len(train):,} images and their mirror images"):
            encode.run(plan.encode(name))
        with steps(f"train the transformer on {name} latents", f"{budget.generator_images:,} latents seen"):
            train_dit.run(plan.transformer(name))
        with steps(f"sample and measure ({name})", f"{len(test):,} reconstructions, {budget.samples} samples"):
            # As saved, so that a call that finds them trained measures the very same.
            device = resolve_device(plan.device)
            tokenizer = Tokenizer.from_pretrained(plan.run_folder(name) / "tokenizer" / "tokenizer", device)
            generator = Generator.from_pretrained(plan.run_folder(name) / "generator" / "generator", device)
            runs.append(measure(plan, name, tokenizer, generator, reference))
    with steps("sample from the model that comes with the package", "for comparison"):
        gallery = shipped_gallery(plan)
    results = plan.folder / "results.json"
    record = {
        "command": command_line(),
        "config": to_plain(config),
        "budget": to_plain(budget),
        "versions": versions(),
        "steps": to_plain(steps.timings),
        "runs": {m.name: [r.to_dict() for r in m.records] for m in runs},
        "reference": [r.to_dict() for r in reference.records],
    }
    with written_whole(results) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    page = plan.folder / "report.html"
    write_report(page, plan, command_line(), steps.timings, reference, runs, gallery)
    total = sum(step.seconds for step in steps.timings)
    print(f"\ndone in {format_duration(total)}")
    for row in headline(runs):
        beside = "".join(f", {name} {value}" for name, value in row.beside.items())
        print(f"  {row.label}: {row.value}{f' {row.unit}' if row.unit else ''}{beside}")
    print(f"numbers: {results}\npage: {page}")
    return page
