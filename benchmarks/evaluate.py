"""Measure speed and correctness of evaluation on this machine; meant for a GPU.

    python benchmarks/evaluate.py cifar                          # FID of CIFAR-10's two parts, time from pixels
    python benchmarks/evaluate.py networks [--networks inception,...]
    python benchmarks/evaluate.py generation --generator FOLDER [--count 50000]

Each piece writes a dated JSON into benchmarks/results:
- `cifar`: FID between CIFAR-10's 50,000 training and 10,000 test images (literature: about 3.15 with the TensorFlow
  Inception), the time it takes from pixels, and again from stored features;
- `networks`: images per second of every feature network at 256 px, and of the distance alone on the CPU;
- `generation`: the time of a whole evaluation of `count` samples, and of drawing them without measuring.
A piece adds to the JSON of its day and device. Features are kept, so a stopped piece resumes. Its times then cover the
last part only, and "computed" in the JSON is the number of its images.
Without a GPU use small numbers, for example `--count 200 --cifar 200`.
"""

import argparse
import datetime
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from vavae.data import Cifar10Images
from vavae.data.images import Selection
from vavae.device import resolve_device
from vavae.errors import UserError
from vavae.evaluation.features import BlockStore, extract
from vavae.evaluation.images import generated_images, source_images
from vavae.io.files import written_whole
from vavae.metrics import RunningMoments, load_feature_network
from vavae.models import Generator
from vavae.models.sampling import choose_labels, draw
from vavae.training.parallel import World
from vavae.training.run_log import versions

_NETWORKS = "inception,inception-pytorch-fid,inception-clean,teacher:dinov2-small-focus,teacher:resnet50"


def finish(device: torch.device) -> float:
    """Wait for the device and return the time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class CountingStore(BlockStore):
    """A store that counts what it writes; after a stop some features are stored already."""

    written = 0

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors and count them."""
        self.written += max(len(tensor) for tensor in tensors.values())
        super().write(key, tensors)


def cifar_distance(device: torch.device, limit: int | None, batch_size: int, folder: Path) -> dict[str, object]:
    """Return the FID between CIFAR-10's training and test images, with times."""
    network = load_feature_network("inception", device)
    store = CountingStore(folder)
    found: dict[str, object] = {}
    for attempt in ("from pixels", "from stored features"):
        began = finish(device)
        moments = []
        for split in ("train", "test"):
            source = Cifar10Images("train" if split == "train" else "test")
            chosen = Selection(source, torch.arange(min(limit or len(source), len(source))).numpy())
            images = source_images(chosen, 32)
            features = extract(images, [network], store, batch_size, World(), f"CIFAR-10 {split}")
            moments.append(features["inception"].moments())
            found[f"{split} images"] = images.count
        found["FID"] = moments[0].distance(moments[1])
        found[f"seconds {attempt}"] = finish(device) - began
    return {**found, "computed": store.written}


def network_rates(names: list[str], device: torch.device, batch_size: int, batches: int) -> dict[str, object]:
    """Return images per second of each network for 256 px images on the host."""
    found: dict[str, object] = {}
    pixels = torch.randint(0, 256, (batch_size, 256, 256, 3), dtype=torch.uint8)
    for name in names:
        try:
            network = load_feature_network(name, device)
        except UserError as error:
            found[name] = f"not measured: {error}"
            continue
        network.all_parts(pixels)
        began = finish(device)
        for _ in range(batches):
            network(pixels)
        found[name] = batches * batch_size / (finish(device) - began)
    return found


def distance_seconds(dimension: int = 2048, count: int = 5000) -> dict[str, float]:
    """Return seconds for moments of `count` features, and for one Fréchet distance, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, dimension)
    moments = [RunningMoments(dimension), RunningMoments(dimension)]
    began = time.perf_counter()
    for number, one in enumerate(moments):
        one.update((1 + 0.1 * number) * scale * torch.randn(count, dimension, generator=generator))
    middle = time.perf_counter()
    moments[0].distance(moments[1])
    return {"moments": (middle - began) / 2, "distance": time.perf_counter() - middle}


def whole_evaluation(
    folder: str, device: torch.device, count: int, batch_size: int, store_folder: Path
) -> dict[str, object]:
    """Return seconds to draw samples, and to draw and measure them."""
    generator = Generator.from_pretrained(folder, device)
    labels = choose_labels(count, generator.num_classes, "balanced", 0)
    few = min(count, 4 * batch_size)
    draw(generator, labels[:batch_size], range(batch_size), 0, generator.sampling)
    began = finish(device)
    for start in range(0, few, batch_size):
        numbers = range(start, min(start + batch_size, few))
        draw(generator, [labels[i] for i in numbers], numbers, 0, generator.sampling)
    drawing = (finish(device) - began) / few
    network = load_feature_network("inception", device)
    blocks = generated_images(generator, labels, 0, generator.sampling, "fp32", generator.fingerprint())
    store = CountingStore(store_folder)
    began = finish(device)
    features = extract(blocks, [network], store, batch_size, World(), "samples", ("pool", "spatial"))["inception"]
    features.moments()
    features.moments("spatial")
    whole = finish(device) - began
    computed = store.written // 2  # pooled and spatial features are stored separately
    return {
        "samples": count,
        "computed": computed,
        "seconds": whole,
        "samples per second": computed / whole,
        "samples per second, drawing alone": 1 / drawing,
        "steps": generator.sampling.steps,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("piece", choices=("cifar", "networks", "generation"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--batches", type=int, default=8, help="of each network")
    parser.add_argument("--networks", default=_NETWORKS)
    parser.add_argument("--cifar", type=int, default=None, help="images of each part of CIFAR-10; all by default")
    parser.add_argument("--generator", help="folder of a generator")
    parser.add_argument("--count", type=int, default=50_000, help="samples of the generator")
    parser.add_argument("--features", type=Path, default=Path("runs/benchmark-features"), help="keeps features")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON")
    arguments = parser.parse_args()
    if arguments.piece == "generation" and arguments.generator is None:
        parser.error("generation: --generator FOLDER is needed")
    device = resolve_device(arguments.device)
    day = datetime.date.today().isoformat()
    path = arguments.output / f"{day}-evaluate-{device.type}.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    result |= {
        "date": day,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    batch_size = arguments.batch_size
    if arguments.piece == "cifar":
        found = cifar_distance(device, arguments.cifar, batch_size, arguments.features)
    elif arguments.piece == "networks":
        names = arguments.networks.split(",")
        found = {
            "images per second at 256 px": network_rates(names, device, batch_size, arguments.batches),
            "seconds, 2048 features, CPU": distance_seconds(),
        }
    else:
        found = whole_evaluation(arguments.generator, device, arguments.count, batch_size, arguments.features)
    result[arguments.piece] = {**found, "batch size": batch_size}
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    main()
