"""Runs that are killed in their midst end bit-identical to undisturbed ones. benchmarks/kill_test.py is longer."""

import signal
from pathlib import Path

import pytest
import torch
import workers
from children import CONTEXT
from tiny_runs import write_latents

from vavae.training.checkpoint import CheckpointFolder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def run(stage: str, folder: Path, data: Path, kill: tuple[int, int] = (0, -1)) -> int:
    """Return the exit code of a child that signals itself after a number of images: negative for a fatal signal."""
    child = CONTEXT.Process(target=workers.until_killed, args=(stage, str(folder), str(data), *kill))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "signals"),
    [
        ("transformer", {3: signal.SIGKILL, 4: signal.SIGTERM, 5: signal.SIGINT, 7: signal.SIGKILL}),
        ("joint", {5: signal.SIGTERM, 7: signal.SIGKILL}),
    ],
)
def test_repeatedly_killed_run_ends_bit_identical(
    stage: str, signals: dict[int, signal.Signals], data: Path, tmp_path: Path
) -> None:
    """By signals after some steps. A checkpoint begins after steps 3 and 6, and the second one waits for the first.

    A tokenizer is killed in tests/stages/test_staged_recipe.py.
    """
    assert run(stage, tmp_path / "whole", data) == 0
    for step, number in signals.items():
        status = run(stage, tmp_path / "killed", data, (int(number), 8 * step))
        assert status == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    assert run(stage, tmp_path / "killed", data) == 0
    states = [CheckpointFolder(tmp_path / name / "checkpoints").load_newest() for name in ("whole", "killed")]
    assert states[0] is not None and states[1] is not None
    one, other = states[0][0], states[1][0]
    kinds = {name.partition("/")[0] for name in one}
    assert kinds == {"model", "average", "optimizer"} and one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 4
    files = {p.name for p in (tmp_path / "whole/generator").iterdir() if p.suffix == ".safetensors"}
    assert files
    for name in files:
        written = [(tmp_path / folder / "generator" / name).read_bytes() for folder in ("whole", "killed")]
        assert written[0] == written[1], name
