"""Latents of EDM2 and REPA."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vavae.cli import run
from vavae.data import LatentDataset


def write_moments(folder: Path, count: int = 6, labels: bool = True) -> np.ndarray:
    """Write moments of `count` images in folders of two, and return them, (count, 2C, h, w)."""
    moments = np.abs(np.random.default_rng(0).normal(size=(count, 8, 4, 4))).astype(np.float32)
    names = [f"{n // 2:05d}/img-mean-std-{n:08d}.npy" for n in range(count)]
    for name, moment in zip(names, moments, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, moment)
    entries = [[name, n % 3] for n, name in enumerate(names)]
    (folder / "dataset.json").write_text(json.dumps({"labels": entries[::-1] if labels else None}))
    return moments


def test_edm2_latents_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moments = torch.from_numpy(write_moments(tmp_path / "in"))
    assert run(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "6 latents 4x4x4, one sample of each mean and deviation (seed 0); labels of dataset.json" in printed
    dataset = LatentDataset(tmp_path / "out")
    latents, labels = dataset.get(torch.arange(6), normalize=False)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2] and dataset.num_classes == 3 and not dataset.has_flips
    noise = (latents - moments[:, :4]) / moments[:, 4:]
    assert noise.abs().max() < 6.7 and abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.2
    assert torch.allclose(dataset.statistics.mean, latents.mean((0, 2, 3)), atol=1e-5)
    assert run(["convert", str(tmp_path / "in"), str(tmp_path / "again")]) == 0
    assert torch.equal(LatentDataset(tmp_path / "again").get(torch.arange(6), normalize=False)[0], latents)


def test_edm2_latents_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_moments(tmp_path / "in", labels=False)
    assert run(["convert", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "no labels in dataset.json: one class" in capsys.readouterr().out
    assert LatentDataset(tmp_path / "out").num_classes == 1


def test_wrong_edm2_latents_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    write_moments(folder)
    last = folder / "00002" / "img-mean-std-00000005.npy"
    whole = np.load(last)
    damages: list[tuple[np.ndarray, str]] = [
        (whole[:, :2], "its shape is (8, 2, 4), not (8, 4, 4)"),
        (whole[:7], "must hold means and deviations, fractions of shape (2C, h, w), got float32 of shape (7, 4, 4)"),
        (-whole, "negative deviations"),
        (whole * np.nan, "not finite"),
        (np.array([{}], dtype=object), "cannot be read: Object arrays"),
    ]
    for content, message in damages:
        np.save(last, content, allow_pickle=True)
        assert run(["convert", str(folder), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip()
        assert str(last) in error and message in error and "\n" not in error
    np.save(last, whole)
    labels = dict(json.loads((folder / "dataset.json").read_text())["labels"])
    name = "00002/img-mean-std-00000005.npy"
    for wrong, message in (
        (2**40, "must be a whole number from 0 to 999,999, got 1099511627776"),
        ("cat", "must be a whole number from 0 to 999,999, got 'cat'"),
        (None, "has no label for"),
    ):
        entries = [[key, wrong if key == name else label] for key, label in labels.items() if wrong or key != name]
        (folder / "dataset.json").write_text(json.dumps({"labels": entries}))
        assert run(["convert", str(folder), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip()
        assert f"{folder / 'dataset.json'}" in error and name in error and message in error and "\n" not in error


def test_training_on_edm2_latents_names_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_moments(tmp_path / "in")
    assert run(["train-dit", "--latents", str(tmp_path / "in"), "--output", str(tmp_path / "run")]) == 2
    assert "'vavae convert' writes them from .npy files of EDM2 and REPA" in capsys.readouterr().err
