"""Change one random bit in every kind of file that vavae writes or reads, and see what its reader does.

    python benchmarks/damage.py --flips 100

Each flip is done on a copy. The reader either refuses the file in one clear line (`noticed`), falls back on an older
good one (`noticed` too), returns what it returned before (`without effect`: the bit is not read), returns something
else without a word (`silent`), or raises an error that is not for users (`crash`). JPEG and WebP have no
checksum, so a changed pixel is silent. It writes
`benchmarks/results/<date>-damage.json`; the exit code is 1 after a crash, or after a silent change of a file of ours.
"""

import argparse
import hashlib
import io
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from tiny_runs import transformer_recipe, write_latents

from record import RESULTS, started, write
from vavae import Generator, Tokenizer
from vavae.data import DemoImages, LatentDataset, open_images
from vavae.errors import RunError, UserError
from vavae.stages import train_dit
from vavae.training.checkpoint import CheckpointFolder

Reader = Callable[[Path], object]
_IMAGES = 3


def digest(*values: object) -> str:
    """Return a hash of tensors, arrays and texts."""
    found = hashlib.sha256()
    for value in values:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        found.update(np.ascontiguousarray(array).tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
    return found.hexdigest()


def weights(module: torch.nn.Module) -> list[object]:
    return [part for name, value in sorted(module.state_dict().items()) for part in (name, value)]


def read_tokenizer(folder: Path) -> str:
    tokenizer = Tokenizer.from_pretrained(folder)
    return digest(*weights(tokenizer.autoencoder), tokenizer.statistics.mean, tokenizer.statistics.std)


def read_generator(folder: Path) -> str:
    generator = Generator.from_pretrained(folder)
    return digest(*weights(generator.transformer), generator.sampling, generator.class_names, generator.path)


def read_latents(folder: Path) -> str:
    dataset = LatentDataset(folder)
    dataset.verify()
    latents, labels = dataset.get(torch.arange(len(dataset)))
    return digest(latents, labels, dataset.class_names)


def read_checkpoint(folder: Path) -> str:
    newest = CheckpointFolder(folder).load_newest()
    if newest is None:
        raise UserError("no checkpoint is left")
    tensors, numbers = newest
    return digest(*[part for name in sorted(tensors) for part in (name, tensors[name])], numbers["images_seen"])


def read_images(folder: Path) -> str:
    source = open_images(str(folder), "train")
    if len(source) < _IMAGES:  # the stages list the others in unreadable.txt
        raise UserError("an image cannot be read")
    return digest(*(np.asarray(source.image(index)) for index in range(len(source))))


def write_everything(place: Path) -> dict[str, tuple[Path, Reader, list[Path]]]:
    """Return kind -> (folder, its reader, the files to damage)."""
    write_latents(place)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        train_dit.run(transformer_recipe(place / "run", place))
    for form in ("png", "jpg", "webp"):
        for number in range(_IMAGES):
            path = place / form / "a" / f"{number}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            DemoImages("test").image(number).save(path)

    def files(folder: Path) -> list[Path]:
        return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")

    newest = max((place / "run/checkpoints").glob("images-*"))
    return {
        "tokenizer folder": (place / "tokenizer", read_tokenizer, files(place / "tokenizer")),
        "generator folder": (place / "run/generator", read_generator, files(place / "run/generator")),
        "latent folder": (place / "latents", read_latents, files(place / "latents")),
        "newest checkpoint": (place / "run/checkpoints", read_checkpoint, files(newest)),
        "PNG images": (place / "png", read_images, files(place / "png")),
        "JPEG images": (place / "jpg", read_images, files(place / "jpg")),
        "WebP images": (place / "webp", read_images, files(place / "webp")),
    }


def outcome(folder: Path, read: Reader, expected: object) -> str:
    """Read a damaged folder, and return what happened."""
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            found = read(folder)
    except (UserError, RunError):
        return "noticed"
    except Exception as error:  # every other one is a crash for a user
        return f"crash ({type(error).__name__}: {str(error)[:80]})"
    if found == expected:
        return "without effect"
    return "noticed" if "damaged" in said.getvalue() else "silent"


def flip_bit(path: Path, draw: random.Random) -> None:
    """Change one random bit of a file."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def flips(folder: Path, read: Reader, files: list[Path], count: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield the file's name and the outcome of each flip."""
    expected = read(folder)
    for _ in range(count):
        with tempfile.TemporaryDirectory() as place:
            copy = Path(shutil.copytree(folder, Path(place) / folder.name))
            damaged = copy / draw.choice(files).relative_to(folder)
            flip_bit(damaged, draw)
            yield damaged.name, outcome(copy, read, expected)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    record = started("damage.py")
    draw, results, bad = random.Random(options.seed), [], False
    with tempfile.TemporaryDirectory() as place:
        for kind, (folder, read, files) in write_everything(Path(place)).items():
            found = list(flips(folder, read, files, options.flips, draw))
            counts = Counter(what.partition(" (")[0] for _, what in found)
            row = {"kind": kind, "flips": options.flips}
            row |= {name.replace(" ", "_"): counts[name] for name in ("noticed", "without effect", "silent", "crash")}
            results.append(row)
            print(row, *sorted({f"  {name}: {what}" for name, what in found if what[0] in "cs"}), sep="\n", flush=True)
            bad |= counts["crash"] > 0 or (counts["silent"] > 0 and "images" not in kind)
    write(record | {"results": results}, options.output, "damage")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
