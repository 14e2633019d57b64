"""Starting weights of a tokenizer training: from an earlier run, a tokenizer's folder, or a published checkpoint."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vavae.errors import UserError
from vavae.losses import TokenizerObjective
from vavae.pretrained import Tokenizer
from vavae.pretrained import folder as files
from vavae.pretrained.loading import load_autoencoder
from vavae.tokenizer import AutoencoderKL
from vavae.training.checkpoint import CheckpointFolder
from vavae.yaml_files import read_yaml

# Published names of what only training uses -> names in our objective.
_PUBLISHED = {"loss.discriminator.": "discriminator.", "linear_proj.": "alignment.linear_proj."}
_PARTS = ("discriminator", "alignment")


def load_initial(source: str, autoencoder: AutoencoderKL, objective: TokenizerObjective) -> None:
    """Fill `autoencoder`, and of `objective` what the source has: discriminator and projection.

    Args:
        source: The run folder of an earlier training, whose autoencoder, discriminator and projection go on; a
            folder, hub id or file that `Tokenizer.from_pretrained` reads (of published training checkpoints,
            discriminator and projection go on too).
        autoencoder: Its shape must be the source's.
        objective: Parts that the source lacks stay as they are.

    Raises:
        UserError: The source cannot be read, has another shape, or is a run that has not ended.
    """
    weights, training = _read(source)
    files.load_strictly(autoencoder, weights, f"initial: {source}")
    for part in _PARTS:
        module = getattr(objective, part)
        given = {n.removeprefix(f"{part}."): v for n, v in training.items() if n.startswith(f"{part}.")}
        if isinstance(module, nn.Module) and given:
            _load(module, given, f"initial: {source}: {part}")
    gone_on = [part for part in _PARTS if any(name.startswith(f"{part}.") for name in training)]
    print(f"initial: {source}: autoencoder{''.join(f', {part}' for part in gone_on)}")


def _load(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise UserError(f"{source}: {' '.join(str(error).split())[:300]}") from error


def _read(source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of the autoencoder, and tensors of the objective."""
    path = files.resolve(source)
    if (path / "checkpoints").is_dir():
        found = CheckpointFolder(path / "checkpoints").load_newest()
        if found is None:
            raise UserError(f"initial: {source} holds no good checkpoint")
        _check_ended(path, source, found[1].get("images_seen", 0))
        return _under(found[0], "model/autoencoder/"), _under(found[0], "model/objective/")
    if files.form_of(path) in ("tokenizer", "generator"):
        return Tokenizer.from_pretrained(path).autoencoder.state_dict(), {}
    loaded = load_autoencoder(path)
    training = {
        ours + name.removeprefix(theirs): value
        for name, value in loaded.training.items()
        for theirs, ours in _PUBLISHED.items()
        if name.startswith(theirs)
    }
    return loaded.model.state_dict(), training


def _check_ended(run: Path, source: str, seen: int) -> None:
    """Refuse a run that was stopped on its way: the stage after it would begin from other weights than meant.

    Raises:
        UserError: It has seen fewer images than its recipe says.
    """
    recipe = run / "recipe.yaml"
    if not recipe.exists():
        return
    try:
        wanted = int(read_yaml(recipe)["training"]["images"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{recipe} must hold the number training.images, which every run writes") from error
    if seen < wanted:
        raise UserError(
            f"initial: {source} was stopped after {seen:,} of {wanted:,} images: let it end first, by the command that "
            "began it"
        )


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
