"""Every command that writes much, on inputs so small that it ends in about a second, and faults while it writes."""

import contextlib
import hashlib
import io
import json
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import frontier_grid
from children import CONTEXT
from estimates import skip_estimates
from evaluate_models import color_network, make_generator, use_colors
from tiny_runs import joint_recipe, tokenizer_recipe, transformer_recipe, use_tiny_teacher, write_latents
from torch import Tensor, nn
from write_faults import full_from, killed_at, watched

from vavae.cli import run
from vavae.data.images import ImagesConfig
from vavae.evaluation import features
from vavae.frontier import cells
from vavae.models import Tokenizer
from vavae.stages import encode, evaluate, sample

# Two checkpoints, of which one is kept.
_IMAGES = {"images": 16, "checkpoint_images": 8, "log_images": 8, "preview_images": 16, "keep_checkpoints": 1}
_DATA = ImagesConfig("demo", 32, limit=12)


def _with_discriminator(recipe: Any) -> Any:
    """Return a recipe whose second step trains the discriminator."""
    adversarial = replace(recipe.objective.adversarial, start_images=8)
    return replace(recipe, objective=replace(recipe.objective, adversarial=adversarial))


def _sampling(folder: Path, inputs: Path) -> sample.Config:
    given = {"output": str(folder), "device": "cpu", "batch_size": 2, "npz": True}
    return sample.Config(generator=str(inputs / "generator"), count=4, **given)


def _evaluation(folder: Path, inputs: Path) -> evaluate.Config:
    outputs = {name: str(folder / name) for name in ("features", "reconstructions")}
    measured = {"network": "inception-colors", "latents": 12, "tsne_seeds": 0, "conventions": ["strict"]}
    model = [str(inputs / "generator/tokenizer")]
    return evaluate.Config(
        "tokenizer", model, _DATA, output=str(folder / "records.json"), device="cpu", **outputs, **measured
    )


def _encoding(folder: Path, inputs: Path) -> encode.Config:
    tokenizer = str(inputs / "generator/tokenizer")
    return encode.Config(tokenizer, str(folder), _DATA, shard_size=4, batch_size=4, device="cpu")


def _grid(folder: Path, inputs: Path) -> Any:
    return frontier_grid.grid_config(folder, *frontier_grid.ONE, "--kinds", "[tokenizer,generator]")


COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    "train-tokenizer": lambda folder, inputs: _with_discriminator(tokenizer_recipe(folder, **_IMAGES)),
    "encode": _encoding,
    "train-dit": lambda folder, inputs: transformer_recipe(folder, inputs, **_IMAGES),
    "train-joint": lambda folder, inputs: _with_discriminator(joint_recipe(folder, **_IMAGES)),
    "sample": _sampling,
    "evaluate": _evaluation,
    "frontier": _grid,
}


class _Difference(nn.Module):
    """A plain difference in place of LPIPS."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return (one - other).abs().mean((1, 2, 3))


def use_tiny_networks(set_attribute: Callable[[object, str, object], None] = setattr) -> None:
    """Let the commands load tiny networks in place of pretrained ones; `monkeypatch.setattr` undoes it."""
    skip_estimates()
    use_tiny_teacher(set_attribute)
    use_colors(set_attribute)
    set_attribute(features, "BLOCK", 5)
    set_attribute(cells, "load_feature_network", lambda name, device: color_network(device=device))
    set_attribute(cells, "LPIPS", SimpleNamespace(pretrained=lambda name: _Difference()))
    # The inputs stay the same, so these two read them once.
    set_attribute(sample, "open_generator", cache(sample.open_generator))
    set_attribute(encode, "Tokenizer", SimpleNamespace(from_pretrained=cache(Tokenizer.from_pretrained)))


def write_inputs(inputs: Path) -> Path:
    """Write latents, a tokenizer and a generator."""
    write_latents(inputs)
    make_generator().save_pretrained(inputs / "generator")
    return inputs


def call(name: str, folder: Path, inputs: Path) -> tuple[int, str]:
    """Run a command in this process; return its exit code and standard error."""
    config = COMMANDS[name](folder, inputs)
    import vavae.config

    parse = vavae.config.parse_command_line
    vavae.config.parse_command_line = lambda *_: config  # type: ignore[assignment]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            code = run([name])
    finally:
        vavae.config.parse_command_line = parse
    return code, errors.getvalue()


# Files with times, and with hashes of such files; only their names are compared.
_VARYING = {"timing.jsonl", ".metadata", "manifest.json", "README.md", "frontier.html", "index.json"}


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder by its path; times do not count."""
    return {str(path.relative_to(folder)): _hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _hash(path: Path) -> str:
    if path.name in _VARYING or path.suffix == ".seconds":
        return ""
    content = path.read_bytes()
    with contextlib.suppress(ValueError):  # of a damaged file
        if path.suffix == ".json":
            content = json.dumps(_timeless(json.loads(content))).encode()
        elif path.suffix == ".safetensors":  # the library's order of metadata is random
            length = 8 + int.from_bytes(content[:8], "little")
            content = json.dumps(json.loads(content[8:length]), sort_keys=True).encode() + content[length:]
    return hashlib.sha256(content).hexdigest()


def _timeless(value: Any) -> Any:
    """Return JSON without durations, and without the hashes that cover them."""
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in ("seconds", "hours", "sha256")}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Rehearsal:
    """An undisturbed call of a command, with which disturbed ones are compared."""

    name: str
    folder: Path
    inputs: Path
    points: list[str]  # its write points in order
    files: dict[str, str]  # hash of each file that it leaves in the folder

    def full_at(self, number: int) -> str | None:
        """Let the disk be full from a write on, and call again with space; return what is wrong, or None."""
        with full_from(self.folder, number) as points:
            code, error = call(self.name, self.folder, self.inputs)
        in_one_line = "vavae: " in error.splitlines()[-1] and "Traceback" not in error
        if len(points) >= number and (code != 1 or not in_one_line):
            return f"exit code {code}: {error[-2000:]}"
        return self.again()

    def killed_at(self, *numbers: int) -> str | None:
        """Kill the command at a write, and again at each call; then call once more; return what is wrong, or None."""
        for number in numbers:
            given = (self.name, str(self.folder), str(self.inputs), number)
            child = CONTEXT.Process(target=call_until_killed, args=given)
            child.start()
            child.join()
            if child.exitcode not in (0, -signal.SIGKILL):
                return f"exit code {child.exitcode}"
        return self.again()

    def again(self) -> str | None:
        """Call the command again, compare its files, and empty the folder; return what is wrong, or None."""
        code, error = call(self.name, self.folder, self.inputs)
        found = contents(self.folder)
        differing = [path for path in sorted(self.files.keys() | found) if self.files.get(path) != found.get(path)]
        shutil.rmtree(self.folder)
        return f"exit code {code}: {error[-2000:]}" if code else f"differs: {differing}" if differing else None


def rehearse(name: str, folder: Path, inputs: Path) -> Rehearsal:
    """Call a command, and empty the folder."""
    with watched(folder, lambda *_: None) as points:
        code, error = call(name, folder, inputs)
    assert code == 0, error
    found = contents(folder)
    shutil.rmtree(folder)
    return Rehearsal(name, folder, inputs, points, found)


def call_until_killed(name: str, folder: str, inputs: str, number: int) -> None:
    """Call a command in this child, which is killed before its write of that number."""
    use_tiny_networks()
    with watched(Path(folder), killed_at(number)):
        code, error = call(name, Path(folder), Path(inputs))
    sys.exit(error if code else 0)
