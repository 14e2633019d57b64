"""The folder a model is saved in: `config.json`, `model.safetensors`, `statistics.safetensors`, `README.md`."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vavae.errors import UserError

CONFIG, WEIGHTS, STATISTICS, CARD = "config.json", "model.safetensors", "statistics.safetensors", "README.md"


def resolve(path_or_hub_id: str | Path) -> Path:
    """A local folder as it is; anything else as the id of a hub repository, which is fetched.

    Raises:
        UserError: Neither a folder here nor a repository that can be reached.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    text = str(path_or_hub_id)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise UserError(f"{text}: there is no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{text}: no such folder here, and the hub does not give it ({reason})") from error


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """`config.json` of a folder that holds a `kind`.

    Raises:
        UserError: It is missing, unreadable, or of another kind.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; is {folder} the folder of a {kind}?") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    found = config.get("kind") if isinstance(config, dict) else None
    if found != kind:
        raise UserError(f"{path}: holds a {found}, not a {kind}")
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def write_folder(folder: Path, config: dict[str, Any], model: nn.Module, card: str) -> None:
    """Write `config.json`, the weights and the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_tensors(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    (folder / CARD).write_text(card)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial)
    partial.replace(path)


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load a state dict; every key must be there, fit, and be finite.

    Raises:
        UserError: Names missing and extra keys, wrong shapes, or non-finite weights.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing or extra:
        parts = [f"{word} {_few(keys)}" for word, keys in (("missing", missing), ("extra", extra)) if keys]
        raise UserError(f"{source}: {'; '.join(parts)}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise UserError(f"{source}: {name} has shape {tuple(value.shape)}, not {tuple(expected[name].shape)}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"{source}: {name} holds NaN or infinity")
    model.load_state_dict(tensors)


def _few(keys: list[str], most: int = 5) -> str:
    shown = ", ".join(keys[:most])
    return f"{shown} and {len(keys) - most} more" if len(keys) > most else shown
