"""Convert plain values to the types of a dataclass's fields, and build trees of dataclasses from them."""

import dataclasses
import math
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml

from vavae.config.messages import alternatives, group_of, hints_of, wrong_value
from vavae.errors import UserError
from vavae.io.yaml_files import parse_yaml

C = TypeVar("C")


class _Unfit(Exception):
    """A value is not of a type; its arguments are the value and, if there is one, the reason."""


def override(config_class: type, settings: Mapping[str, Any], values: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return `settings` with the converted `values` over them, key by key within groups and dictionaries.

    Args:
        config_class: The dataclass whose fields the keys are.
        settings: Field -> converted value; a group of keys is such a dict itself.
        values: Field -> plain value.
        label: What stands before a key in messages: the file, and the groups that the key is in.

    Raises:
        UserError: A key is unknown, or a value is not of its field's type.
    """
    kinds, found = hints_of(config_class), dict(settings)
    for name, value in values.items():
        if name not in kinds:
            raise UserError(f"{label}{name} is not a key; known here: {', '.join(kinds)}")
        kind, group, before = kinds[name], group_of(kinds[name]), found.get(name)
        if group and isinstance(value, Mapping):
            found[name] = override(group, before if isinstance(before, dict) else {}, value, f"{label}{name}.")
        else:
            new = _converted(kind, value, f"{label}{name}")
            found[name] = before | new if isinstance(before, dict) and isinstance(new, dict) else new
    return found


def build(config_class: type[C], settings: Mapping[str, Any], base: Any = None) -> C:
    """Build `config_class` from the result of `override`; `base` has the values of all other fields."""
    given = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        default = getattr(base, field.name) if base is not None else _default(field)
        value = settings.get(field.name, default)
        group = group_of(hints_of(config_class)[field.name])  # type: ignore[arg-type] # classes are hashable
        if group and isinstance(value, dict):
            value = _built_group(field.name, group, value, default if isinstance(default, group) else None)
        if value is dataclasses.MISSING:
            raise UserError(f"{config_class.__name__} needs the key {field.name}")
        given[field.name] = value
    return config_class(**given)


def _built_group(name: str, group: type, settings: Mapping[str, Any], base: Any) -> Any:
    """Build a group; a complaint of the dataclass about its own key gets the group's name in front."""
    try:
        return build(group, settings, base)
    except UserError as error:
        if str(error).partition(" ")[0].split(".")[0] in hints_of(group):
            raise UserError(f"{name}.{error}") from error
        raise


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def from_text(kind: Any, text: str, label: str) -> Any:
    """Return the plain value of a text of YAML.

    Raises:
        UserError: It is not YAML; the message says what `label` must be.
    """
    try:
        return _parsed(text)
    except _Unfit as unfit:
        raise wrong_value(label, kind, *unfit.args) from unfit


def _parsed(text: str) -> Any:
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise _Unfit(text, re.sub(r"^(not YAML: )?line \d+: ", "", str(error))) from error


def _converted(kind: Any, value: Any, label: str) -> Any:
    try:
        return _fit(kind, value, label)
    except _Unfit as unfit:
        raise wrong_value(label, kind, *unfit.args) from unfit


def _fit(kind: Any, value: Any, label: str) -> Any:
    """Return a value as a type, or raise _Unfit. A text is YAML where the type does not take it as it is."""
    kinds = alternatives(kind)
    if isinstance(value, str):
        if value == "null" and NoneType in kinds:
            return None
        if str not in kinds and not any(get_origin(one) is Literal and value in get_args(one) for one in kinds):
            value = _parsed(value)
    unfit = _Unfit(value)
    for one in kinds:
        try:
            return _fit_one(one, value, label)
        except _Unfit as found:
            unfit = found if len(kinds) == 1 else unfit
    raise unfit


def _fit_one(kind: Any, value: Any, label: str) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _checked(float(value), label)
    if kind in (bool, int, str, NoneType) and isinstance(value, kind) and (kind is bool) == isinstance(value, bool):
        return _checked(value, label)
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in parts):
        return value
    if origin in (list, tuple) and isinstance(value, list | tuple):
        if origin is list or parts[1:] == (Ellipsis,):
            return origin(_fit(parts[0], item, label) for item in value)
        return _fit_each(parts, value, label)
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _converted(parts[1], item, f"{label}.{key}") for key, item in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(kind, override(kind, {}, value, f"{label}."))
    raise _Unfit(value)


def _fit_each(kinds: tuple[Any, ...], values: Any, label: str) -> tuple[Any, ...]:
    """Return as many values as there are types."""
    if len(values) != len(kinds):
        raise _Unfit(values)
    try:
        return tuple(_fit(kind, value, label) for kind, value in zip(kinds, values, strict=True))
    except _Unfit as unfit:
        raise _Unfit(values) from unfit


def _checked(value: Any, label: str) -> Any:
    """Return a value; raise UserError for numbers that do not fit in tensors and files, and for empty texts.

    An empty text is usually a variable of the shell that is not set. As a path, it would be the current folder.
    """
    if value == "":
        raise UserError(f"{label} must not be empty; null or leaving it out gives the default")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{label} must fit in 64 bits, got a whole number of {value.bit_length()} bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{label} must be a finite number, got {value}")
    return value
