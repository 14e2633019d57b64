"""Leave frozen networks out of a module's state dict: they come from their own files."""

from functools import partial
from typing import Any

from torch import nn


def leave_out(module: nn.Module, *parts: str) -> None:
    """Leave the submodules named `parts` out of the state dict, and do not miss them when one is loaded."""
    prefixes = tuple(f"{part}." for part in parts)
    module.register_state_dict_post_hook(partial(_drop, prefixes))
    module.register_load_state_dict_post_hook(partial(_do_not_miss, prefixes))


def _drop(prefixes: tuple[str, ...], module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and name[len(prefix) :].startswith(prefixes)]:
        del state[name]


def _do_not_miss(prefixes: tuple[str, ...], module: nn.Module, keys: Any) -> None:
    # The names may begin with those of modules around this one.
    keys.missing_keys[:] = [
        name for name in keys.missing_keys if not any(f".{part}" in f".{name}" for part in prefixes)
    ]
