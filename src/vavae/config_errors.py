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
_VALUE = re.compile(r".*(?:Got value: |Given value: |Unable to load config ['\"])(.*?)['\"]?(?: - Parser key .*)?$")


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, and of anything else that type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def fields_of(config_class: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every field in a tree of dataclasses, groups of fields among them."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(config_class).items():
        found[prefix + name] = kind
        for one in alternatives(kind):
            if isinstance(one, type) and dataclasses.is_dataclass(one):
                found |= fields_of(one, f"{prefix}{name}.")
    return found


def explain(message: str, config_class: type, prog: str, recipes: Sequence[str] = ()) -> str:
    """One line that names the key, option or recipe which the parser's `message` complains of.

    Args:
        message: What the parser says, in one line.
        config_class: The dataclass that was to be built.
        prog: The command.
        recipes: Paths of the recipes that were read; each is a YAML mapping.
    """
    known = fields_of(config_class)
    for path in recipes:
        unknown = list(_unknown_keys(known, yaml.safe_load(Path(path).read_text(encoding="utf-8"))))
        if unknown:
            return f"{path}: '{prog}' has no key {', '.join(unknown[:5])}{_near(unknown, known)}"
    if message.startswith("unrecognized arguments: "):
        return _unrecognized(message.removeprefix("unrecognized arguments: ").split()[0], known, prog)
    found = re.match(r'Parser key "([^"]+)": (.*)$', message)
    return _wrong_value(found[1], found[2], known) if found else message


def _near(unknown: Sequence[str], known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=_CLOSE)
    if len(unknown) == 1 and near:
        return f"; did you mean '{near[0]}'?"
    return "; is it a recipe of another command?"


def _unrecognized(argument: str, known: Mapping[str, Any], prog: str) -> str:
    if not argument.startswith("-"):
        return f"unexpected argument '{argument}': a recipe, or other words, must stand before all options"
    option = argument.partition("=")[0]
    near = difflib.get_close_matches(option.lstrip("-"), known, n=1, cutoff=_CLOSE)
    hint = f"did you mean '--{near[0]}'?" if near else f"see '{prog} --help'"
    return f"unknown option {option}; {hint}"


def _wrong_value(key: str, complaint: str, known: Mapping[str, Any]) -> str:
    kind, value = known.get(key), _VALUE.search(complaint)
    if kind is None or value is None:
        return f"{key}: {complaint}"
    return f"{key}: expected {_named(kind)}; got {value[1] or 'nothing'}"


def _unknown_keys(known: Mapping[str, Any], values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if prefix + str(key).partition(".")[0] not in known:
            yield name
        elif isinstance(value, Mapping) and any(map(dataclasses.is_dataclass, alternatives(known.get(name)))):
            yield from _unknown_keys(known, value, f"{name}.")


def _named(kind: Any) -> str:
    """A type in plain words."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        names = [_named(part) for part in parts]
        return (", or " if any("," in name for name in names) else " or ").join(names)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if get_origin(kind) is list or parts[1:] == (Ellipsis,):
        return f"a list, each item {_named(parts[0])}"
    if get_origin(kind) is tuple:
        return f"{len(parts)} values, each {' or '.join(dict.fromkeys(map(_named, parts)))}"
    if dataclasses.is_dataclass(kind):
        return f"a group of keys ({', '.join(field.name for field in dataclasses.fields(kind)[:3])}, …)"
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))
