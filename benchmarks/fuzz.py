"""Feed mutated files to a reader, guided by the coverage of its code; every error must be one for users.

    pip install atheris
    python benchmarks/fuzz.py images -runs=1000000

Targets: `images`, `shards` (tar), `checkpoints` (.pt, .ckpt), `pickles` (the structure in a checkpoint), `safetensors`,
`folders` (`config.json` of a tokenizer), `statistics`, `recipes`. Other options go to libFuzzer (`-runs`,
`-max_total_time`). The first inputs are small good files, which stay (coverage does not see the readers of Pillow and
safetensors, which are not Python), and those in `tests/corpus`; what reaches new code is kept in `runs/fuzz/TARGET`, so
that a second call continues. An error that is not for users stops the run and leaves `crash-…`: add it to
`tests/corpus/TARGET.zip`, which a test reads. `benchmarks/results/<date>-fuzz.json` counts the runs of all targets on
that day, and the inputs that were read without an error. `TMPDIR=/dev/shm` doubles the speed.
"""

import argparse
import io
import json
import pickle
import sys
import tempfile
import time
import warnings
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vavae"]):
    import torch

    from fuzz_targets import CORPUS, TARGETS
    from vavae.errors import RunError, UserError

RESULTS = Path(__file__).parent / "results"
for function in pickle._Unpickler.dispatch.values():  # type: ignore[attr-defined]  # reads checkpoints
    atheris.instrument_func(function)


def count(target: str, runs: int, read: int, crashes: int = 0) -> None:
    """Add runs, inputs that were read, and crashes to today's results."""
    path = RESULTS / f"{time.strftime('%Y-%m-%d')}-fuzz.json"
    record = json.loads(path.read_text()) if path.exists() else {"date": path.name[:10], "results": []}
    rows = {row["target"]: row for row in record["results"]}
    row = rows.setdefault(target, {"target": target, "executions": 0, "read": 0, "crashes": 0})
    row["executions"] += runs
    row["read"] += read
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
    with zipfile.ZipFile(CORPUS / f"{options.target}.zip") as stored:
        stored.extractall(corpus)
    path = Path(tempfile.mkdtemp()) / target.name
    runs = read = 0

    def one(data: bytes) -> None:
        nonlocal runs, read
        runs += 1
        if runs % 1000 == 0:
            count(options.target, 1000, read)
            read = 0
        path.write_bytes(data)
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                target.read(path)
            read += 1
        except (UserError, RunError):
            pass
        except BaseException:
            count(options.target, runs % 1000, read, crashes=1)
            raise

    atheris.Setup([sys.argv[0], "-keep_seed=1", *libfuzzer, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
