"""`vavae models` lists the registry in 80 columns and shows one model; docs/checkpoints.md has the same table."""

import subprocess
import sys
from pathlib import Path

import pytest

from vavae.checkpoints.registry import MODELS, KnownModel, guidance_in_words
from vavae.cli import run

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
XL = "lightningdit-xl-imagenet256-800ep"


def row(model: KnownModel) -> str:
    """Return a model's row on the page."""
    parts = f"statistics: {model.statistics}"
    if model.kind == "generator":
        tokenizer = f"`{model.tokenizer}`" if model.tokenizer else "in the same folder"
        parts = f"tokenizer: {tokenizer}; {model.sampling['steps']} steps, {guidance_in_words(model.sampling)}"
    place = f"`{model.hub_id}`" if model.hub_id else "in the package"
    cells = [f"`{model.name}`", place, model.latents, f"{model.parameters / 1e6:.1f} M", model.license, parts]
    return f"| {' | '.join(cells)} |"


def test_list_has_every_model_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models"]) == 0
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 80
    for model in MODELS:
        (line,) = [line for line in listed.splitlines() if line.split(" ")[0] == model.name]
        assert line.split() == [
            model.name,
            model.latents,
            f"{model.parameters / 1e6:.1f}",
            "M",
            f"{model.parameters * 4 / 1e6:,.0f}",
            model.license,
        ]
        assert model.hub_id in listed
        assert model.kind == "generator" or f"{model.hub_id}; statistics {model.statistics}\n" in listed
    assert "in the package with its tokenizer; 50 steps, guidance 2.5 from time 0.1 to 1\n" in listed
    lines = [line.strip() for line in listed.splitlines()]
    (number,) = [i for i, line in enumerate(lines) if line.startswith(f"{XL} ")]
    assert lines[number + 1 : number + 4] == [
        f"hustvl/{XL}",
        "tokenizer vavae-imagenet256-f16d32-dinov2",
        "250 steps, guidance 6.7 on 3 channels from time 0.125 to 1",
    ]


def test_one_model_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", XL]) == 0
    shown = capsys.readouterr().out
    for line in (
        "  statistics  latents_stats.pt",
        "  sampling    euler, 250 steps, shift 0.3",
        "  published   FID 1.35; 2.17 without guidance",
        f'  Python      vavae.Generator.from_pretrained("{XL}")',
        f"  command     vavae sample {XL}",
    ):
        assert line in shown.splitlines()
    assert run(["models", "ldm-imagenet256-f16d32-50ep"]) == 0
    shown = capsys.readouterr().out
    assert "  file        ldm-imagenet256-f16d32-50ep.ckpt\n" in shown and "guidance" not in shown
    assert "  statistics  not published; 'vavae encode' measures them\n" in shown


def test_page_has_the_table_of_the_registry() -> None:
    lines = PAGE.read_text().splitlines()
    start = lines.index("| name | on the hub | latents | parameters | license | parts |")
    assert lines[start + 2 : start + 2 + len(MODELS)] == [row(model) for model in MODELS]


def test_table_is_read_without_torch() -> None:
    code = "import sys, vavae.commands.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
