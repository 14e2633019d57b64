"""Read and write model folders: `config.json`, `model.safetensors`, `statistics.safetensors`, `README.md`.

`config.json` holds the sha256 of the other files and of itself, which are compared whenever the folder is read.
`form_of` also recognizes the other forms of a path: published files, folders of diffusers, latents.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vavae.checkpoints.reading import check_finite, check_tensors, check_utf8
from vavae.data.moments import holds_moments
from vavae.errors import UserError
from vavae.io.files import (
    UNFINISHED,
    check_hash,
    drop_drafts,
    naming,
    parse_json,
    read_json_object,
    sha256_file,
    write_json,
    written_whole,
)

CONFIG, WEIGHTS, STATISTICS, CARD = "config.json", "model.safetensors", "statistics.safetensors", "README.md"
PIPELINE = "model_index.json"
RAE_STATISTICS = "stat.pt"
DIFFUSERS_RAE = "AutoencoderRAE"
_DIFFUSERS = ("AutoencoderKL", "AutoencoderKLFlux2", DIFFUSERS_RAE)  # classes that are read
DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")

HASHES = "sha256"  # key of `config.json`
# The files that have their sha256 there, by the kind of model.
_HASHED = {"tokenizer": (WEIGHTS, STATISTICS), "generator": (WEIGHTS,)}
_MARK = "vavae"  # key of the metadata of our weights; its value is the kind of model

Form = Literal["tokenizer", "generator", "diffusers", "pipeline", "latents", "moments", "checkpoint", "recipe"]
# The part of a model to fetch from the hub.
Part = Literal["tokenizer", "transformer", "generator"]


class HubOptions(TypedDict, total=False):
    """Options for fetching a model from the hub, with the names and meanings of `huggingface_hub`.

    Attributes:
        revision: Branch, tag or commit; `owner/name@revision` means the same.
        token: Token of the hub; True for the stored one, False for none.
        cache_dir: Folder for fetched files.
        local_files_only: Use only files that were fetched before.
        force_download: Fetch files again.
        subfolder: A folder within the repository, or within a local folder.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool
    subfolder: str | None


def form_of(path: Path) -> Form:
    """Return the form of a file or folder, by its name and the names in it.

    Raises:
        UserError: A folder has an unknown form, or was not completely written.
    """
    if path.is_file():
        return "recipe" if path.suffix in (".yaml", ".yml") else "checkpoint"
    if (path / PIPELINE).is_file():
        read_pipeline(path)
        return "pipeline"
    if (path / CONFIG).is_file():
        config = _read_json(path / CONFIG)
        kind = config.get("kind")
        if kind in ("tokenizer", "generator"):
            return kind
        if config.get("_class_name") in _DIFFUSERS:
            return "diffusers"
        found = str(kind or config.get("_class_name"))[:60]
        raise UserError(
            f"{path / CONFIG}: must describe a tokenizer or generator of vavae, or an autoencoder of diffusers of the "
            f"class {', '.join(_DIFFUSERS[:-1])} or {_DIFFUSERS[-1]}, got {found}"
        )
    if (path / UNFINISHED).is_file():
        raise UserError(f"{path}: was not completely written; write it again")
    if any(path.glob("latents*_shard*.safetensors")):
        return "latents"
    if holds_moments(path):
        return "moments"
    if published_file(path) is not None:
        return "checkpoint"
    raise UserError(f"{path}: must have {CONFIG}, a checkpoint or latents")


def describe_form(form: Form) -> str:
    """Return a form with its article, for messages."""
    articles: dict[Form, str] = {"latents": "", "moments": "", "diffusers": "an autoencoder of "}
    return articles.get(form, "a ") + form


def refuse_unused(source: Path, /, **options: object) -> Form:
    """Refuse options for published checkpoints if the source has another form, and return its form.

    Raises:
        UserError: An option is neither None nor "auto".
    """
    form = form_of(source)
    for name, value in options.items():
        if form != "checkpoint" and value not in (None, "auto"):
            raise UserError(f"{name} is for published checkpoints, not for {source} ({form}), got {value!r}")
    return form


def holds_generator(path: Path) -> bool:
    """Return whether a path holds a generator, ours or one exported for diffusers, by `form_of`."""
    form = form_of(path)
    return form == "generator" or (form == "pipeline" and "sampling" in read_pipeline(path))


def subfolder(folder: Path, name: str) -> Path:
    """Return a folder within a local one; `resolve` could take its path for the name of a repository of the hub.

    Raises:
        UserError: It is missing.
    """
    path = folder / name
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; {folder} is incomplete without it")
    return path


def published_file(folder: Path) -> Path | None:
    """Return the checkpoint in a published folder, or None.

    Raises:
        UserError: It has several.
    """
    found = published_files(path.name for path in folder.iterdir())
    if len(found) > 1:
        raise UserError(f"{folder}: several checkpoints; name one of {', '.join(found[:5])}")
    return folder / found[0] if found else None


def published_files(names: Iterable[str]) -> list[str]:
    """Return the names of checkpoints among names of files; statistics and REPA-E's discriminators do not count."""
    found = [n for n in sorted(names) if Path(n).suffix in CHECKPOINT_SUFFIXES and not is_statistics(n)]
    return [n for n in found if not n.endswith("-discriminator-ckpt.pt")]


def is_statistics(name: str) -> bool:
    """Return whether a file is named as statistics, such as `latents_stats_sdvae.pt`, `NAME-latents-stats.pt`."""
    stem, known = Path(name).stem, {Path(own).stem for own in (STATISTICS, RAE_STATISTICS)}
    return stem in known or name.startswith("latents_stats") or stem.endswith("-latents-stats")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_config(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Return `config.json` of a folder, and check its `kind` if one is given.

    Raises:
        UserError: It is missing, damaged, or of another kind.
    """
    path = folder / CONFIG
    config = _read_json(path)
    if kind is not None and config.get("kind") != kind:
        raise UserError(f"{path}: kind must be {kind}, got {str(config.get('kind'))[:60]}")
    return config


def read_model(folder: Path, kind: Literal["tokenizer", "generator"]) -> dict[str, Any]:
    """Return `config.json` of a model of ours, after comparing the sha256 of all files.

    Raises:
        UserError: It is missing, changed, or of another kind; or a file is missing or damaged.
    """
    path, config = folder / CONFIG, read_config(folder, kind)
    hashes = config.get(HASHES)
    if not isinstance(hashes, dict) or hashes.keys() != {CONFIG, *_HASHED[kind]}:
        raise UserError(f"{path}: {HASHES} must list {', '.join((*_HASHED[kind], CONFIG))}; write the folder again")
    digest = _digest(config)
    if hashes[CONFIG] != digest:
        raise UserError(
            f"{path}: changed since it was written. If you changed it, set {CONFIG} under its {HASHES} to {digest}; "
            "otherwise write the folder again"
        )
    for name in _HASHED[kind]:
        check_hash(folder / name, hashes[name], "write the folder again")
    return config


def signed(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the sha256 of the folder's files and of itself."""
    hashes = {name: sha256_file(folder / name) for name in _HASHED[config["kind"]]}
    whole = {**config, HASHES: hashes}
    return {**config, HASHES: {**hashes, CONFIG: _digest(whole)}}


def _digest(config: dict[str, Any]) -> str:
    """Return the sha256 of a configuration without this number itself, in one order of keys."""
    others = {name: value for name, value in config[HASHES].items() if name != CONFIG}
    return hashlib.sha256(json.dumps({**config, HASHES: others}, sort_keys=True).encode()).hexdigest()


def read_pipeline(folder: Path) -> dict[str, Any]:
    """Return `model_index.json` of a folder of diffusers."""
    return _read_json(folder / PIPELINE)


def state_dict_for_saving(model: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the state dict, converted to `dtype` if one is given.

    Raises:
        UserError: A weight is too large for `dtype`, or `dtype` is not a type of weights.
    """
    tensors = model.state_dict()
    if dtype is None:
        return tensors
    check_finite(tensors, "weights")
    return {name: _narrow(name, value, dtype) for name, value in tensors.items()}


@torch.no_grad()
def hold_in(dtype: torch.dtype | None, *networks: nn.Module) -> None:
    """Convert the weights of networks to `dtype`, if one is given; their tables of positions stay float32.

    Raises:
        UserError: A weight is too large for `dtype`, or `dtype` is not a type of weights; nothing is converted.
    """
    if dtype is not None:
        weights = [named for network in networks for named in network.named_parameters()]
        narrow = [_narrow(name, weight.data, dtype) for name, weight in weights]
        for (_, weight), value in zip(weights, narrow, strict=True):
            weight.data = value


def _narrow(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    kind = str(dtype).removeprefix("torch.")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UserError(f"dtype must be float32, float16 or bfloat16, got {kind}")
    narrow = value.to(dtype)
    if not bool(narrow.isfinite().all()):
        raise UserError(f"{name} is too large for {kind}; take bfloat16")
    return narrow


@contextmanager
def write_model_folder(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Write `config.json`, which marks a folder as complete, after the block.

    The `config.json` of an older model is removed first, so that a mixture of two models is not taken for one, and so
    is what killed processes left half written.

    Raises:
        UserError: The folder's path is not UTF-8.
    """
    check_utf8(folder)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        drop_drafts(folder)
        (folder / UNFINISHED).touch()
        (folder / CONFIG).unlink(missing_ok=True)
        yield
        write_json(folder / CONFIG, signed(folder, config))
        (folder / UNFINISHED).unlink()


def write_tensors(path: Path, tensors: dict[str, Tensor], kind: str | None = None) -> None:
    """Write a safetensors file, completely or not at all; `kind` marks the weights of a model folder of ours."""
    check_utf8(path)
    # Other libraries refuse a file without the format in its metadata.
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with written_whole(path) as temporary:
        save_file(plain, temporary, metadata={"format": "pt"} | ({_MARK: kind} if kind else {}))
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, so that equal models give equal files: the library's order is random."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length).decode())
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))  # the header is padded with spaces


def refuse_part(path: Path) -> None:
    """Refuse the weights of a model folder of ours: they need the configuration.

    Raises:
        UserError: The file has the mark of `write_tensors`.
    """
    try:
        with safe_open(path, "pt") as file:
            kind = (file.metadata() or {}).get(_MARK)
    except (SafetensorError, OSError):
        return  # not a safetensors file, or a damaged one, which its reader will name
    if kind:
        raise UserError(
            f"{path}: the weights of a vavae {kind}, which is incomplete without its {CONFIG}; name the folder"
        )


def load_strictly(model: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Load a state dict into a model; a model on the meta device comes to the CPU.

    Weights in half precision are widened.

    Raises:
        UserError: Names missing and extra keys, wrong shapes, or weights that are not finite.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing or extra:
        parts = [f"{word} {_first(keys)}" for word, keys in (("missing", missing), ("extra", extra)) if keys]
        raise UserError(f"{source}: {'; '.join(parts)}")
    check_tensors(tensors, source)
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            raise UserError(f"{source}: {name} has shape {tuple(value.shape)}, not {tuple(expected[name].shape)}")
        if value.dtype == torch.float64:
            raise UserError(f"{source}: {name} is float64, which a float32 network would round")
    check_finite(tensors, source)
    on_meta = next(model.parameters()).is_meta
    if on_meta:  # copies, since a file on the disk may back the tensors
        order = torch.contiguous_format
        tensors = {n: t.to(torch.float32, copy=True, memory_format=order) for n, t in tensors.items()}
    model.load_state_dict(tensors, assign=on_meta)


def _first(keys: list[str], most: int = 5) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
