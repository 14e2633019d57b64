"""Which options of `vavae evaluate` concern which kind of measurement."""

from dataclasses import MISSING, fields
from typing import Any

from vavae.errors import UserError
from vavae.models.sampling import SamplingOptions

_GENERATED = ("generator", "samples")
# Options that concern some kinds only; `compare` reads two files and has one option of its own.
_KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("count", "label_protocol", "guidance_scales", "weak_model"), ("generator",)),
    **dict.fromkeys((field.name for field in fields(SamplingOptions)), ("generator",)),
    **dict.fromkeys(("conventions", "latents", "tsne_seeds", "teacher", "teacher_size"), ("tokenizer",)),
    **dict.fromkeys(("reference", "save_reference", "real_split", "metrics"), _GENERATED),
    "reconstructions": ("tokenizer",),
    "force": ("compare",),
}
_OF_COMPARE = ("what", "model", "force")


def refuse_unused(config: Any) -> None:
    """Refuse options of the `Config` of `vavae evaluate` that would change nothing.

    Raises:
        UserError: Names the first option that is not at its default and does not concern `what`.
    """
    for field in fields(config):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        known = config.what in _KINDS.get(field.name, (config.what,))
        used = field.name in _OF_COMPARE if config.what == "compare" else known
        if not used and getattr(config, field.name) != default:
            kinds = " and ".join(_KINDS.get(field.name, ("tokenizer", "generator", "samples")))
            raise UserError(f"{field.name} must be left out for {config.what}: it is an option of {kinds}")
