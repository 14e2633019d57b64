"""Missing extras are named before the work begins."""

import sys
import tomllib
from pathlib import Path

import pytest

from vavae.cli import run
from vavae.errors import UserError
from vavae.extras import EXTRAS, missing_module, require_extra

ROOT = Path(__file__).parents[1]


def test_every_extra_is_in_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert declared.keys() - {"all", "dev", "docs"} == EXTRAS.keys()
    (everything,) = declared["all"]
    assert set(everything.removeprefix("vavae[").rstrip("]").split(",")) == EXTRAS.keys()
    (demo,) = declared["demo"]
    parts = demo.removeprefix("vavae[").rstrip("]").split(",")
    assert EXTRAS["demo"].modules == tuple(module for part in parts for module in EXTRAS[part].modules)


def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    require_extra("report", "a page")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert missing_module("report") == "matplotlib"
    with pytest.raises(UserError, match=r"^a page needs matplotlib: pip install 'vavae\[report\]'$"):
        require_extra("report", "a page")


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("matplotlib", ["demo"], "vavae demo needs matplotlib: pip install 'vavae[demo]'"),
        ("sklearn", ["demo"], "vavae demo needs sklearn: pip install 'vavae[demo]'"),
        ("matplotlib", ["frontier"], "vavae frontier needs matplotlib: pip install 'vavae[report]'"),
        ("sklearn", ["frontier"], "the uniformity of latents needs sklearn: pip install 'vavae[metrics]'"),
        ("gradio", ["serve"], "vavae serve needs gradio: pip install 'vavae[serve]'"),
        ("sklearn", ["evaluate", "tokenizer", "demo"], "needs sklearn: pip install 'vavae[metrics]'"),
        (
            "matplotlib",
            ["evaluate", "generator", "demo", "--guidance_scales", "1,2", "--output", "x.json"],
            "needs matplotlib: pip install 'vavae[report]'",
        ),
        ("datasets", ["encode", "--data.images", "hf:x/y", "--tokenizer", "demo"], "pip install 'vavae[datasets]'"),
        (
            "aiohttp",
            ["encode", "--data.images", "webdataset:http://127.0.0.1:9/a.tar", "--tokenizer", "demo"],
            "http://127.0.0.1:9/a.tar needs aiohttp: pip install 'vavae[webdataset]'",
        ),
    ],
)
def test_commands_refuse_before_the_work(
    module: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, module, None)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not list(tmp_path.rglob("*.json"))
