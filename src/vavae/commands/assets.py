"""List, fetch and verify pretrained weights and data sets."""

from dataclasses import dataclass
from typing import Literal

from vavae import assets
from vavae.errors import UserError


@dataclass(frozen=True)
class Config:
    """List, fetch or verify assets.

    Attributes:
        action: `list` every asset with license, size and sources; `fetch` assets into the cache; `verify` cached
            assets by their hashes.
        names: Assets to list, fetch or verify; empty lists all, and verifies all that are cached.
    """

    action: Literal["list", "fetch", "verify"] = "list"
    names: tuple[str, ...] = ()


def run(config: Config) -> None:
    """Carry out the action.

    Raises:
        UserError: An asset is unknown, a hash differs, or no source can be reached.
    """
    if config.action == "fetch" and not config.names:
        raise UserError("names must have at least one asset to fetch; 'vavae assets list' lists them")
    if config.action == "list":
        _list(config.names)
        return
    if config.action == "fetch":
        for name in config.names:
            print(f"{name}: {assets.fetch(name)}")
        return
    cached = [state.name for state in (*assets.list_assets(), *assets.list_hub_models()) if state.cached]
    names = config.names or cached
    for name in names:
        assets.verify(name)
        print(f"{name}: all hashes match")
    if not names:
        print("nothing is cached yet")


def _list(names: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.padding import Padding

    known = {asset.name: asset for asset in assets.ASSETS}
    console = Console(highlight=False)
    for state in [assets.status(name) for name in names] or [*assets.list_assets(), *assets.list_hub_models()]:
        where = "cached" if state.cached else "not cached"
        console.print(f"[bold]{state.name}[/bold]  {state.size_bytes / 1e6:,.0f} MB, {where}")
        sources = "; ".join(map(str, known[state.name].sources)) if state.name in known else state.source
        for line in (state.description, f"license: {state.license}", f"from: {sources}"):
            console.print(Padding(line, (0, 0, 0, 4)), markup=False)
    console.print(f"\ncache: {assets.cache_folder()}", markup=False, soft_wrap=True)
