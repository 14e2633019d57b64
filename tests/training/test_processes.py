"""Two processes give the losses of one, and each number of processes resumes the other's checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import workers
from tiny_runs import write_latents

from vavae.data import LatentDataset
from vavae.training.checkpoint import CheckpointFolder
from vavae.training.run_log import read_metrics

Launch = Callable[..., None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path) -> Path:
    """The run folder of a transformer trained by one process."""
    workers.transformer(str(data / "alone"), str(data), "64")
    return data / "alone"


def assert_same_run(one: Path, two: Path, rtol: float = 1e-3, images: int = 64) -> None:
    lines, others = read_metrics(one), read_metrics(two)
    assert len(lines) == len(others) == images // 16
    for line, other in zip(lines, others, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert other[name] == pytest.approx(value, rel=rtol, abs=1e-4), name


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors, _ = CheckpointFolder(folder / "checkpoints").load_newest() or ({}, {})
    assert tensors
    return {name: value for name, value in tensors.items() if name.startswith("average/")}


def test_collectives_batch_norm_and_errors(launch: Launch) -> None:
    launch(2, "collectives")


def test_launch_reports_every_process(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(launch.__globals__, "GRACE", 1.0)
    with pytest.raises(
        AssertionError, match=r"(?s)process 0 ended with 1:.*the port is taken.*process 1 ended with -9"
    ):
        launch(2, "one_fails")


def test_out_of_memory_in_several_processes(launch: Launch, tmp_path: Path) -> None:
    launch(2, "out_of_memory", tmp_path)
    assert json.loads((tmp_path / "micro_batch.json").read_text()) == {"micro_batch": 2}


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_transformer_on_two_processes(parallel: str, launch: Launch, data: Path, alone: Path, tmp_path: Path) -> None:
    launch(2, "transformer", tmp_path / "two", data, 64, parallel)
    assert_same_run(alone, tmp_path / "two")
    assert (tmp_path / "two/generator/config.json").exists()
    expected = weights(alone)
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_processes_resumes(
    first: int, launch: Launch, data: Path, alone: Path, tmp_path: Path
) -> None:
    launch(first, "stopped_transformer", tmp_path, data, "shard" if first == 2 else "replicate")
    for checkpoint in (tmp_path / "checkpoints").glob("images-*"):
        assert len(list(checkpoint.glob("__*.distcp"))) == first
    launch(3 - first, "transformer", tmp_path, data, 64, "shard" if first == 1 else "replicate")
    assert_same_run(alone, tmp_path)


@pytest.mark.slow
def test_tokenizer_on_two_processes(launch: Launch, tmp_path: Path) -> None:
    """With the discriminator's BatchNorm and both adaptive weights over the whole batch."""
    launch(1, "tokenizer", tmp_path / "one", 32)
    launch(2, "tokenizer", tmp_path / "two", 32)
    assert_same_run(tmp_path / "one", tmp_path / "two", rtol=5e-3, images=32)


@pytest.mark.slow
def test_joint_training_on_two_processes(launch: Launch, tmp_path: Path) -> None:
    """With the batch normalization of the latents over the whole batch."""
    launch(1, "joint", tmp_path / "one", 32, 32)
    launch(2, "joint", tmp_path / "two", 32, 32)
    assert_same_run(tmp_path / "one", tmp_path / "two", rtol=5e-3, images=32)


def test_encoding_on_two_processes(launch: Launch, data: Path, tmp_path: Path) -> None:
    """The same latents and statistics as from one process, and each process has written its shards."""
    launch(1, "encode_images", tmp_path / "one", data / "tokenizer")
    launch(2, "encode_images", tmp_path / "two", data / "tokenizer")
    one, two = LatentDataset(tmp_path / "one"), LatentDataset(tmp_path / "two")
    assert {p.name[:14] for p in (tmp_path / "two").glob("*.safetensors")} >= {"latents_rank00", "latents_rank01"}
    everything = torch.arange(len(one))
    assert len(one) == 40 and torch.equal(one.get(everything)[0], two.get(everything)[0])
    assert torch.equal(one.statistics.mean, two.statistics.mean)
