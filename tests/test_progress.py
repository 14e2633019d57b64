"""Progress: plain lines without a terminal, a bar in one, and a bar in a notebook."""

import errno
import io
import os
import pty
import re
import sys
from types import ModuleType

import pytest

from vavae.progress import track


def test_plain_lines_have_count_rate_and_numbers() -> None:
    stream = io.StringIO()
    with track("encoding", 10, "images", start=2, stream=stream, every_seconds=0.0) as bar:
        for _ in range(4):
            bar.advance(2, loss=0.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert all(
        re.fullmatch(r"encoding: \d+/10 images \(\d+\.\d/s(, \d+\.\d s left)?\)  loss 0\.5", line) for line in lines
    )
    assert [int(re.search(r"(\d+)/10", line)[1]) for line in lines] == [4, 6, 8, 10]  # type: ignore[index]
    assert "left" in lines[0] and "left" not in lines[-1]


def test_quick_work_prints_one_line() -> None:
    stream = io.StringIO()
    with track("w", 1000, stream=stream) as bar:
        for _ in range(1000):
            bar.advance()
    assert len(stream.getvalue().splitlines()) == 1


def test_an_error_inside_leaves_the_last_count() -> None:
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), track("w", 5, stream=stream) as bar:
        bar.advance(3)
        raise ZeroDivisionError
    assert stream.getvalue().startswith("w: 3/5")


def _everything(terminal: int) -> str:
    """Read all that was written to a pseudo-terminal whose other end is closed; one read may return a part."""
    parts = []
    with os.fdopen(terminal, "rb", buffering=0) as stream:
        try:
            while part := stream.read(65536):
                parts.append(part)
        except OSError as error:  # on Linux, if the other end is closed
            if error.errno != errno.EIO:
                raise
    return b"".join(parts).decode()


def test_a_terminal_gets_a_bar() -> None:
    terminal_side, own_side = pty.openpty()
    with os.fdopen(own_side, "w") as terminal, track("sampling", 3, "images", stream=terminal) as bar:
        bar.advance(3)
    shown = _everything(terminal_side)
    assert "sampling" in shown and "100%" in shown and "\x1b[" in shown


def test_a_notebook_gets_one_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []

    class Handle:
        update = shown.append

    def display(html: str, display_id: bool) -> type[Handle]:
        assert display_id and not shown
        shown.append(html)
        return Handle

    module = ModuleType("IPython.display")
    module.HTML, module.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("time.monotonic", iter(range(100)).__next__)
    with track("a < b", 4, "images") as bar:
        bar.advance(2, loss=0.5)
        bar.advance(2, loss=0.25)
    assert len(shown) == 2
    assert shown[0].startswith('<progress value="2" max="4"></progress> a &lt; b: 2/4 images (')
    assert "left)  loss 0.5" in shown[0] and shown[1].endswith("loss 0.25")
    assert capsys.readouterr() == ("", "")
