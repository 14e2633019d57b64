"""Optimizers: skipped steps, Muon, exact resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from regression_task import CONFIG, Unnormed
from torch import Tensor, nn

from vavae.training.checkpoint import CheckpointFolder
from vavae.training.optimizer import Optimizer, OptimizerConfig, linear_matrices
from vavae.training.trainer import Trainer


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_bad_step_changes_no_parameter_and_no_slot(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Embedding(3, 6))
    optimizer = Optimizer(OptimizerConfig(kind, 1e-2, weight_decay=0.1), list(net.parameters()), linear_matrices([net]))

    def step(bad: bool) -> None:
        for p in net.parameters():
            p.grad = torch.full_like(p, torch.nan if bad else 0.3)
        optimizer.step(1.0, torch.tensor(bad))

    def values() -> list[Tensor]:
        return [v.clone() for v in (*net.parameters(), *(slot for _, _, slot in optimizer.slots()))]

    before = values()
    step(True)  # before any slot exists
    assert all(torch.equal(a, b) for a, b in zip(before, values(), strict=False))
    step(False)
    moved = values()
    assert not torch.equal(moved[0], before[0])
    step(True)
    assert all(torch.equal(a, b) for a, b in zip(moved, values(), strict=True))


def test_muon_takes_matrices_of_linear_layers_only() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Embedding(3, 6), nn.Conv2d(1, 2, 3))
    optimizer = Optimizer(OptimizerConfig("muon", 1e-2), list(net.parameters()), linear_matrices([net]))
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    before = net[0].weight.detach().clone()
    optimizer.step(1.0, torch.tensor(False))
    owners = {
        slot: {tuple(p.shape) for p, name, _ in optimizer.slots() if name == slot}
        for slot in ("exp_avg", "momentum_buffer")
    }
    assert owners["momentum_buffer"] == {(6, 4)} and (3, 6) in owners["exp_avg"]
    # An orthogonal update, scaled to AdamW's size: all singular values are near each other.
    singular = torch.linalg.svdvals(net[0].weight.detach() - before)
    assert singular.max() / singular.min() < 2.5


@pytest.mark.slow
def test_muon_resumes_exactly(tmp_path: Path) -> None:
    config = replace(CONFIG, images=320)
    Trainer(Unnormed("muon"), config, tmp_path / "whole").run("whole")
    task = Unnormed("muon")
    task.stop_at = 136
    with pytest.raises(KeyboardInterrupt):
        Trainer(task, config, tmp_path / "parts").run("part")
    Trainer(Unnormed("muon"), config, tmp_path / "parts").run("rest")
    one, _ = CheckpointFolder(tmp_path / "whole/checkpoints").load_newest() or ({}, {})
    other, _ = CheckpointFolder(tmp_path / "parts/checkpoints").load_newest() or ({}, {})
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
