"""The whole path on real images, on the CPU: tokenizer, latents, transformer, samples, metrics, page."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vavae import assets
from vavae.config import to_plain
from vavae.config.command_line import command_line
from vavae.data import ImageSource, load_pixels
from vavae.data.images import check_same_classes, note_source, printed_once
from vavae.demo.contents import DemoReport, RunResult, StepTiming
from vavae.demo.measure import ReferenceImages, measure, shipped_gallery
from vavae.demo.page import write_page
from vavae.demo.plan import ALIGNED, SAMPLING, UNALIGNED, Config
from vavae.demo.summary import findings, headline, images_note, machine, teacher_note
from vavae.device import resolve_device
from vavae.errors import UserError
from vavae.extras import require_extra
from vavae.io.files import check_not_foreign, exclusive, read_json_object, written_whole
from vavae.models import Generator, Tokenizer
from vavae.report.numbers import duration
from vavae.stages import encode, train_dit, train_tokenizer
from vavae.teachers import load_teacher
from vavae.training.run_folder import RUN_FILES, check_no_own_recipe, open_run_folder
from vavae.training.run_log import versions


class _Steps:
    """Times of the steps, added up over all calls on the folder."""

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
    """Return the times of former calls; nothing if the file is damaged, since no result depends on it."""
    try:
        rows = read_json_object(path) if path.exists() else {}
        return [StepTiming(name, float(row["seconds"]), str(row["detail"])) for name, row in rows.items()]
    except (UserError, KeyError, TypeError, ValueError):
        return []


@printed_once()
def run(config: Config) -> Path:
    """Run the demo and return the path of the page.

    Raises:
        UserError: A package is missing, images or teacher are wrong, or the folder contains a demo with other settings,
            or other files.
        KeyboardInterrupt: The demo was stopped; the same command resumes it.
    """
    require_extra("demo", "vavae demo")
    folder = Path(config.output)
    check_no_own_recipe(folder)
    check_not_foreign(folder, lambda it: (it / "versions.json").exists(), "demo", RUN_FILES)
    # Before the folder is made: a mistake must not leave anything in it.
    test = config.data("test").open("test", what="test images")
    if len(test) < 2:
        raise UserError(f"{config.images}: {len(test)} test image is too few to measure on; give 15 images or more")
    with exclusive(folder):
        open_run_folder(folder, config)
        try:
            return _run(config, folder, test)
        except KeyboardInterrupt as interrupt:
            message = str(interrupt) or f"stopped; finished work is in {folder}, and the same command resumes it"
            raise KeyboardInterrupt(message) from interrupt


def _run(config: Config, folder: Path, test: ImageSource) -> Path:
    device = resolve_device(config.device)
    steps = _Steps(folder / "steps.json")
    train = config.data("train").open("train", folder)
    check_same_classes(train, test)
    note_source(folder, train)
    note_source(folder, test, "test images")
    with steps("fetch the pretrained weights", f"LPIPS and {config.teacher}"):
        for network in ("lpips-vgg16", "lpips-alexnet"):
            assets.fetch(network)
        teacher = load_teacher(config.teacher, input_size=config.teacher_size).to(device)
    with steps("features of the test images", f"{len(test):,} images"):
        reference = ReferenceImages(config, train, test, teacher)

    names = (ALIGNED, UNALIGNED) if config.compare else (ALIGNED,)
    runs = [_train_and_measure(config, name, reference, steps) for name in names]
    with steps("sample from the model in the package", "for comparison"):
        gallery = shipped_gallery(config)

    # Write the results and the page
    found = versions()
    record = {
        "command": command_line(),
        "config": to_plain(config),
        "budget": to_plain(config.budget),
        "versions": found,
        "steps": to_plain(steps.timings),
        "runs": {run.name: [r.to_dict() for r in run.records] for run in runs},
        "reference": [r.to_dict() for r in reference.records],
    }
    results, page = folder / "results.json", folder / "report.html"
    with written_whole(results) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    shown = reference.shown
    report = DemoReport(
        command=command_line(),
        created=time.strftime("%-d %B %Y, %H:%M %Z"),
        machine=machine(config),
        versions={name: version for name, version in found.items() if name not in ("machine", "gpu", "cuda")},
        images_note=images_note(config, train, test),
        teacher_note=teacher_note(config, teacher.input_size),
        guidance=SAMPLING.in_words(),
        steps=steps.timings,
        class_names=train.class_names,
        originals=load_pixels(test, shown, config.size).numpy(),
        original_labels=[test.label(i) for i in shown],
        teacher_features=reference.teacher_maps(),
        runs=runs,
        reference=reference.records,
        findings=findings(config, runs[0], reference.records[0], steps.timings),
        gallery=gallery,
        quick=config.quick,
    )
    write_page(page, report)
    shutil.rmtree(reference.store.folder)
    print(f"\ndone in {duration(sum(step.seconds for step in steps.timings))}")
    for label, values, unit, _ in headline(runs, reference.records):
        others = "".join(f", {name} {value}" for name, value in values.items() if name != ALIGNED)
        print(f"  {label}: {values[ALIGNED]}{unit and f' {unit}'}{others}")
    print(f"numbers: {results}\npage: {page}")
    return page


def _train_and_measure(config: Config, name: str, reference: ReferenceImages, steps: _Steps) -> RunResult:
    budget, recipe, device = config.budget, config.tokenizer(name), resolve_device(config.device)
    seen = f"{budget.tokenizer_images:,} images seen, batches of {recipe.training.batch_size}"
    with steps(f"train the {name} tokenizer", seen):
        train_tokenizer.run(recipe)
    with steps(f"encode ({name})", f"{len(reference.train):,} images and their mirror images"):
        encode.run(config.encode(name))
    with steps(f"train the transformer on {name} latents", f"{budget.generator_images:,} latents seen"):
        train_dit.run(config.transformer(name))
    shown = f"{len(reference.test):,} reconstructions, {budget.samples} samples"
    with steps(f"sample and measure ({name})", shown):
        # The saved models, so that a later call that finds them trained measures the same.
        tokenizer = Tokenizer.from_pretrained(config.folder(name, "tokenizer/tokenizer"), device)
        generator = Generator.from_pretrained(config.folder(name, "generator/generator"), device)
        return measure(config, name, tokenizer, generator, reference)
