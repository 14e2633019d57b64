"""Build trees of frozen dataclasses from recipes (YAML files) and options.

A recipe is the YAML form of one command's `Config` dataclass. An option overrides the recipe, and the recipe overrides
the default. Types, defaults and help come from the dataclasses.
"""

import dataclasses
import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin

from vavae.config.messages import alternatives, check_keys, fields_of, group_of, shortened, unknown_option
from vavae.config.recipes import recipe_file
from vavae.config.values import build, from_text, override
from vavae.errors import UserError
from vavae.io.yaml_files import dump_yaml, read_yaml

C = TypeVar("C")
_PRINT = "--print_config"


def _value(kind: Any, text: str, name: str) -> Any:
    """Return the value of an option: lists need no brackets, so that `--labels 3,4` means `--labels [3,4]`.

    A list of texts is one text, which may contain commas. In a list of numbers and names, such as `--labels cat,3`,
    items that are not whole numbers are names. A single number stays a number if the key takes one (`--data.size 256`).
    """
    kinds = alternatives(kind)
    if group_of(kind):
        return from_text(kind, text, name)
    lists = [one for one in kinds if get_origin(one) in (list, tuple)]
    if not lists or text.lstrip().startswith("[") or text in ("", "null") or (int in kinds and "," not in text):
        return text
    items = alternatives(get_args(lists[-1])[0])
    if str not in items:
        return f"[{text}]"
    if int not in items:
        return [text]
    parts = [part.strip() for part in text.split(",")]
    return [int(part) if re.fullmatch(r"[+-]?[0-9]+", part) else part for part in parts if part]


def _split(options: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the recipes among `options`, and all other options."""
    recipes, others = [], []
    remaining = iter(options)
    for option in remaining:
        name, equals, value = option.partition("=")
        if name != "--config":
            others.append(option)
        elif path := value if equals else next(remaining, ""):
            recipes.append(recipe_file(path))
        else:
            raise UserError("--config: expected the path of a recipe; got nothing")
    return recipes, others


def _given(config_class: type, options: Sequence[str], prog: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each option; a switch without a value is true."""
    known = fields_of(config_class, items=False)
    remaining = list(options)
    while remaining:
        option = remaining.pop(0)
        name, equals, text = option.partition("=")
        kind = _kind(known, name[2:]) if name.startswith("--") else None
        if kind is None:
            raise unknown_option(option, known, prog)
        if not equals and remaining and not remaining[0].startswith("--"):
            text = remaining.pop(0)
        elif not equals:
            text = "true" if bool in alternatives(kind) else ""
        yield name[2:], _value(kind, text, name[2:])


def _kind(known: Mapping[str, Any], name: str) -> Any:
    """Return the type of a key, or of an item of a dictionary (`--sizes.mine`); None if there is none."""
    parent = known.get(name.rpartition(".")[0])
    items = [get_args(one)[1] for one in alternatives(parent) if get_origin(one) is dict]
    return known.get(name, items[0] if items else None)


def parse_command_line(
    config_class: type[C], arguments: Sequence[str], prog: str, positionals: Sequence[str] = ("config",)
) -> C:
    """Build `config_class` from command-line `arguments`.

    Arguments before the first option are values of the options `positionals`, in order, as in
    `vavae train-tokenizer recipe.yaml --seed 1`. A last name ending in `+` takes all the rest.

    Raises:
        UserError: An unknown key, a value of the wrong type, a recipe that cannot be read; the message names it.
        SystemExit: After `--print_config`, with code 0.
    """
    arguments = list(arguments)
    leading = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    words = arguments[:leading]
    if len(words) > len(positionals) and not positionals[-1].endswith("+"):
        raise UserError(f"unexpected argument '{words[len(positionals)]}'; see '{prog} --help'")
    values: dict[str, Any] = {}
    named = []
    for i, name in enumerate(positionals[: len(words)]):
        if name.endswith("+"):
            values[name[:-1]] = words[i:]
        else:
            named += [f"--{name}={words[i]}"]
    recipes, options = _split([*named, *arguments[leading:]])
    settings: dict[str, Any] = {}
    for path in recipes:
        settings = _overridden(config_class, settings, read_yaml(path), prog, f"{path}: ")
    for name, value in _given(config_class, [option for option in options if option != _PRINT], prog):
        values = _grouped(values, {name: value})
    config = build(config_class, _overridden(config_class, settings, values, prog))
    if _PRINT in options:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def _overridden(
    config_class: type, settings: Mapping[str, Any], values: Mapping[str, Any], prog: str, source: str = ""
) -> dict[str, Any]:
    """Return what `settings` become when the keys of a recipe override them."""
    check_keys(values, config_class, source, prog)
    return override(config_class, settings, values, source)


def load_recipe(
    config_class: type[C], recipe: object = None, settings: Mapping[str, Any] = MappingProxyType({}), prog: str = ""
) -> C:
    """Build `config_class` from a recipe and settings that override it, with the checks of the command line.

    Args:
        config_class: The dataclass to build.
        recipe: A file, the name of a recipe in the package, a mapping, or a `config_class`; None gives the defaults.
        settings: Keys of a recipe. A group is a mapping, or its keys have dots: `optimizer.learning_rate`.
        prog: The caller's name in messages; the default is the recipe.

    Raises:
        UserError: An unknown key, a value of the wrong type, a recipe that cannot be read; the message names it.
    """
    source = ""
    if isinstance(recipe, str | Path):
        path = recipe_file(str(recipe))
        values, prog, source = read_yaml(path), prog or str(recipe), f"{path}: "
    else:
        plain = to_plain({} if recipe is None else recipe)
        if not isinstance(plain, dict):
            raise UserError(f"the recipe must be a file, a name, a mapping or a Config, got {shortened(str(recipe))}")
        values, prog = _grouped({}, plain), prog or config_class.__name__
    found = _overridden(config_class, {}, values, prog, source)
    return build(config_class, _overridden(config_class, found, _grouped({}, to_plain(settings)), prog))


def _grouped(groups: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Add `values` to `groups` and return these; a key with dots is a key in a group."""
    for key, value in values.items():
        name, _, rest = key.partition(".")
        value = {rest: value} if rest else value
        if isinstance(value, Mapping):
            before = groups.get(name)
            value = _grouped(before if isinstance(before, dict) else {}, value)
        groups[name] = value
    return groups


def to_plain(value: Any) -> Any:
    """Return dataclasses, tuples, paths and enums as values that YAML and JSON have."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value


def to_yaml(config: Any) -> str:
    """Return the resolved recipe: every key with its value, in the order of the dataclass."""
    return dump_yaml(to_plain(config))


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        key: value
        for name, part in values.items()
        for key, value in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def from_plain(config_class: type[C], values: Mapping[str, Any]) -> C:
    """Build `config_class` from plain values, the inverse of `to_plain`, with the checks of the command line.

    Raises:
        UserError: Unknown key or wrong type, named in the message.
    """
    name = config_class.__name__
    return build(config_class, _overridden(config_class, {}, values, name, f"{name}: "))
