"""Run the Python of docs/library.md and of the notebook from top to bottom, and check the output."""

import contextlib
import importlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vavae
from vavae.data import DemoImages, LatentDataset, load_images, load_pixels, to_uint8
from vavae.metrics import frechet_distance, linear_probe

ROOT = Path(__file__).parents[2]


def run_python(page: str, names: dict[str, Any]) -> str:
    """Run the page's blocks in order with shared names, but small images in the feature network; return the output."""
    printed = io.StringIO()
    text = (ROOT / page).read_text().replace("teacher:dinov2-small-focus@112", "teacher:dinov2-small-focus@28")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
    return printed.getvalue()


@pytest.mark.slow
def test_library_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    printed = run_python("docs/library.md", names)

    terms = [float(value) for value in re.findall(r"'alignment': ([\d.]+)", printed)]
    assert len(terms) == 4 and all(0 < value < 2 for value in terms)
    assert "(16, 8, 8) 10 torch.Size([16])" in printed
    dataset = LatentDataset(tmp_path / "my-latents")
    dataset.verify()
    stored, labels = dataset.get(torch.arange(64), normalize=False)
    images = DemoImages("train")
    assert labels.tolist() == [images.label(i) for i in range(64)]
    assert torch.allclose(stored.std(dim=(0, 2, 3)), dataset.statistics.std, rtol=1e-4)
    assert names["pictures"].shape == (4, 3, 32, 32) and names["drawn"].shape == (4, 16, 8, 8)
    numbers = re.findall(r"(?:distance|probe|density) ([\d.]+)", printed)
    distance, accuracy, spread = map(float, numbers)
    of_images = names["network"](load_pixels(images, range(64), 32)).double().numpy()
    of_pictures = names["network"](to_uint8(names["pictures"])).double().numpy()
    moments = [moment for rows in (of_images, of_pictures) for moment in (rows.mean(0), np.cov(rows.T))]
    assert distance == pytest.approx(frechet_distance(*moments), rel=1e-3, abs=0.5)
    parts = [(load_images(source, range(200), 32), source) for source in (images, DemoImages("test"))]
    with torch.no_grad():
        sets = [
            (names["encoder"](batch), torch.tensor([source.label(i) for i in range(200)])) for batch, source in parts
        ]
    assert accuracy == pytest.approx(linear_probe(*sets[0], *sets[1]), abs=0.005)
    assert 0 < spread < 1


def test_functions_of_library_page_take_their_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = re.findall(r"^\| `(\w+)` \| `(\(.*?\))` \|", (ROOT / "docs/library.md").read_text(), re.MULTILINE)
    assert [name for name, _ in calls] == ["train_tokenizer", "encode", "train_dit", "sample", "evaluate"]
    for name, arguments in calls:
        monkeypatch.setattr(f"vavae.stages.{name}.run", type)
        wanted = importlib.import_module(f"vavae.stages.{name}").Config
        assert eval(f"function{arguments}", {"function": getattr(vavae, name)}) is wanted


# What makes the tour shorter.
SHORTER = {
    '"images": 384': '"images": 160',
    '"images": 256, "batch_size": 64': '"images": 32, "batch_size": 16',
    '"limit": 96': '"limit": 48',
    '"objective.perceptual.weight": 0,': '"objective.perceptual.weight": 0, "teacher.input_size": 28,',
    "teacher_size=112": "teacher_size=28",
    'output_type="pt")': 'output_type="pt", steps=8)',
}


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "docs/notebooks/tour.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    sources = {number: "".join(cell["source"]) for number, cell in enumerate(cells) if cell["cell_type"] == "code"}
    for long, short in SHORTER.items():
        assert any(long in source for source in sources.values()), long
        sources = {number: source.replace(long, short) for number, source in sources.items()}
    for number, source in sources.items():
        exec(compile(source, f"cell {number}", "exec"), names)
    values = {name: [r.value for r in names["records"] if r.name == name] for name in ("PSNR", "LPIPS")}
    assert values["PSNR"][1] > values["PSNR"][0] + 3 > 13  # the package's tokenizer, and one trained for seconds
    assert values["LPIPS"][1] < 0.1
    assert names["logged"][-1]["alignment"] < 0.95 * names["logged"][0]["alignment"]  # without training 0.997
    assert names["samples"].shape == (8, 3, 32, 32) and names["samples"].std() > 0.3
