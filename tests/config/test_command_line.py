"""The command line in reports can be typed again."""

import sys

import pytest

from vavae.config.command_line import command_line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("frontier a.yaml --page_only true --output x", "vavae frontier a.yaml --output x"),
        ("frontier a.yaml --output x --page_only", "vavae frontier a.yaml --output x"),
        ("frontier a.yaml --page_only --output x", "vavae frontier a.yaml --output x"),
        ("frontier a.yaml --page_only=true --output=x", "vavae frontier a.yaml --output=x"),
        ("frontier a.yaml --workers 2", "vavae frontier a.yaml --workers 2"),
    ],
)
def test_a_switch_can_be_left_out(given: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vavae", *given.split()])
    assert command_line(without="--page_only") == expected


def test_lists_are_quoted_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/vavae/__main__.py", "frontier", "--kinds", "[a, b]"])
    assert command_line() == "vavae frontier --kinds '[a, b]'"
