"""Messages about recipes and options that name the key, the value and what is expected."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vavae.errors import UserError, did_you_mean

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_LONGEST = 60  # characters of a value in a message
_CLOSE = 0.75  # dotted names are long: at difflib's 0.6 anything would resemble some key


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _groups(kind: Any) -> list[Any]:
    """Return the dataclasses among the alternatives of a type; for a list, the dataclass of its items."""
    items = [
        one for part in alternatives(kind) for one in (get_args(part) if get_origin(part) in (list, tuple) else [part])
    ]
    return [one for one in items if dataclasses.is_dataclass(one)]


@cache
def hints_of(config_class: type) -> dict[str, Any]:
    """Return name -> type of every field of a dataclass."""
    return get_type_hints(config_class)


@cache
def group_of(kind: Any) -> Any:
    """Return the dataclass that a type is or may be; None for other types."""
    return next((one for one in alternatives(kind) if dataclasses.is_dataclass(one)), None)


@cache
def fields_of(config_class: type, prefix: str = "", items: bool = True) -> dict[str, Any]:
    """Return dotted name -> type of every field in a tree of dataclasses, with groups of fields.

    Args:
        config_class: The dataclass.
        prefix: The beginning of every name.
        items: Add the fields of dataclasses in lists.
    """
    found: dict[str, Any] = {}
    for name, kind in hints_of(config_class).items():
        found[prefix + name] = kind
        for one in _groups(kind) if items else filter(None, [group_of(kind)]):
            found |= fields_of(one, f"{prefix}{name}.", items)
    return found


def check_keys(values: Mapping[str, Any], config_class: type, source: str, prog: str) -> None:
    """Check that a recipe has only keys of `config_class`, groups of keys where they belong, and no empty keys.

    Args:
        values: What the recipe holds.
        config_class: The dataclass to build.
        source: The beginning of the message.
        prog: The command.

    Raises:
        UserError: A key is unknown, with the nearest one, or its value is not of the right kind.
    """
    known = fields_of(config_class)
    unknown = list(_unknown_keys(known, values))
    if unknown:
        listed = ", ".join(map(shortened, unknown[:5]))
        raise UserError(f"{source}'{prog}' has no key {listed}{_near(unknown, known)}")
    _check_groups(known, values, source)


def _check_groups(known: Mapping[str, Any], values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    for key, value in values.items():
        name, kinds = prefix + key, alternatives(known[prefix + key])
        if "." in key:
            group, _, last = name.rpartition(".")
            raise UserError(f"{source}write '{name}' as the key '{last}' under '{group}:'")
        group_here = all(map(dataclasses.is_dataclass, kinds))
        if (value is None and NoneType not in kinds) or (group_here and not isinstance(value, Mapping)):
            got = "nothing" if value is None else shortened(str(value))
            raise UserError(f"{source}{name} must be {_named(known[name])}, got {got}")
        if isinstance(value, Mapping) and any(map(dataclasses.is_dataclass, kinds)):
            _check_groups(known, value, source, f"{name}.")


def shortened(text: str) -> str:
    """Return `text`, or its beginning if it is too long for a message."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _near(unknown: Sequence[str], known: Mapping[str, Any]) -> str:
    near = did_you_mean(unknown[0], known, _CLOSE) if len(unknown) == 1 else ""
    return near or "; is it a recipe of another command?"


def unknown_option(argument: str, known: Mapping[str, Any], prog: str) -> UserError:
    """Return the error for a word that is not an option of `prog`."""
    if not argument.startswith("-"):
        return UserError(f"unexpected argument '{argument}': a recipe, or other words, must come before all options")
    option = argument.partition("=")[0]
    near = difflib.get_close_matches(option.lstrip("-"), known, n=1, cutoff=_CLOSE)
    hint = f"did you mean '--{near[0]}'?" if near else f"see '{prog} --help'"
    return UserError(f"unknown option {option}; {hint}")


def wrong_value(label: str, kind: Any, value: Any, reason: str = "") -> UserError:
    """Return the error for a value that is not of the type `kind`; `label` is the key, after its file."""
    got = "nothing" if value in (None, "") else shortened(" ".join(str(value).split()))
    why = f" ({reason})" if reason else ""
    quotes = "; put text in quotes" if str in alternatives(kind) else ""
    return UserError(f"{label} must be {_named(kind)}, got {got}{why}{quotes}")


def _unknown_keys(known: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = prefix + key
        if name not in known:
            yield name
        elif _groups(known[name]):
            for group in value if isinstance(value, list) else [value]:
                if isinstance(group, Mapping):
                    yield from _unknown_keys(known, group, f"{name}.")


def _named(kind: Any) -> str:
    """Return a type in plain words."""
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        names = [_named(part) for part in parts]
        return (", or " if any("," in name for name in names) else " or ").join(names)
    if get_origin(kind) is Literal:
        return f"{'one of ' if parts[1:] else ''}{', '.join(map(str, parts))}"
    if get_origin(kind) is list or parts[1:] == (Ellipsis,):
        return f"a list, each item {_named(parts[0])}"
    if get_origin(kind) is tuple:
        return f"{len(parts)} values, each {' or '.join(dict.fromkeys(map(_named, parts)))}"
    if dataclasses.is_dataclass(kind):
        return f"a group of keys ({', '.join(field.name for field in dataclasses.fields(kind)[:3])}, …)"
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))
