"""Feed mutated files to a reader, guided by the coverage of its code; every error must be one for users.

    pip install atheris
    python benchmarks/fuzz.py images -runs=1000000

Targets: `images`, `shards` (tar), `checkpoints` (.pt, .ckpt), `safetensors`, `folders` (`config.json` of a tokenizer),
`statistics`, `recipes`. Other options go to libFuzzer (`-runs`, `-max_total_time`, `-fork`). The first inputs are small
good files; what reaches new code is kept in `runs/fuzz/TARGET`, so that a second call continues. An error that is not
for users stops the run and leaves `crash-…`; put it into a test. `benchmarks/results/<date>-fuzz.json` counts the runs
of all targets on that day.
"""

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vavae"]):
    import torch
    from PIL import Image
    from safetensors.torch import save

    from vavae import AutoencoderKL, Tokenizer
    from vavae.checkpoints.reading import read_checkpoint, read_safetensors
    from vavae.checkpoints.statistics import read_statistics
    from vavae.config import load_recipe
    from vavae.config.recipes import package_recipe
    from vavae.data import open_images
    from vavae.data.readable import image_error, read_rgb
    from vavae.errors import RunError, UserError
    from vavae.stages import train_dit
    from vavae.tokenizer import AutoencoderConfig, LatentStatistics

RESULTS = Path(__file__).parent / "results"


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    """Return what `write` writes into a file."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def picture(form: str, mode: str = "RGB") -> bytes:
    return saved(lambda file: Image.new(mode, (5, 4), 77).save(file, form))


def shard() -> bytes:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, content in (("a.png", picture("PNG")), ("a.cls", b"1"), ("b.png", picture("PNG", "L"))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    return saved(write)


class Target:
    """A reader of one file, and small good files."""

    def __init__(self, seeds: list[bytes], read: Callable[[Path], object], name: str = "file") -> None:
        self.seeds, self.read, self.name = seeds, read, name


def image_target() -> Target:
    forms = [
        ("PNG", "RGB"),
        ("PNG", "I;16"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("WEBP", "RGB"),
        ("GIF", "P"),
        ("TIFF", "L"),
    ]

    def read(path: Path) -> None:
        if image_error(path) is None:  # else the data sets list it
            read_rgb(path)

    return Target([picture(*form) for form in forms], read, "image.png")


def shard_target() -> Target:
    def read(path: Path) -> None:
        source = open_images(f"wds:{path}", "train")
        for index in range(len(source)):
            source.image(index)

    return Target([shard()], read, "shard.tar")


def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.ones(2, 3), "b": torch.zeros(1)}


def checkpoint_target() -> Target:
    contents = ({"state_dict": tensors()}, {"ema": tensors(), "args": argparse.Namespace(a=1)}, [1, "a", None])
    return Target(
        [saved(lambda file, content=content: torch.save(content, file)) for content in contents],
        read_checkpoint,
        "a.pt",
    )


def folder_target() -> Target:
    """`config.json` of a tokenizer whose hashes are those of its content, as a deceiver would write it."""
    from vavae.checkpoints import folder as files

    place = Path(tempfile.mkdtemp())
    model = AutoencoderKL(AutoencoderConfig(2, 32, (1,), 1, ()))
    Tokenizer(model, LatentStatistics(torch.zeros(2), torch.ones(2))).save_pretrained(place)
    plain = {
        key: value for key, value in json.loads((place / "config.json").read_text()).items() if key != files.HASHES
    }

    def read(path: Path) -> None:
        text = path.read_bytes()
        try:
            config = json.loads(text)
            text = json.dumps(files.signed(place, config)).encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass  # not JSON, or of another kind: the reader gets it as it is
        (place / "config.json").write_bytes(text)
        Tokenizer.from_pretrained(place)

    return Target([json.dumps(plain).encode()], read)


def recipe_target() -> Target:
    seeds = [package_recipe(name).read_bytes() for name in ("small/transformer", "small/ditdh")]
    return Target(seeds, lambda path: load_recipe(train_dit.Config, path), "recipe.yaml")


TARGETS: dict[str, Callable[[], Target]] = {
    "images": image_target,
    "shards": shard_target,
    "checkpoints": checkpoint_target,
    "safetensors": lambda: Target([save(tensors())], read_safetensors, "a.safetensors"),
    "folders": folder_target,
    "statistics": lambda: Target(
        [
            saved(lambda file: torch.save({"mean": torch.zeros(1, 2, 1, 1), "std": torch.ones(1, 2, 1, 1)}, file)),
            saved(lambda file: torch.save({"mean": torch.zeros(2, 2, 2), "var": torch.ones(2, 2, 2)}, file)),
        ],
        read_statistics,
        "latents_stats.pt",
    ),
    "recipes": recipe_target,
}


def count(target: str, runs: int, crashes: int = 0) -> None:
    """Add runs and crashes to today's results."""
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-fuzz.json"
    record = json.loads(path.read_text()) if path.exists() else {"date": path.name[:10], "results": []}
    rows = {row["target"]: row for row in record["results"]}
    row = rows.setdefault(target, {"target": target, "executions": 0, "crashes": 0})
    row["executions"] += runs
    row["crashes"] += crashes
    record["command"] = "python benchmarks/fuzz.py TARGET"
    record["results"] = list(rows.values())
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    options, libfuzzer = parser.parse_known_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target = TARGETS[options.target]()
    corpus = Path("runs/fuzz", options.target)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    path = Path(tempfile.mkdtemp()) / target.name
    runs = 0

    def one(data: bytes) -> None:
        nonlocal runs
        runs += 1
        if runs % 1000 == 0:
            count(options.target, 1000)
        path.write_bytes(data)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                target.read(path)
        except (UserError, RunError):
            pass
        except BaseException:
            count(options.target, runs % 1000, crashes=1)
            raise

    atheris.Setup([sys.argv[0], *libfuzzer, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
