"""List, fetch and verify pretrained weights and data sets."""

from dataclasses import dataclass
from typing import Literal

from vavae.errors import UserError
from vavae.pretrained import assets


@dataclass(frozen=True)
class Config:
    """Assets.

    Attributes:
        action: `list` every asset with licence, size and sources; `fetch` into the cache; `verify` what is cached
            against its hashes.
        names: Assets to fetch or verify; all cached ones for `verify` when empty.
    """

    action: Literal["list", "fetch", "verify"] = "list"
    names: tuple[str, ...] = ()


def run(config: Config) -> None:
    """Carry out the action.

    Raises:
        UserError: Unknown asset, wrong hash, no source that can be reached.
    """
    if config.action == "fetch" and not config.names:
        raise UserError("assets fetch: which? 'vavae assets list' names them")
    if config.action == "list":
        _list(config.names)
        return
    if config.action == "fetch":
        for name in config.names:
            print(f"{name}: {assets.fetch(name)}")
        return
    names = config.names or tuple(state.name for state in assets.list_assets() if state.cached)
    for name in names:
        assets.verify(name)
        print(f"{name}: all hashes match")
    if not names:
        print("nothing is cached yet")


def _list(names: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    known = {state.name: state for state in assets.list_assets()}
    for name in names:
        assets.get_asset(name)
    table = Table(box=None, pad_edge=False)
    for heading in ("asset", "size", "cached", "licence", "what and from where"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("asset", "size"))
    for state in known.values():
        if names and state.name not in names:
            continue
        sources = "; ".join(map(str, assets.get_asset(state.name).sources))
        table.add_row(
            state.name,
            f"{state.size_bytes / 1e6:.0f} MB",
            "yes" if state.cached else "no",
            state.licence,
            f"{state.description} [{sources}]",
        )
    Console().print(table)
    print(f"\ncache: {assets.cache_folder()}")
