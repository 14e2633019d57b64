"""Measure the effect of each known pitfall on a Fréchet distance, with embedded real images.

    python benchmarks/evaluation_pitfalls.py [--count 500] [--generator FOLDER] [--samples 250] [--threads 1]
    python benchmarks/evaluation_pitfalls.py --page-only    # write the tables of the latest result into the page

All distances are between training and test images of the demo (CIFAR-10, 32 px) with real Inception features. Both are
draws of one distribution, so the right answer is known. With a generator of 32 px it also measures guidance on few
channels. It writes a dated JSON into benchmarks/results after every part, and then the tables in docs/evaluation.md.
Features are kept, 50 images at a time, so a stopped run resumes and a larger one reuses them.
"""

import argparse
import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from record import machine
from vavae import rng
from vavae.data import DemoImages
from vavae.data.images import Selection, class_balanced
from vavae.evaluation import features as evaluate_store
from vavae.evaluation.features import BlockStore, extract
from vavae.evaluation.images import generated_images, source_images
from vavae.io.files import written_whole
from vavae.metrics import RunningMoments, kernel_distance, load_feature_network
from vavae.models import Generator
from vavae.models.sampling import choose_labels
from vavae.training.parallel import World
from vavae.training.run_log import versions

_RESIZES = ("inception", "inception-pytorch-fid", "inception-clean")
_RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "evaluation.md"
_MARKS = ("<!-- measured: benchmarks/evaluation_pitfalls.py -->\n", "<!-- end -->\n")
_SETTINGS: tuple[tuple[float, int | None], ...] = ((1.0, None), (3.0, None), (3.0, 3), (1.5, None), (1.5, 3))


def distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance between two sets of features (N, d)."""
    first, second = RunningMoments(a.shape[1]), RunningMoments(b.shape[1])
    first.update(a)
    second.update(b)
    return first.distance(second)


def sample_counts(train: Tensor, test: Tensor) -> dict[str, dict[str, float]]:
    """Return FID and KID of the same two distributions at several counts."""
    counts = [n for n in (50, 100, 200, 500, 1000) if n <= min(len(train), len(test))]
    return {str(n): {"FID": distance(train[:n], test[:n]), "KID": kernel_distance(train[:n], test[:n])} for n in counts}


def label_protocols(train: Tensor, labels: Tensor, test: Tensor, draws: int = 10) -> dict[str, object]:
    """Return the FID of as many real images with balanced labels as with random labels."""
    count = len(train) // 4
    found: dict[str, list[float]] = {"balanced": [], "random": []}
    for draw in range(draws):
        order = rng.permutation(draw, "pitfalls order", len(train))
        turns = {label: order[labels[order] == label].tolist() for label in labels.unique().tolist()}
        classes = sorted(turns)
        random = rng.integers(draw, "pitfalls label", range(count), len(classes)).tolist()
        for protocol, chosen in (("balanced", [i % len(classes) for i in range(count)]), ("random", random)):
            left = {label: list(indices) for label, indices in turns.items()}
            picked = [left[classes[c]].pop() for c in chosen]
            found[protocol].append(distance(train[picked], test))
    difference = np.array(found["random"]) - np.array(found["balanced"])
    return {
        "images": count,
        "draws": draws,
        **{name: float(np.mean(values)) for name, values in found.items()},
        "random - balanced": float(difference.mean()),
        "standard error": float(difference.std(ddof=1) / draws**0.5),
    }


def guidance_channels(folder: str, test: Tensor, count: int, store: BlockStore) -> Iterator[dict[str, object]]:
    """Yield the FIDs of guided samples, on all channels or three, after each setting."""
    generator = Generator.from_pretrained(folder)
    network = load_feature_network("inception")
    fingerprint = generator.fingerprint()
    found: dict[str, object] = {
        "samples": count,
        "steps": generator.sampling.steps,
        "latent_channels": generator.latent_shape[0],
    }
    labels = choose_labels(count, generator.num_classes, "balanced", 0)
    for scale, channels in _SETTINGS:
        sampling = replace(generator.sampling, guidance_scale=scale, guidance_channels=channels)
        blocks = generated_images(generator, labels, 0, sampling, "fp32", fingerprint)
        features = extract(blocks, [network], store, 10, World(), f"scale {scale}, channels {channels or 'all'}")
        name = f"scale {scale:g}, {channels or 'all'} channels" if scale != 1 else "none (scale 1)"
        found[name] = distance(features["inception"].all(), test)
        yield dict(found)


def latest() -> dict[str, Any]:
    """Return the newest result in `benchmarks/results`."""
    found = json.loads(max(_RESULTS.glob("*-evaluation-pitfalls.json")).read_text())
    assert isinstance(found, dict)
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def tables(result: dict[str, Any]) -> str:
    """Return a result as text of the page."""
    labels, reference, resize = result["label protocol"], result["reference"], result["resize"]
    mixed = result["statistics of another resize"]
    counts = [[n, f"{v['FID']:.1f}", f"{v['KID']:.4f}"] for n, v in result["sample count"].items()]
    networks = [
        [f"samples `{a}`", *(f"{resize[a] if a == b else mixed[f'samples {a}, reference {b}']:.1f}" for b in _RESIZES)]
        for a in _RESIZES
    ]
    parts = [
        f"Measured on {result['date']} ({result['machine']}) between {result['images']}.\n",
        "**Sample count.** More and more images of the same two sets; the true distance is near 0.\n",
        _table(["images of each", "FID", "KID"], counts),
        "**Resize and statistics file.** Rows: resize of the samples. Columns: resize of the images of the reference "
        "statistics. Only numbers on the diagonal are valid; others compare two resizes.\n",
        _table(["", *(f"reference `{name}`" for name in _RESIZES)], networks),
        "**Reference images.** A reference that contains the samples themselves (training images measured against "
        "statistics of the training set) gives a lower distance than other images.\n",
        _table(["reference", "FID"], [[name, f"{value:.1f}"] for name, value in reference.items()]),
        f"**Label protocol.** Sets of {labels['images']} real images, with balanced or random classes; mean of "
        f"{labels['draws']} draws.\n",
        _table(
            ["balanced", "random", "random − balanced", "standard error"],
            [
                [
                    f"{labels['balanced']:.2f}",
                    f"{labels['random']:.2f}",
                    f"{labels['random - balanced']:+.2f}",
                    f"{labels['standard error']:.2f}",
                ]
            ],
        ),
    ]
    if abs(labels["random - balanced"]) < 2 * labels["standard error"]:
        parts.append("The difference is less than two standard errors: so few images do not decide.\n")
    if "guidance" in result:
        guidance = result["guidance"]
        rows = [
            [name, f"{value:.1f}"]
            for name, value in guidance.items()
            if name not in ("samples", "steps", "latent_channels")
        ]
        parts += [
            f"**Guidance channels.** {guidance['samples']} samples of the demo's generator "
            f"({guidance['latent_channels']} latent channels, {guidance['steps']} steps).\n",
            _table(["guidance", "FID"], rows),
            "Each number is one draw of unknown variance: small differences mean nothing.\n",
        ]
    else:
        parts.append("**Guidance channels.** Not measured in this result.\n")
    return "\n".join(parts)


def write_page(result: dict[str, Any]) -> None:
    """Write the tables of a result into the page, between its two marks."""
    before, rest = PAGE.read_text().split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    PAGE.write_text(before + _MARKS[0] + "\n" + tables(result) + "\n" + _MARKS[1] + after)


def measured(arguments: argparse.Namespace) -> Iterator[tuple[str, object]]:
    """Yield every part of the result, by name."""
    store = BlockStore(arguments.features)
    features: dict[tuple[str, str], Tensor] = {}
    labels = torch.empty(0)
    for split in ("test", "train"):
        source = DemoImages("train" if split == "train" else "test")
        chosen = Selection(source, np.array(class_balanced(arguments.count, source)))
        if split == "train":
            labels = torch.tensor([chosen.label(i) for i in range(len(chosen))])
        networks = [load_feature_network(name) for name in _RESIZES]
        stored = extract(source_images(chosen, 32), networks, store, 10, World(), f"{split} images")
        features |= {(name, split): stored[name].all() for name in _RESIZES}
    train, test = features["inception", "train"], features["inception", "test"]
    half = arguments.count // 2
    yield "sample count", sample_counts(train, test)
    yield "label protocol", label_protocols(train, labels, test)
    yield "resize", {name: distance(features[name, "train"], features[name, "test"]) for name in _RESIZES}
    yield (
        "statistics of another resize",
        {
            f"samples {a}, reference {b}": distance(features[a, "train"], features[b, "test"])
            for a in _RESIZES
            for b in _RESIZES
            if a != b
        },
    )
    yield (
        "reference",
        {
            "other images": distance(train[:half], test),
            "images that hold the samples themselves": distance(train[:half], train),
        },
    )
    if arguments.generator is not None:
        for found in guidance_channels(arguments.generator, test, arguments.samples, store):
            yield "guidance", found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="images of each set")
    parser.add_argument("--generator", help="folder of a generator of 32 px images of the demo's classes")
    parser.add_argument("--samples", type=int, default=250, help="samples per guidance setting")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", default="runs/pitfalls", help="folder that keeps features")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    if arguments.page_only:
        write_page(latest())
        return
    torch.set_num_threads(arguments.threads)
    evaluate_store.BLOCK = 50
    command = f"python benchmarks/evaluation_pitfalls.py --count {arguments.count} --threads {arguments.threads}"
    if arguments.generator is not None:
        # A path on this machine would not help others; `demo` is in the package.
        command += f" --samples {arguments.samples} --generator {'demo' if arguments.generator == 'demo' else 'FOLDER'}"
    result: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "machine": machine(),
        "images": f"{arguments.count} training and {arguments.count} test images of the demo, 32 px, classes in turn",
        "versions": versions(),
    }
    path = _RESULTS / f"{result['date']}-evaluation-pitfalls.json"
    path.parent.mkdir(exist_ok=True)
    for name, found in measured(arguments):
        result[name] = found
        with written_whole(path) as partial:
            partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_page(result)
    print(path.read_text())


if __name__ == "__main__":
    main()
