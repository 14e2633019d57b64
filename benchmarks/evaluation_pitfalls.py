"""What each known pitfall does to a Fréchet distance, measured on embedded real images.

    python benchmarks/evaluation_pitfalls.py [--count 500] [--generator FOLDER] [--threads 1]

Everything is measured between training and test images of the demo (CIFAR-10, 32 px) with real Inception features,
so that the right answer is known: the two are draws of one distribution. With a generator of 32 px, also guidance on
few channels. Writes a dated JSON into benchmarks/results.
"""

import argparse
import datetime
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vavae import counter
from vavae.data import DemoImages
from vavae.metrics import RunningMoments, kernel_distance, load_feature_network
from vavae.pretrained import Generator
from vavae.stages.evaluate_images import GeneratorBlocks, SourceBlocks, generator_fingerprint
from vavae.stages.evaluate_processes import Processes
from vavae.stages.evaluate_store import BlockStore, extract
from vavae.stages.images import Selection, evenly
from vavae.stages.sample import choose_labels
from vavae.training.tracking import versions

_RESIZES = ("inception", "inception-pytorch-fid", "inception-clean")


def distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between two sets of features (N, d)."""
    first, second = RunningMoments(a.shape[1]), RunningMoments(b.shape[1])
    first.update(a)
    second.update(b)
    return first.distance(second)


def sample_counts(train: Tensor, test: Tensor) -> dict[str, dict[str, float]]:
    """FID and KID of the same two distributions at several counts."""
    counts = [n for n in (50, 100, 250, 500, 1000) if n <= min(len(train), len(test))]
    return {str(n): {"FID": distance(train[:n], test[:n]), "KID": kernel_distance(train[:n], test[:n])} for n in counts}


def label_protocols(train: Tensor, labels: Tensor, test: Tensor, draws: int = 10) -> dict[str, object]:
    """FID of real images whose labels are balanced, or drawn at random, as many of each."""
    count = len(train) // 4
    found: dict[str, list[float]] = {"balanced": [], "random": []}
    for draw in range(draws):
        order = counter.permutation(draw, "pitfalls order", len(train))
        turns = {label: order[labels[order] == label].tolist() for label in labels.unique().tolist()}
        classes = sorted(turns)
        random = counter.integers(draw, "pitfalls label", range(count), len(classes)).tolist()
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


def guidance_channels(folder: str, test: Tensor, count: int, store: BlockStore) -> dict[str, object]:
    """FID of guided samples: all channels, three, none."""
    generator = Generator.from_pretrained(folder)
    network = load_feature_network("inception")
    fingerprint = generator_fingerprint(generator)
    found: dict[str, object] = {
        "samples": count,
        "steps": generator.sampling.steps,
        "latent_channels": generator.latent_shape[0],
    }
    for scale, channels in ((1.0, None), (1.5, None), (1.5, 3), (3.0, None), (3.0, 3)):
        sampling = replace(generator.sampling, guidance_scale=scale, guidance_channels=channels)
        labels = choose_labels(count, generator.num_classes, "balanced", 0)
        blocks = GeneratorBlocks(generator, labels, 0, sampling, "fp32", fingerprint)
        features = extract(blocks, [network], store, 50, Processes(), f"scale {scale}, channels {channels or 'all'}")
        found[f"scale {scale:g}, {channels or 'all'} channels"] = distance(features["inception"].all(), test)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="images of each set")
    parser.add_argument("--generator", help="folder of a generator of 32 px images of the demo's classes")
    parser.add_argument("--samples", type=int, default=250, help="samples per guidance setting")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--features", default="runs/pitfalls", help="folder that keeps features")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    store = BlockStore(arguments.features)
    features: dict[tuple[str, str], Tensor] = {}
    labels = torch.empty(0)
    for split in ("test", "train"):
        source = DemoImages("train" if split == "train" else "test")
        chosen = Selection(source, np.array(evenly(arguments.count, source)))
        if split == "train":
            labels = torch.tensor([chosen.label(i) for i in range(len(chosen))])
        networks = [load_feature_network(name) for name in _RESIZES]
        stored = extract(SourceBlocks(chosen, 32), networks, store, 50, Processes(), f"{split} images")
        features |= {(name, split): stored[name].all() for name in _RESIZES}
    train, test = features["inception", "train"], features["inception", "test"]
    half = arguments.count // 2
    result: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "images": f"{arguments.count} training and {arguments.count} test images of the demo, 32 px, class-balanced",
        "sample count": sample_counts(train, test),
        "label protocol": label_protocols(train, labels, test),
        "resize": {name: distance(features[name, "train"], features[name, "test"]) for name in _RESIZES},
        "statistics of another resize": {
            f"samples {a}, reference {b}": distance(features[a, "train"], features[b, "test"])
            for a in _RESIZES
            for b in _RESIZES
            if a != b
        },
        "reference": {
            "other images": distance(train[:half], test[:half]),
            "images that hold the samples themselves": distance(train[:half], train),
        },
    }
    if arguments.generator is not None:
        result["guidance"] = guidance_channels(arguments.generator, test, arguments.samples, store)
    result["versions"] = versions()
    path = Path(__file__).parent / "results" / f"{result['date']}-evaluation-pitfalls.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
