"""`vavae bench`: one result per stage, and which files it replaces."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vavae.commands import bench
from vavae.errors import UserError
from vavae.transformer import LightningDiTConfig


@pytest.mark.slow
def test_every_stage_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = SimpleNamespace(from_size=lambda size, **shape: LightningDiTConfig(width=64, depth=2, heads=2, **shape))
    monkeypatch.setattr(bench, "LightningDiTConfig", narrow)  # S/2 has 33 million parameters
    bench.run(bench.Config(batch_size=2, repeats=1, device="cpu", precision="fp32", output=str(tmp_path / "b.json")))
    record = json.loads((tmp_path / "b.json").read_text())
    stages = {result["stage"].partition(",")[0]: result for result in record["results"]}
    assert set(stages) == {"tokenizer step", "encode", "transformer step", "sampling", "latent reading"}
    for name, result in stages.items():
        assert result["images_per_second"] > 0 and result["peak_memory_gb"] > 0
        assert (result["tflops"] > 0) == (name != "latent reading") == (0 < result["mfu"] < 2)


@pytest.mark.parametrize(
    "name, content", [("photo.png", b"\x89PNG"), ("a.json", b'{"a": 1}'), ("b.json", b"[]"), ("c.json", b"")]
)
def test_only_own_records_are_replaced(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "measure", lambda config: [])
    (tmp_path / name).write_bytes(content)
    config = bench.Config(device="cpu", output=str(tmp_path / name))
    with pytest.raises(UserError, match=name):
        bench.run(config)
    assert (tmp_path / name).read_bytes() == content
    with pytest.raises(UserError, match=r"output must end in \.json, got .*new\.txt"):
        bench.run(replace(config, output=str(tmp_path / "new.txt")))
    own = tmp_path / "new.json"
    for repeats in (1, 2):
        bench.run(replace(config, repeats=repeats, output=str(own)))
        assert json.loads(own.read_text())["config"]["repeats"] == repeats
