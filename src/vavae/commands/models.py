"""List the models with short names, or show one."""

from dataclasses import dataclass

from vavae.checkpoints.registry import MODELS, NOT_PUBLISHED, KnownModel, get_model, guidance_in_words

_HEADS = {"generator": "GENERATORS", "tokenizer": "TOKENIZERS"}
_ROW = "{:<38} {:>7} {:>10} {:>6}  {}"


@dataclass(frozen=True)
class Config:
    """List models by the short names that every command and `from_pretrained` take, or show one.

    Attributes:
        name: Model to show in full; null lists all.
    """

    name: str | None = None


def run(config: Config) -> None:
    """Print the table of models, or all that is known about one.

    Raises:
        UserError: No model has the name; the message has the nearest one.
    """
    if config.name is not None:
        _show(get_model(config.name))
        return
    for kind, head in _HEADS.items():
        print(_ROW.format(head, "latents", "parameters", "MB", "license"))
        for model in MODELS:
            if model.kind == kind:
                size = f"{model.parameters / 1e6:,.1f} M"
                print(_ROW.format(model.name, model.latents, size, f"{model.megabytes:,.0f}", model.license))
                for line in _below(model):
                    print(f"    {line}")
    print("\nMB: of the weights in float32. 'vavae models NAME' shows one model in full.")
    print(f"Statistics {NOT_PUBLISHED}: 'vavae encode --tokenizer NAME' measures them.")


def _below(model: KnownModel) -> list[str]:
    """Return the lines below a model's row."""
    if model.kind == "tokenizer":
        return [f"{model.hub_id}; statistics {model.statistics}"]
    sampling = f"{model.sampling['steps']} steps, {guidance_in_words(model.sampling)}"
    if not model.tokenizer:
        return [f"in the package with its tokenizer; {sampling}"]
    return [model.hub_id, f"tokenizer {model.tokenizer}", sampling]


def _show(model: KnownModel) -> None:
    statistics = (get_model(model.tokenizer) if model.tokenizer else model).statistics
    if statistics == NOT_PUBLISHED:
        statistics += "; 'vavae encode' measures them"
    rows = {
        "kind": model.kind,
        "hub": model.hub_id or "in the package",
        "file": model.file,
        "latents": model.latents,
        "statistics": statistics,
        "teacher": model.teacher,
        "license": model.license,
        "parameters": f"{model.parameters:,} ({model.megabytes:,.0f} MB in float32)",
        "published": model.published,
        "Python": f'vavae.{model.kind.title()}.from_pretrained("{model.name}")',
        "command": f"vavae encode --tokenizer {model.name}",
    }
    if model.kind == "generator":
        sampling = model.sampling
        rows |= {
            "command": f"vavae sample {model.name}",
            "tokenizer": model.tokenizer or "in the same folder",
            "sampling": f"{sampling['solver']}, {sampling['steps']} steps, shift {sampling['shift']}",
            "guidance": guidance_in_words(model.sampling),
            "flow": f"{model.path} path, predicts {model.prediction}",
        }
    print(f"{model.name}: {model.description}")
    for key, value in rows.items():
        if value:
            print(f"  {key:<11} {value}")
