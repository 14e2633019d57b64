"""Features that all cells share are computed once, by one of several processes."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from frontier_grid import ONE, ONLY, grid_config, here_from, real_grid
from stub_jobs import skip_page
from torch import Tensor

from vavae.frontier import cells as frontier_cells
from vavae.frontier.cells import CellContext
from vavae.frontier.results import Results
from vavae.metrics import FeatureNetwork

PLAIN = [*ONLY, "--experiments.table2.teachers=[none]", "--measure.teacher=null"]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the numbers of images that the feature network gets, call by call; calls draw no page."""
    shown: list[int] = []

    def features(pixels: Tensor) -> Tensor:
        shown.append(len(pixels))
        return pixels.float().flatten(1)[:, :4]

    network = FeatureNetwork("four pixels", "1", torch.device("cpu"), features)
    monkeypatch.setattr(frontier_cells, "load_feature_network", lambda *_: network)
    skip_page(monkeypatch.setattr)
    return shown


def context(folder: Path) -> CellContext:
    config = grid_config(folder, *PLAIN)
    grid = real_grid(config)
    return CellContext(config, grid, Results(folder / "results"))


@pytest.mark.slow
def test_original_features_are_computed_once(tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokenizers: 10 originals, and 10 reconstructions of each."""
    config = grid_config(tmp_path, *PLAIN, "--kinds", "[tokenizer]")
    assert here_from(config, monkeypatch)[0] == 0
    assert len(list((tmp_path / "results").glob("tokenizer-*.json"))) == 2
    assert sum(seen) == 10 + 2 * 10


def test_second_process_waits_for_shared_features(
    tmp_path: Path, seen: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = context(tmp_path), context(tmp_path)
    _ = first.reference
    assert sum(seen) == 20
    (lock,) = first.store.folder.glob(".*training*.lock")
    held = FileLock(lock, thread_local=False)
    held.acquire()
    waiting = threading.Thread(target=lambda: second.reference)
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    held.release()
    waiting.join(30)
    assert not waiting.is_alive()
    assert sum(seen) == 20
    assert "waiting for features of training images" in capsys.readouterr().out


def test_waiting_processes_read_at_the_same_time(tmp_path: Path, seen: list[int]) -> None:
    """A process that waited for the lock does not hold it while it reads."""
    one = context(tmp_path)
    lock = FileLock(one.store.folder / ".something.lock", thread_local=False)
    one.store.folder.mkdir(parents=True)
    lock.acquire()
    entered = []
    other = context(tmp_path)

    def enter() -> None:
        with other.sharing("something"):
            entered.append(FileLock(lock.lock_file).acquire(timeout=1) is not None)

    waiting = threading.Thread(target=enter)
    waiting.start()
    time.sleep(0.2)
    lock.release()
    waiting.join(120)
    assert entered == [True]


@pytest.mark.slow
def test_generators_are_compiled_block_by_block(
    tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are compiled in training and for the measured samples; compilation does not change the cell's name."""
    compiled: list[str] = []

    def compile_block(self: torch.nn.Module, *, fullgraph: bool) -> None:
        assert fullgraph
        compiled.append(type(self).__name__)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_block)
    config = grid_config(tmp_path, *ONE, "--kinds=[tokenizer,generator]")
    blocks = replace(config, generator=replace(config.generator, compile="blocks"))
    assert here_from(blocks, monkeypatch)[0] == 0
    assert compiled == ["Block", "Block"]  # one block: in training, and for the samples
    (result,) = (tmp_path / "results").glob("generator-*.json")
    result.unlink()
    compiled.clear()
    assert here_from(config, monkeypatch)[0] == 0  # the same cell
    assert result.exists() and not compiled
