"""What is wrong with a recipe or an option, in words of the recipe rather than of the parser."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_CLOSE = 0.75  # dotted names are long: at difflib's 0.6 anything would resemble some key
_VALUE = re.compile(r"(?:Got value: |Given value: |Unable to load config ['\"])(.*?)['\"]?(?: - Parser key .*)?$")


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, and of anything else that type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def explain(message: str, config_class: type, prog: str, recipes: Sequence[str] = ()) -> str:
    """One line that names the key, option or recipe which the parser's `message` complains of.

    Args:
        message: What the parser says, in one line.
        config_class: The dataclass that was to be built.
        prog: The command.
        recipes: Paths of the recipes that were read; each is a YAML mapping.
    """
    for path in recipes:
        unknown = list(_unknown_keys(config_class, yaml.safe_load(Path(path).read_text(encoding="utf-8"))))
        if unknown:
            return f"{path}: '{prog}' has no key {', '.join(unknown[:5])}{_near(unknown, config_class)}"
    if message.startswith("unrecognized arguments: "):
        return _unrecognized(message.removeprefix("unrecognized arguments: ").split()[0], config_class, prog)
    found = re.match(r'Parser key "([^"]+)": (.*)$', message)
    return _wrong_value(found[1], found[2], config_class) if found else message


def _near(unknown: Sequence[str], config_class: type) -> str:
    near = difflib.get_close_matches(unknown[0], list(_keys(config_class)), n=1, cutoff=_CLOSE)
    if len(unknown) == 1 and near:
        return f"; did you mean '{near[0]}'?"
    return "; is it a recipe of another command?"


def _unrecognized(argument: str, config_class: type, prog: str) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument '{argument}': a recipe, or other words, must stand before all options"
    option = argument.partition("=")[0]
    near = difflib.get_close_matches(option.lstrip("-"), list(_keys(config_class)), n=1, cutoff=_CLOSE)
    hint = f"did you mean '--{near[0]}'?" if near else f"see '{prog} --help'"
    return f"unknown option {option}; {hint}"


def _wrong_value(key: str, complaint: str, config_class: type) -> str:
    kind, value = _kind_of(key, config_class), _VALUE.search(complaint)
    if kind is None or value is None:
        return f"{key}: {complaint}"
    return f"{key}: expected {_named(kind)}; got {value[1] or 'nothing'}"


def _fields(config_class: type) -> Iterator[tuple[str, Any, Any]]:
    """Name and type of each field, and the dataclass it holds, if it does."""
    for name, kind in get_type_hints(config_class).items():
        groups = (one for one in alternatives(kind) if isinstance(one, type) and dataclasses.is_dataclass(one))
        yield name, kind, next(groups, None)


def _keys(config_class: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys."""
    for name, _, group in _fields(config_class):
        yield prefix + name
        if group is not None:
            yield from _keys(group, f"{prefix}{name}.")


def _unknown_keys(config_class: type, values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    groups = {name: group for name, _, group in _fields(config_class)}
    for key, value in values.items():
        name = str(key)
        if name.partition(".")[0] not in groups:
            yield prefix + name
        elif isinstance(value, Mapping) and (group := groups.get(name)) is not None:
            yield from _unknown_keys(group, value, f"{prefix}{name}.")


def _kind_of(key: str, config_class: type) -> Any:
    """Type of the field with a dotted name; None where there is none."""
    name, _, rest = key.partition(".")
    for field, kind, group in _fields(config_class):
        if field == name and not rest:
            return kind
        if field == name and group is not None:
            return _kind_of(rest, group)
    return None


def _named(kind: Any) -> str:
    """A type in plain words."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        names = [_named(part) for part in parts]
        return (", or " if "," in names[0] else " or ").join(names)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if get_origin(kind) is list or parts[1:] == (Ellipsis,):
        return f"a list, each item {_named(parts[0])}"
    if get_origin(kind) is tuple:
        return f"{len(parts)} values, each {' or '.join(dict.fromkeys(map(_named, parts)))}"
    if dataclasses.is_dataclass(kind):
        return f"a group of keys ({', '.join(field.name for field in dataclasses.fields(kind)[:3])}, …)"
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))
