"""Recipes: YAML files and command-line options -> trees of frozen dataclasses.

A recipe is the YAML form of one command's `Config` dataclass. Options on the command line win over the
recipe, the recipe wins over the defaults. Types, defaults and help come from the dataclasses alone.
"""

import dataclasses
import enum
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

from vavae.config_errors import alternatives, explain, fields_of
from vavae.errors import UserError

C = TypeVar("C")


def _one_line(text: str) -> str:
    return " ".join(part.strip() for part in text.strip().splitlines() if part.strip())


def _parser(config_class: type, prog: str, description: str, positionals: Sequence[str] = ()) -> Any:
    from jsonargparse import ArgumentParser

    names = {"config": "RECIPE"}
    more = {name: " ..." for name in positionals if name.endswith("+")}
    leading = "".join(f"[{names.get(p, p.rstrip('+').upper())}{more.get(p, '')}] " for p in positionals)
    # The options are listed below with their help; a second list of them in the usage line helps nobody.
    usage = f"{prog} {leading}[--key value ...]"
    parser = ArgumentParser(prog=prog, usage=usage, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", metavar="RECIPE", help="A recipe: YAML with any of these keys.")
    parser.add_class_arguments(config_class)
    return parser


def _with_flag_values(config_class: type, options: Sequence[str]) -> list[str]:
    """`--compare` alone means `--compare true`."""
    switches = {f"--{name}" for name, kind in fields_of(config_class).items() if bool in alternatives(kind)}
    completed = []
    for option, following in zip(options, [*options, "--"][1:], strict=True):
        completed.append(option)
        if option in switches and following.startswith("-"):
            completed.append("true")
    return completed


def _with_brackets(config_class: type, options: Sequence[str]) -> list[str]:
    """`--labels 3` means `--labels [3]`, and `--labels 3,4` means `--labels [3,4]`; free text may hold commas.

    In a list of numbers and names, as in `--labels cat,3`, what is no whole number is a name.
    Where one number has a meaning of its own, as in `--data.size 256`, it stays one.
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
            return json.dumps([value])
        parts = [part.strip() for part in value.split(",")]
        return f"[{', '.join(p if re.fullmatch(r'[+-]?[0-9]+', p) else json.dumps(p) for p in parts if p)}]"

    completed: list[str] = []
    for before, option in pairwise(["", *options]):
        name, equals, value = option.partition("=")
        if option.startswith("--"):
            completed.append(f"{name}={bracketed(name, value)}" if equals else option)
        else:
            completed.append(bracketed(before, option))
    return completed


def _check_recipe(path: str) -> None:
    """Complain of a recipe that is no recipe at all, by its name, which the parser does not say."""
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no such recipe ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {_one_line(str(error))}") from error
    if not isinstance(recipe, dict):
        found = "nothing" if recipe is None else _one_line(str(recipe))[:60]
        raise UserError(f"{path}: a recipe holds keys with values; this one holds {found}")


def parse_command_line(
    config_class: type[C],
    arguments: Sequence[str],
    prog: str,
    description: str = "",
    positionals: Sequence[str] = ("config",),
) -> C:
    """Build `config_class` from command-line `arguments`.

    Arguments that stand before the first option are taken as the options `positionals`, in order, so that
    `vavae train-tokenizer recipe.yaml --seed 1` reads well. A last name ending in `+` takes all the rest.

    Raises:
        UserError: An unknown key, a value of the wrong type, a recipe that cannot be read; the message names it.
        SystemExit: After `--help` and `--print_config`, with code 0.
    """
    from jsonargparse import ArgumentError

    arguments = list(arguments)
    leading = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    words = arguments[:leading]
    if len(words) > len(positionals) and not positionals[-1].endswith("+"):
        raise UserError(f"unexpected argument '{words[len(positionals)]}'; see '{prog} --help'")
    named = []
    for i, name in enumerate(positionals[: len(words)]):
        # A list is given whole: the parser appends with `--name+` to lists, not to tuples.
        named += [f"--{name[:-1]}", json.dumps(words[i:])] if name.endswith("+") else [f"--{name}", words[i]]
    options = _with_brackets(config_class, _with_flag_values(config_class, arguments[leading:]))
    recipes = []
    for option, following in pairwise([*named, *options, ""]):
        name, equals, value = option.partition("=")
        if name == "--config":
            recipes.append(value if equals else following)
            _check_recipe(recipes[-1])
    parser = _parser(config_class, prog, description, positionals)
    try:
        parsed = parser.instantiate(parser.parse_args(named + options))
        return config_class(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(config_class)})  # type: ignore[arg-type]
    except (ArgumentError, yaml.YAMLError, TypeError, ValueError) as error:
        raise UserError(explain(_one_line(str(error)), config_class, prog, recipes)) from error


def load_recipe(config_class: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read the recipe at `path` into `config_class`; `overrides` are options as on the command line."""
    return parse_command_line(config_class, ["--config", str(path), *overrides], prog=str(path))


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples, paths and enums -> what YAML and JSON can hold."""
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
    """The resolved recipe: every key with its value, in the order of the dataclass."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def from_plain(config_class: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_plain`, with the checks of the command line.

    Raises:
        UserError: Unknown key or wrong type, named in the message.
    """
    from jsonargparse import ArgumentError

    parser = _parser(config_class, prog=config_class.__name__, description="")
    try:
        parsed = parser.instantiate(parser.parse_object(dict(values)))
        return config_class(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(config_class)})  # type: ignore[arg-type]
    except (ArgumentError, TypeError, ValueError) as error:
        name = config_class.__name__
        raise UserError(f"{name}: {explain(_one_line(str(error)), config_class, name)}") from error
