"""Build trees of frozen dataclasses from recipes (YAML files) and options.

A recipe is the YAML form of one command's `Config` dataclass. An option overrides the recipe, and the recipe overrides
the default. Types, defaults and help come from the dataclasses.
"""

import dataclasses
import enum
import functools
import json
import math
import re
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin

import yaml

from vavae.config.messages import alternatives, check_keys, explain, fields_of, shortened
from vavae.config.recipes import recipe_file
from vavae.errors import UserError, one_line
from vavae.io.yaml_files import dump_yaml, parse_yaml, read_yaml

C = TypeVar("C")
_MODE = "vavae"  # the parser's mode that reads YAML with parse_yaml
_PRINT = "--print_config"
_PARSING = (ArgumentError, yaml.YAMLError, TypeError, ValueError)


@functools.cache
def _parser(config_class: type, prog: str, description: str, positionals: tuple[str, ...] = ()) -> Any:
    from jsonargparse import ArgumentParser, _loaders_dumpers, set_loader

    # Options and the texts in a recipe are YAML too. For single numbers the parser uses yaml_load in every mode.
    set_loader(_MODE, parse_yaml, (yaml.YAMLError,))
    _loaders_dumpers.yaml_load = parse_yaml
    names = {"config": "RECIPE"}
    more = {name: " ..." for name in positionals if name.endswith("+")}
    leading = "".join(f"[{names.get(p, p.rstrip('+').upper())}{more.get(p, '')}] " for p in positionals)
    # The help lists the options, so the usage line does not.
    usage = f"{prog} {leading}[--key value ...]"
    parser = ArgumentParser(
        prog=prog, usage=usage, description=description, exit_on_error=False, allow_abbrev=False, parser_mode=_MODE
    )
    recipe = "A recipe: YAML with any of these keys, or a name that 'vavae recipes' lists."
    parser.add_argument("--config", metavar="RECIPE", help=recipe)
    parser.add_argument(_PRINT, action="store_true", help="Print the resolved recipe and exit.")
    parser.add_class_arguments(config_class)
    return parser


def _with_flag_values(config_class: type, options: Sequence[str]) -> list[str]:
    """Return the options with `true` after each switch without a value: `--npz` means `--npz true`."""
    switches = {f"--{name}" for name, kind in fields_of(config_class).items() if bool in alternatives(kind)}
    completed = []
    for option, following in zip(options, [*options, "--"][1:], strict=True):
        completed.append(option)
        if option in switches and following.startswith("-"):
            completed.append("true")
    return completed


def _with_brackets(config_class: type, options: Sequence[str]) -> list[str]:
    """Return the options with brackets around lists: `--labels 3,4` means `--labels [3,4]`.

    A list of texts is one text, which may contain commas. In a list of numbers and names, such as `--labels cat,3`,
    items that are not whole numbers are names. A single number stays a number if the key takes one (`--data.size 256`).
    """
    known = fields_of(config_class)
    numbers = {f"--{name}" for name, kind in known.items() if int in alternatives(kind)}
    lists = {
        f"--{name}": alternatives(get_args(one)[0])
        for name, kind in known.items()
        for one in alternatives(kind)
        if get_origin(one) in (list, tuple)
    }

    def bracketed(option: str, value: str) -> str:
        if option not in lists or value.lstrip().startswith("[") or value in ("", "null"):
            return value
        if option in numbers and "," not in value:
            return value
        if str not in lists[option]:
            return f"[{value}]"
        if int not in lists[option]:
            return json.dumps([value], ensure_ascii=False)
        parts = [part.strip() for part in value.split(",")]
        items = [p if re.fullmatch(r"[+-]?[0-9]+", p) else json.dumps(p, ensure_ascii=False) for p in parts if p]
        return f"[{', '.join(items)}]"

    completed: list[str] = []
    for before, option in pairwise(["", *options]):
        name, equals, value = option.partition("=")
        if option.startswith("--"):
            completed.append(f"{name}={bracketed(name, value)}" if equals else option)
        else:
            completed.append(bracketed(before, option))
    return completed


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


def _check_values(values: Iterable[tuple[str, Any]]) -> None:
    """Raise UserError for numbers that do not fit in tensors and files, and for empty texts.

    An empty text is usually a variable of the shell that is not set. As a path, it would be the current folder.
    """
    for key, value in values:
        if isinstance(value, list | tuple):
            _check_values((key, item) for item in value)
        elif isinstance(value, Mapping):
            _check_values((f"{key}.{name}", item) for name, item in value.items())
        elif value == "":
            raise UserError(f"{key} must not be empty; null or leaving it out gives the default")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{key} must fit in 64 bits, got a whole number of {value.bit_length()} bits")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, got {value}")


@contextmanager
def _explained(config_class: type, prog: str, source: str = "") -> Iterator[None]:
    """Raise the parser's errors in the block as a UserError that begins with `source`."""
    try:
        yield
    except _PARSING as error:
        raise UserError(source + explain(one_line(error), config_class, prog)) from error


def _built(config_class: type[C], parser: Any, parsed: Any) -> C:
    _check_values(parsed.items())
    built = parser.instantiate(parsed)
    return config_class(**{f.name: getattr(built, f.name) for f in dataclasses.fields(config_class)})  # type: ignore[arg-type]


def parse_command_line(
    config_class: type[C],
    arguments: Sequence[str],
    prog: str,
    description: str = "",
    positionals: Sequence[str] = ("config",),
) -> C:
    """Build `config_class` from command-line `arguments`.

    Arguments before the first option are values of the options `positionals`, in order, as in
    `vavae train-tokenizer recipe.yaml --seed 1`. A last name ending in `+` takes all the rest.

    Raises:
        UserError: An unknown key, a value of the wrong type, a recipe that cannot be read; the message names it.
        SystemExit: After `--help` and `--print_config`, with code 0.
    """
    arguments = list(arguments)
    leading = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    words = arguments[:leading]
    if len(words) > len(positionals) and not positionals[-1].endswith("+"):
        raise UserError(f"unexpected argument '{words[len(positionals)]}'; see '{prog} --help'")
    named = []
    for i, name in enumerate(positionals[: len(words)]):
        # A list is given whole: the parser appends with `--name+` to lists, not to tuples.
        named += (
            [f"--{name[:-1]}", json.dumps(words[i:], ensure_ascii=False)]
            if name.endswith("+")
            else [f"--{name}", words[i]]
        )
    options = _with_brackets(config_class, _with_flag_values(config_class, arguments[leading:]))
    recipes, options = _split([*named, *options])
    parser = _parser(config_class, prog, description, tuple(positionals))  # type: ignore[arg-type] # classes are hashable
    parsed = None
    for path in recipes:
        parsed = _override(parser, parsed, read_yaml(path), config_class, prog, f"{path}: ")
    with _explained(config_class, prog):
        given = [option for option in options if option != _PRINT]
        config = _built(config_class, parser, parser.parse_args(given, _mergeable(parsed, config_class)))
    if _PRINT in options:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def help_text(config_class: type, prog: str, description: str, positionals: Sequence[str]) -> str:
    """Return the help of a command: every option with its type, default and meaning."""
    return str(_parser(config_class, prog, description, tuple(positionals)).format_help())


def _override(
    parser: Any, parsed: Any, values: Mapping[str, Any], config_class: type, prog: str, source: str = ""
) -> Any:
    """Return what `parsed` becomes when the keys of a recipe override it; None stands for the defaults."""
    check_keys(values, config_class, source, prog)
    with _explained(config_class, prog, source):
        return parser.parse_object(values, _mergeable(parsed, config_class))


def _mergeable(parsed: Any, config_class: type) -> Any:
    """Return `parsed` with dictionaries for groups that may be null: only there the parser overrides single keys."""
    for name, kind in fields_of(config_class).items() if parsed is not None else ():
        if type(None) in alternatives(kind) and "." not in name and hasattr(parsed[name], "as_dict"):
            parsed[name] = parsed[name].as_dict()
    return parsed


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
    parser = _parser(config_class, prog, "")  # type: ignore[arg-type] # classes are hashable
    parsed = _override(parser, None, values, config_class, prog, source)
    if settings:
        parsed = _override(parser, parsed, _grouped({}, to_plain(settings)), config_class, prog)
    with _explained(config_class, prog):
        return _built(config_class, parser, parsed)


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
    parser = _parser(config_class, prog=name, description="")  # type: ignore[arg-type]
    with _explained(config_class, name, f"{name}: "):
        return _built(config_class, parser, parser.parse_object(dict(values)))
