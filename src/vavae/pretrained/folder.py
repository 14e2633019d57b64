"""The folder a model is saved in: `config.json`, `model.safetensors`, `statistics.safetensors`, `README.md`.

Also which other forms a path can have, so that whatever is published can be named as it is.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vavae.errors import UserError, one_line
from vavae.files import UNFINISHED, naming, written_whole
from vavae.pretrained.reading import check_finite, check_tensors

CONFIG, WEIGHTS, STATISTICS, CARD = "config.json", "model.safetensors", "statistics.safetensors", "README.md"
PIPELINE = "model_index.json"
DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")

# Models that come with the package, by name; see the card in each folder.
SHIPPED = {"demo": Path(__file__).parent / "demo"}

Form = Literal["tokenizer", "generator", "diffusers", "pipeline", "latents", "checkpoint", "recipe"]


def resolve(path_or_hub_id: str | Path) -> Path:
    """A local file or folder as it is; the name of a shipped model; else the id of a hub repository, which is fetched.

    A folder that happens to have a shipped model's name, and holds no model, does not hide it.

    Raises:
        UserError: Neither here nor a repository that can be reached.
    """
    path = Path(path_or_hub_id).expanduser()
    text = str(path_or_hub_id)
    if text in SHIPPED and not any((path / name).is_file() for name in (CONFIG, PIPELINE)):
        return SHIPPED[text]
    if path.exists():
        return path
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or path.suffix in (*CHECKPOINT_SUFFIXES, ".yaml"):
        raise UserError(f"{text}: there is no such file or folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = one_line(error)[:200]
        raise UserError(f"{text}: no such file or folder here, and the hub does not give it ({reason})") from error


def form_of(path: Path) -> Form:
    """What a file or folder holds, by its name and the names in it.

    Raises:
        UserError: A folder of something else, or one that was not written to its end.
    """
    if path.is_file():
        return "recipe" if path.suffix in (".yaml", ".yml") else "checkpoint"
    if (path / PIPELINE).is_file():
        return "pipeline"
    if (path / CONFIG).is_file():
        config = _read_json(path / CONFIG)
        kind = config.get("kind")
        if kind in ("tokenizer", "generator"):
            return kind
        if config.get("_class_name") == "AutoencoderKL":
            return "diffusers"
        raise UserError(f"{path / CONFIG}: is of {kind or config.get('_class_name') or 'nothing known'}")
    if (path / UNFINISHED).is_file():
        raise UserError(f"{path}: was not written to its end; write it again")
    if any(path.glob("latents*_shard*.safetensors")):
        return "latents"
    if published_file(path) is not None:
        return "checkpoint"
    raise UserError(f"{path}: holds no {CONFIG}, no checkpoint and no latents")


def named(form: Form) -> str:
    """A form with its article, for messages."""
    articles: dict[Form, str] = {"latents": "", "diffusers": "an autoencoder of "}
    return articles.get(form, "a ") + form


def holds_generator(path: Path) -> bool:
    """Whether a folder is a generator's, ours or one exported for diffusers; a pipeline of others is not.

    Raises:
        UserError: A folder of something else than models.
    """
    form = form_of(path)
    return form == "generator" or (form == "pipeline" and "sampling" in read_pipeline(path))


def part(folder: Path, name: str) -> Path:
    """A folder within a local one. `resolve` would take `generator/tokenizer` for a repository of somebody's.

    Raises:
        UserError: It is not there.
    """
    path = folder / name
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder, and {folder} is not whole without it")
    return path


def published_file(folder: Path) -> Path | None:
    """The one checkpoint of a folder as it is published; None where there is none.

    Raises:
        UserError: There are several.
    """
    found = [p for p in sorted(folder.iterdir()) if p.suffix in CHECKPOINT_SUFFIXES and not _is_statistics(p.stem)]
    if len(found) > 1:
        raise UserError(f"{folder}: holds several checkpoints; name one of {', '.join(p.name for p in found[:5])}")
    return found[0] if found else None


def _is_statistics(stem: str) -> bool:
    # Published ones are told apart by what follows, `latents_stats_sdvae` say.
    return stem == Path(STATISTICS).stem or stem.startswith("latents_stats")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds a {type(config).__name__}, not a configuration")
    return config


def read_config(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """`config.json` of a folder, which must be that of a `kind` where one is given.

    Raises:
        UserError: It is missing, unreadable, or of another kind.
    """
    path = folder / CONFIG
    config = _read_json(path)
    if kind is not None and config.get("kind") != kind:
        raise UserError(f"{path}: holds a {config.get('kind')}, not a {kind}")
    return config


def read_pipeline(folder: Path) -> dict[str, Any]:
    """`model_index.json` of a folder in the form of diffusers."""
    return _read_json(folder / PIPELINE)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all, indented, keys in the order given."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def stored(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The state dict as it is written: as `dtype`, if one is given.

    Raises:
        UserError: A weight is too large for `dtype`, or it is no type of weights.
    """
    tensors = model.state_dict()
    if dtype is None:
        return tensors
    if dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise UserError(f"dtype: {str(dtype).removeprefix('torch.')} does not hold weights")
    check_finite(tensors, "weights")
    narrow = {name: value.to(dtype) for name, value in tensors.items()}
    for name, value in narrow.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"{name} is too large for {str(dtype).removeprefix('torch.')}; bfloat16 holds it")
    return narrow


@contextmanager
def finished_by(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """`config.json`, by which a folder counts as whole, appears when the block ends well.

    That of an older model in the folder goes first: no mixture of two is ever taken for a model.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).touch()
        (folder / CONFIG).unlink(missing_ok=True)
        yield
        write_json(folder / CONFIG, config)
        (folder / UNFINISHED).unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file whole or not at all."""
    # Without the format in its metadata, other libraries refuse the file.
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with written_whole(path) as temporary:
        save_file(plain, temporary, metadata={"format": "pt"})


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Load a state dict into a model, which may be on the meta device and is then brought to the CPU.

    Every key must be there, fit, and be finite. Half-precision weights are widened, which loses nothing.

    Raises:
        UserError: Names missing and extra keys, wrong shapes, or non-finite weights.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing or extra:
        parts = [f"{word} {_few(keys)}" for word, keys in (("missing", missing), ("extra", extra)) if keys]
        raise UserError(f"{source}: {'; '.join(parts)}")
    check_tensors(tensors, source)
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise UserError(f"{source}: {name} has shape {tuple(value.shape)}, not {tuple(expected[name].shape)}")
        if value.dtype == torch.float64:
            raise UserError(f"{source}: {name} is float64, which float32 networks would round")
    check_finite(tensors, source)
    if next(model.parameters()).is_meta:
        model.to_empty(device="cpu")
    model.load_state_dict(tensors)


def push(folder: Path, repo_id: str, private: bool, token: str | None, message: str) -> str:
    """Upload a folder as a model repository of the hub, which is made if need be; returns its address.

    Raises:
        UserError: The hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, repo_type="model")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repo_id}: the hub refuses ({' '.join(str(error).split())[:200]})") from error
    return str(address)


def _few(keys: list[str], most: int = 5) -> str:
    shown = ", ".join(keys[:most])
    return f"{shown} and {len(keys) - most} more" if len(keys) > most else shown
