"""The template of a Space serves the page under the name that the hub gives it."""

import runpy
from pathlib import Path
from typing import Any

import pytest

from vavae.commands import serve

SPACE = Path(__file__).parents[2] / "examples" / "space"


def test_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_command_serves_until_a_signal` starts a server with such a name."""
    for name, value in {
        "GRADIO_SERVER_PORT": "7861",
        "SPACE_HOST": "owner-name.hf.space",
        "VAVAE_COMPARE": "demo",
    }.items():
        monkeypatch.setenv(name, value)
    served: list[Any] = []
    monkeypatch.setattr(serve, "run", served.append)
    runpy.run_path(str(SPACE / "app.py"))
    expected = {"compare": "demo", "host": "0.0.0.0", "port": 7861, "allowed_hosts": ("owner-name.hf.space",)}
    assert served == [serve.Config("demo", **expected)]  # type: ignore[arg-type]


def test_files_of_the_space() -> None:
    header = (SPACE / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in header and f"app_file: {(SPACE / 'app.py').name}" in header
    assert (SPACE / "requirements.txt").read_text().startswith("vavae[")
