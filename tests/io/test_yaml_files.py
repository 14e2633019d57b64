"""YAML becomes plain values, or an error of one line that names the place."""

import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vavae.errors import UserError
from vavae.io.yaml_files import dump_yaml, parse_yaml, read_yaml

NAMES = "abcdefghi"
LAUGHS = "a: &a [1, 2]\n" + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise(NAMES))
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 400))
REFUSED = {
    "billion laughs": (LAUGHS, "line 5: aliases repeat more than 10000 values"),
    "anchor inside itself": ("a: &a [*a]", "line 1: the alias \\*a has no anchor before it, or is inside it"),
    "merge of itself": ("x: 1\na: &a {<<: *a}", "line 2: the alias \\*a"),
    "alias without anchor": ("a: *b", "line 1: the alias \\*b"),
    "deep through aliases": (CHAIN, "line 50: nested more than 50 levels deep"),
    "deep lists": ("[" * 100_000, "line 1: nested more than 50"),
    "deep mappings": ("{a: " * 100_000, "line 1: nested more than 50"),
    "deep blocks": ("- " * 100_000, "line 1: nested more than 50"),
    "key twice": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' occurs twice"),
    "key twice, deep": ("a: [{b: {c: 1,\n c: 2}}]", "line 2: the key 'c' occurs twice"),
    "key twice, quoted": ("a: 1\n'a': 2", "line 2: the key 'a' occurs twice"),
    "list as a key": ("? [a]\n: 1", "line 1: a key must be plain text"),
    "5,000 digits": ("a:\n  " + "9" * 5000, "line 2: a number of 5000 characters; at most 100"),
    "5,000 hexadecimal digits": ("a: 0x" + "f" * 5000, "line 1: a number of 5002 characters"),
    "set": ("a: !!set {b}", "line 1: the tag !!set is not supported"),
    "binary": ("a: !!binary aGk=", "line 1: the tag !!binary"),
    "object": ("a: !!python/object/apply:os.system [x]", "line 1: the tag !!python/object/apply:os.system"),
    "two documents": ("a: 1\n---\nb: 2", "line 2: a second document"),
    "tab": ("a:\n\tb: 1", "not YAML: line 2: a tab, @, % or ` is not allowed here"),
    "open quote": ("a: 'b", "not YAML: line 1"),
    "control character": ("a: \x00", "not YAML: control characters"),
    "not UTF-8": (b"a: \xe9", "not YAML: .*must be text in UTF-8"),
    "half a character": ("a: \udcff", "not YAML: .*must be text in UTF-8"),
    "merge of a number": ("a: {<<: 5}", "line 1: << must name a mapping"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unsafe_yaml_is_refused(kind: str) -> None:
    text, message = REFUSED[kind]
    begun = time.monotonic()
    with pytest.raises(yaml.YAMLError, match=f"^{message}") as refused:
        parse_yaml(text)
    assert time.monotonic() - begun < 5
    assert len(str(refused.value).splitlines()) == 1


def test_values_are_plain() -> None:
    read = parse_yaml(
        "{a: 1e-4, b: 2024-01-01, c: 010, d: 16:9, e: NO, f: off, g: 1_000, h: 0x10, i: ~, j: 'NO', k: .5}"
    )
    assert read == {
        **{"a": 1e-4, "b": "2024-01-01", "c": 10, "d": "16:9", "e": False, "f": False, "g": 1000, "h": 16, "i": None},
        **{"j": "NO", "k": 0.5},
    }
    assert parse_yaml("[1e999, -.inf]") == [math.inf, -math.inf] and math.isnan(parse_yaml(".nan"))
    assert parse_yaml("") is None and parse_yaml("# nothing") is None


def test_keys_are_text_as_written() -> None:
    assert parse_yaml("{1: a, yes: b, ~: c, 2024-01-01: d}") == {"1": "a", "yes": "b", "~": "c", "2024-01-01": "d"}


def test_anchors_and_merges_are_expanded() -> None:
    read = parse_yaml("base: &b {x: 1, y: [2]}\nc: {<<: *b, x: 3}\nd: {<<: [{x: 9}, *b]}\ne: [*b, *b]")
    base = {"x": 1, "y": [2]}
    assert read == {"base": base, "c": {"x": 3, "y": [2]}, "d": {"x": 9, "y": [2]}, "e": [base, base]}
    assert read["e"][0] is not read["e"][1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_in_any_unicode_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("a: Gemälde".encode(encoding))
    assert read_yaml(tmp_path / "a.yaml") == {"a": "Gemälde"}


def test_files_without_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for content, message in [
        ("", "must have keys with values, got nothing"),
        ("- a\n", r"must have keys with values, got \['a'\]"),
        ("a: 1\na: 2\n", "line 2: the key 'a' occurs twice"),
        ("a: " + "x" * 3_000_000, "must be at most 2 MB"),
    ]:
        path.write_text(content)
        with pytest.raises(UserError, match=f"^{path}: {message}"):
            read_yaml(path)
    for other in (tmp_path, tmp_path / "none.yaml", Path("x" * 300), Path("a\0b")):
        with pytest.raises(UserError, match=r"cannot be read \("):
            read_yaml(other)
    with pytest.raises(UserError, match=r"^/dev/zero: must be at most"):
        read_yaml(Path("/dev/zero"))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z0-9 .~-]{1,4}", fullmatch=True), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(values=PLAIN | st.from_regex(r"[-+0-9.eExo_:~a-f]{1,8}", fullmatch=True))
def test_written_yaml_is_read_back(values: Any) -> None:
    assert parse_yaml(dump_yaml(values)) == values


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab&*<:-,[]{}!?|>'\"#%@~\n\t 01.e\r\u2028\ufeff", max_size=40) | st.binary(max_size=20))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    try:
        parse_yaml(text)
    except yaml.YAMLError as error:
        assert len(str(error).splitlines()) == 1
