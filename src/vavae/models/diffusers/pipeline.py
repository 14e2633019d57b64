"""Write a generator as a folder for `diffusers.DiffusionPipeline`, and read its settings.

    model_index.json   components, sampling settings, class names
    pipeline.py        the pipeline's code: `exported_pipeline.py` and guidance in one file
    transformer/       weights, configuration, and `lightningdit.py`: the network's own modules in one file
    vae/               the tokenizer as diffusers' AutoencoderKL, its statistics in the configuration
    scheduler/         the configuration of diffusers' Euler scheduler

The code in the folder needs torch and diffusers, not this package. It is assembled from the sources of the
transformer room at export, so that a folder keeps the code of its weights.
"""

import ast
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from vavae.checkpoints import folder as files
from vavae.checkpoints.reading import check_utf8
from vavae.config import to_plain
from vavae.errors import UserError
from vavae.flow import PathName, Prediction, path_by_name
from vavae.io.files import write_json
from vavae.models.sampling import SamplingConfig, read_sampling
from vavae.models.tokenizer import Tokenizer
from vavae.tokenizer import AutoencoderKL
from vavae.transformer import LightningDiT, Transformer

_VERSION = "0.35.0"  # the oldest diffusers for the folder's code
# How to load a folder, for its card; a place for its path or id.
USAGE = (
    "```python\nfrom diffusers import DiffusionPipeline\n\n"
    'pipeline = DiffusionPipeline.from_pretrained("{}", trust_remote_code=True)\n'
    "images = pipeline(class_labels=[0, 1]).images\n```\n\n"
    "`trust_remote_code` runs the code in `pipeline.py` and `transformer/lightningdit.py`, which needs torch and "
    "diffusers. `vavae.Generator.from_pretrained` reads the folder without running it.\n"
)


def write_pipeline(
    folder: Path,
    transformer: Transformer,
    tokenizer: Tokenizer,
    sampling: Mapping[str, Any],
    path: PathName,
    prediction: Prediction,
    class_names: Sequence[str],
) -> None:
    """Write the folder. Its pipeline always takes Euler steps.

    Raises:
        UserError: diffusers cannot build such an autoencoder, the path does not run from 0 to 1, or the transformer is
            not a LightningDiT that predicts velocities for its labels alone.
    """
    if prediction != "velocity":
        raise UserError(f"prediction must be velocity for a pipeline of diffusers, got {prediction}")
    if not isinstance(transformer, LightningDiT):
        raise UserError("a pipeline of diffusers must have a LightningDiT, got a DiTDH")
    if not isinstance(tokenizer.autoencoder, AutoencoderKL):
        raise UserError("a pipeline of diffusers must have an AutoencoderKL, got a representation autoencoder")
    if transformer.config.class_token is not None:
        raise UserError(f"class_token must be null for a pipeline of diffusers, got {transformer.config.class_token}")
    if path_by_name(path).interval("velocity") != (0.0, 1.0):
        raise UserError(f"path must run from time 0 to 1 for the scheduler of diffusers, got {path}")
    check_utf8(folder)
    (folder / files.PIPELINE).unlink(missing_ok=True)  # written last: a mixture of two is not taken for a pipeline
    tokenizer.save_diffusers(folder / "vae")
    tensors = {f"network.{name}": value for name, value in transformer.state_dict().items()}
    files.write_tensors(folder / "transformer" / files.DIFFUSERS_WEIGHTS[0], tensors)
    shape = {"_class_name": "LightningDiTModel", "_diffusers_version": _VERSION, **to_plain(transformer.config)}
    del shape["class_token"]  # the exported network has none
    write_json(folder / "transformer" / files.CONFIG, shape)
    (folder / "transformer" / "lightningdit.py").write_text(transformer_source())
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    (folder / "pipeline.py").write_text(pipeline_source())
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
    write_json(folder / files.PIPELINE, index)


def read_settings(folder: Path) -> tuple[SamplingConfig, PathName, tuple[str, ...]]:
    """Return sampling settings, path and class names from a folder of `write_pipeline`.

    Raises:
        UserError: They are missing or damaged.
    """
    index, where = files.read_pipeline(folder), folder / files.PIPELINE
    sampling, names = index.get("sampling"), index.get("class_names", {})
    if not isinstance(sampling, dict):
        raise UserError(f"{where}: the key 'sampling' is missing; it is not a pipeline of a vavae generator")
    path = sampling.pop("path", "linear")
    numbers = [str(i) for i in range(len(names))]
    if not isinstance(names, dict) or names.keys() != set(numbers):
        raise UserError(f"{where}: class_names must be names by number from 0 on, got {str(names)[:60]}")
    return read_sampling(sampling, path, "velocity", where), path, tuple(names[number] for number in numbers)


def transformer_source() -> str:
    """Return the text of a module with the network and its class for diffusers; it needs torch and diffusers."""
    from vavae import errors, grids
    from vavae.transformer import blocks, layers, model, output, positions, routing, sizes

    title = "LightningDiT (arXiv 2501.01423) for diffusers: the modules of vavae that make it, one after the other."
    modules = (errors, grids, positions, layers, blocks, output, routing, sizes, model)
    return _joined(title, modules, "exported_transformer.py")


def pipeline_source() -> str:
    """Return the text of a module with guidance and the pipeline; it needs torch and diffusers."""
    from vavae import errors
    from vavae.flow import guidance

    title = "Class-conditional images from a LightningDiT exported by vavae."
    return _joined(title, (errors, guidance), "exported_pipeline.py")


def _joined(title: str, modules: Sequence[ModuleType], last: str) -> str:
    """Return a module with the text of others and of a file next to this one, and with all their imports."""
    parts = [_split_imports(inspect.getsource(module)) for module in modules]
    # Read as text: an import would need diffusers.
    parts.append(_split_imports(Path(__file__).with_name(last).read_text()))
    imports = sorted({line for part in parts for line in part[0]}, key=lambda line: (line.startswith("from"), line))
    title = f'"""{title}"""'
    return title + "\n\n" + "\n".join(imports) + "\n\n" + "\n\n".join(part[1].strip("\n") + "\n" for part in parts)


def _split_imports(source: str) -> tuple[list[str], str]:
    """Split a module into its imports of other packages, and its text without imports and docstring."""
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
