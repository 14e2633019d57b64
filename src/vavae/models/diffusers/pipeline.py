"""A generator as a folder that `diffusers.DiffusionPipeline` runs from, and back.

    model_index.json   components, sampling settings, class names
    pipeline.py        the pipeline's code: a copy of `exported_pipeline.py` of this room
    transformer/       weights, configuration, and `lightningdit.py`: the network's own modules in one file
    vae/               the tokenizer as diffusers' AutoencoderKL, its statistics in the configuration
    scheduler/         the configuration of diffusers' Euler scheduler

The code in the folder needs torch and diffusers only, so whoever receives the folder need not install this package.
It is assembled from the sources of the transformer room at the moment of export, so there is one LightningDiT to
maintain, and a folder keeps the code its weights were saved with.
"""

import ast
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vavae.checkpoints import folder as files
from vavae.config import to_plain
from vavae.errors import UserError
from vavae.flow import PathName, path_by_name
from vavae.models.sampling import SamplingConfig, read_sampling
from vavae.models.tokenizer import Tokenizer
from vavae.transformer import LightningDiT

_VERSION = "0.35.0"  # the oldest diffusers that the folder's code is meant for


def write_pipeline(
    folder: Path,
    transformer: LightningDiT,
    tokenizer: Tokenizer,
    sampling: Mapping[str, Any],
    path: PathName,
    class_names: Sequence[str],
) -> None:
    """Write the folder. Its pipeline takes Euler steps, whatever the solver in `sampling`.

    Raises:
        UserError: diffusers cannot build such an autoencoder, or the path does not run from 0 to 1.
    """
    if path_by_name(path).interval("velocity") != (0.0, 1.0):
        raise UserError(
            f"path: {path} does not run from time 0 to 1, which the scheduler of diffusers takes for granted"
        )
    (folder / files.PIPELINE).unlink(missing_ok=True)  # written last, so that no mixture of two counts as a pipeline
    tokenizer.save_diffusers(folder / "vae")
    tensors = {f"network.{name}": value for name, value in transformer.state_dict().items()}
    files.write_tensors(folder / "transformer" / files.DIFFUSERS_WEIGHTS[0], tensors)
    shape = {"_class_name": "LightningDiTModel", "_diffusers_version": _VERSION, **to_plain(transformer.config)}
    files.write_json(folder / "transformer" / files.CONFIG, shape)
    (folder / "transformer" / "lightningdit.py").write_text(transformer_source())
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
    }
    files.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    (folder / "pipeline.py").write_text(_source("vavae.models.diffusers.exported_pipeline"))
    index = {
        "_class_name": ["pipeline", "LightningDiTPipeline"],
        "_diffusers_version": _VERSION,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["lightningdit", "LightningDiTModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "sampling": {**sampling, "solver": "euler", "path": path},
        # diffusers takes lists for components, so names go in by number.
        "class_names": {str(i): name for i, name in enumerate(class_names)},
    }
    (folder / files.CARD).write_text(_card(transformer))
    files.write_json(folder / files.PIPELINE, index)


def read_settings(folder: Path) -> tuple[SamplingConfig, PathName, tuple[str, ...]]:
    """Return sampling settings, path and names of classes from a folder that `write_pipeline` wrote.

    Raises:
        UserError: They are not there, or damaged.
    """
    index, where = files.read_pipeline(folder), folder / files.PIPELINE
    sampling, names = index.get("sampling"), index.get("class_names", {})
    if not isinstance(sampling, dict):
        raise UserError(f"{where}: no key 'sampling'; it is not a pipeline of a vavae generator")
    path = sampling.pop("path", "linear")
    numbers = [str(i) for i in range(len(names))]
    if not isinstance(names, dict) or names.keys() != set(numbers):
        raise UserError(f"{where}: class_names must be names by number from 0 on, got {str(names)[:60]}")
    return read_sampling(sampling, path, "velocity", where), path, tuple(names[number] for number in numbers)


def transformer_source() -> str:
    """Return a module, as text, with the network and its class for diffusers; it needs torch and diffusers only."""
    from vavae import errors, grids
    from vavae.transformer import blocks, layers, model, positions, sizes

    parts = [_without_own_imports(module) for module in (errors, grids, positions, layers, blocks, sizes, model)]
    # Read, not imported: it needs diffusers.
    parts.append(_split_imports(_source("vavae.models.diffusers.exported_transformer")))
    imports = sorted({line for part in parts for line in part[0]}, key=lambda line: (line.startswith("from"), line))
    title = (
        '"""LightningDiT (arXiv 2501.01423) for diffusers: the modules of vavae that make it, one after the other."""'
    )
    return title + "\n\n" + "\n".join(imports) + "\n\n" + "\n\n".join(part[1].strip("\n") + "\n" for part in parts)


def _source(module: str) -> str:
    from importlib.util import find_spec

    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text()


def _without_own_imports(module: ModuleType) -> tuple[list[str], str]:
    return _split_imports(inspect.getsource(module))


def _split_imports(source: str) -> tuple[list[str], str]:
    """Split a module into its imports of other packages and its text without imports and docstring."""
    lines = source.splitlines()
    imports = []
    for node in ast.parse(source).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.lineno == 1
        if isinstance(node, ast.Import | ast.ImportFrom):
            if not (isinstance(node, ast.ImportFrom) and str(node.module).startswith("vavae")):
                imports.append(ast.unparse(node))
        elif not docstring:
            continue
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    return imports, "\n".join(lines)


def _card(transformer: LightningDiT) -> str:
    config = transformer.config
    return (
        "---\nlibrary_name: diffusers\ntags: [image-generation, flow-matching, LightningDiT]\n---\n\n"
        f"# LightningDiT, depth {config.depth}, width {config.width}, {config.num_classes} classes\n\n"
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("this folder or its hub id", trust_remote_code=True)\n'
        "images = pipeline(class_labels=[0, 1]).images\n```\n\n"
        "The code in `pipeline.py` and `transformer/lightningdit.py` is what `trust_remote_code` runs; it needs torch "
        "and diffusers. `vavae.Generator.from_pretrained` reads the folder without running it.\n"
    )
