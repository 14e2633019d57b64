"""Read and write YAML safely: plain values, or one line that names the problem and its place.

All code reads YAML here: recipes, options, configurations of other systems. The values are those of YAML 1.1 with these
changes: keys are always text, `1e-4` is a number, `2024-01-01` and `16:9` are text, and a number with a leading zero is
decimal. A key that occurs twice, a tag, a second document and an anchor inside itself are errors, and so is a file that
would take much more memory than a recipe needs.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vavae.errors import UserError

_MOST_BYTES = 2_000_000
_MOST_REPEATED = 10_000  # values that aliases may add
_DEEPEST = 50
_LONGEST_NUMBER = 100  # characters

_BOOLEANS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_MERGE = "<<"
_NO_TAG = (None, "!")
_TAB = "found character that cannot start any token"
_INTEGER = re.compile(r"[-+]?(0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+|[0-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


class _Dumper(yaml.SafeDumper):
    """Quote texts that `parse_yaml` would read as numbers, and escape line breaks of Unicode."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if any(character in data for character in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"(?:{_INTEGER.pattern}|{_FLOAT.pattern})$"), None)


def dump_yaml(values: Any, **style: Any) -> str:
    """Return plain values as YAML, keys in their order; `parse_yaml` reads the same values back.

    Args:
        values: Mappings, lists, texts, numbers, booleans and None.
        style: Options of `yaml.dump`, such as `width`.
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of keys with values.

    Raises:
        UserError: The file cannot be read, is not safe YAML, or has other content; the line names the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError for a path with a NUL in it
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(data) > _MOST_BYTES:
        raise UserError(f"{path}: must be at most {_MOST_BYTES // 10**6} MB of YAML; is it another kind of file?")
    try:
        values = parse_yaml(data)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else " ".join(str(values).split())[:60]
        raise UserError(f"{path}: must have keys with values, got {found}")
    return values


def parse_yaml(text: str | bytes) -> Any:
    """Return the plain value of one YAML document: dict, list, str, int, float, bool or None.

    Raises:
        yaml.YAMLError: It is not YAML or not safe; the message is one line with the number of the line.
    """
    try:
        return _Document(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))).value()
    except yaml.MarkedYAMLError as error:
        problem = str(error.problem).replace(_TAB, "a tab, @, % or ` is not allowed here; indent with spaces")
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise yaml.YAMLError(f"not YAML: {line}{problem}") from error
    except (yaml.reader.ReaderError, UnicodeEncodeError) as error:
        raise yaml.YAMLError(f"not YAML: {error.reason}; it must be text in UTF-8") from error


class _Document:
    """Build values from the events of a parser, in one pass."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, Any] = {}
        self._repeated = 0

    def value(self) -> Any:
        value, documents = None, 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if documents:
                    raise self._error(event, "a second document (---) begins; give one")
                value, documents = self._node(next(self._events), 0), 1
        return value

    def _error(self, event: Any, problem: str) -> yaml.YAMLError:
        return yaml.YAMLError(f"line {event.start_mark.line + 1}: {problem}")

    def _node(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            # An anchor is known from its end on, so that one inside itself is not.
            if event.anchor not in self._anchors:
                raise self._error(event, f"the alias *{event.anchor} has no anchor before it, or is inside it")
            return self._repeat(event, self._anchors[event.anchor], depth)
        if event.tag not in _NO_TAG:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._error(event, f"the tag {tag[:60]} is not supported; give a plain value")
        self._check_depth(event, depth)
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
                value.append(self._node(item, depth + 1))
        else:
            value = self._mapping(event, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _check_depth(self, event: Any, depth: int) -> None:
        if depth > _DEEPEST:
            raise self._error(event, f"nested more than {_DEEPEST} levels deep")

    def _repeat(self, alias: Any, value: Any, depth: int) -> Any:
        """Copy the value of an anchor."""
        self._check_depth(alias, depth)
        self._repeated += 1
        if self._repeated > _MOST_REPEATED:
            raise self._error(alias, f"aliases repeat more than {_MOST_REPEATED} values")
        if isinstance(value, dict):
            return {key: self._repeat(alias, item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self._repeat(alias, item, depth + 1) for item in value]
        return value

    def _mapping(self, start: Any, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(key := next(self._events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent) or key.tag not in _NO_TAG or key.anchor is not None:
                raise self._error(key, "a key must be plain text")
            if key.value in found:
                raise self._error(key, f"the key '{key.value[:60]}' occurs twice")
            found[key.value] = self._node(next(self._events), depth + 1)
        if _MERGE in found:
            found = self._merged(start, found.pop(_MERGE)) | found
        return found

    def _merged(self, start: Any, value: Any) -> dict[str, Any]:
        """Return the keys that `<<` merges in; the first mapping that has a key wins."""
        merged: dict[str, Any] = {}
        for mapping in reversed(value if isinstance(value, list) else [value]):
            if not isinstance(mapping, dict):
                raise self._error(start, f"{_MERGE} must name a mapping or a list of them")
            merged |= mapping
        return merged

    def _scalar(self, event: Any) -> Any:
        text = event.value
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in _NULLS:
            return None
        if text.lower() in _BOOLEANS and text in (text.lower(), text.upper(), text.capitalize()):
            return _BOOLEANS[text.lower()]
        integer = _INTEGER.fullmatch(text)
        if not integer and not _FLOAT.fullmatch(text):
            return text
        if len(text) > _LONGEST_NUMBER:
            raise self._error(event, f"a number of {len(text)} characters; at most {_LONGEST_NUMBER} can be read")
        digits = text.lower().replace("_", "")
        if not integer:
            return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
        return int(digits, {"0x": 16, "0o": 8, "0b": 2}.get(integer[1][:2], 10))
