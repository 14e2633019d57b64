"""Averages of a finished run, from its snapshots and its checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from regression_task import CONFIG, Unnormed

from vavae.errors import UserError
from vavae.training.ema import AveragesConfig
from vavae.training.posthoc_ema import combination, decayed, reconstruct
from vavae.training.trainer import Trainer


@pytest.mark.slow
def test_snapshots_give_an_average_of_any_length(tmp_path: Path) -> None:
    """From snapshots of widths 0.05 and 0.10, reconstruction finds the average of width 0.15 that training tracked."""
    averages = AveragesConfig(decays=(0.5,), widths=(0.05, 0.1, 0.15), snapshot_images=64)
    trainer = Trainer(Unnormed(), replace(CONFIG, images=1600, averages=averages), tmp_path)
    trainer.run("averages")
    assert set(trainer._state.averages) == {"0.9", "0.5", "width 0.05", "width 0.1", "width 0.15"}
    wanted = trainer.averaged_state("head", "width 0.15")["weight"]
    for path in (tmp_path / "averages").glob("*width0.15*"):
        path.unlink()
    found = reconstruct(tmp_path / "averages", "head", 0.15)["weight"]
    live = trainer.task.modules["head"].weight.detach()  # type: ignore[union-attr]
    assert (found - wanted).norm() < 0.02 * (live - wanted).norm()
    assert found.dtype == torch.float32
    with pytest.raises(UserError, match="no snapshots"):
        reconstruct(tmp_path / "averages", "head", 0.15, images=8)


def test_stored_length_reconstructs_itself() -> None:
    factors = combination([100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1], 200, 0.1)
    np.testing.assert_allclose(factors, [0, 0, 0, 1], atol=1e-6)


def test_averages_are_read_from_a_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(Unnormed(), replace(CONFIG, images=80, averages=AveragesConfig(decays=(0.5,))), tmp_path)
    trainer.run("averages")
    for decay in (0.9, 0.5):
        wanted, found = trainer.averaged_state("head", str(decay)), decayed(tmp_path, "head", decay)
        assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert not torch.equal(decayed(tmp_path, "head", 0.9)["weight"], decayed(tmp_path, "head", 0.5)["weight"])
    with pytest.raises(UserError, match=r"no average 0.99/head; there is 0.5/body, 0.5/head, 0.9/body, 0.9/head"):
        decayed(tmp_path, "head", 0.99)
    with pytest.raises(UserError, match="no good checkpoint"):
        decayed(tmp_path / "nowhere", "head", 0.9)
