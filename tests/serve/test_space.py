"""The template of a Space serves the page under the name that the hub gives it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.mark.slow
def test_space(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "SPACE_HOST": "owner-name.hf.space",
        "VAVAE_COMPARE": "demo",
        "TMPDIR": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, SPACE / "app.py"], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    try:
        assert process.stdout.readline().startswith("demo: http://")  # type: ignore[union-attr]
        for host, status in (("owner-name.hf.space", 200), ("evil.example", 421)):
            assert httpx.get(f"http://127.0.0.1:{port}/config", headers={"Host": host}).status_code == status
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_files_of_the_space() -> None:
    header = (SPACE / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in header and f"app_file: {(SPACE / 'app.py').name}" in header
    assert (SPACE / "requirements.txt").read_text().startswith("vavae[")
