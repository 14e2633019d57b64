"""Training from the weights of another tokenizer; times that become uniform; statistics of published tokenizers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vavae.data import LatentDataset
from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.flow import FlowConfig, TimeDistribution
from vavae.losses import ObjectiveConfig, TokenizerObjective
from vavae.losses.adversarial import AdversarialConfig, DiscriminatorConfig
from vavae.models import Generator, Tokenizer
from vavae.stages import encode, train_dit
from vavae.stages.initial import load_initial
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL, LatentStatistics
from vavae.training.checkpoint import CheckpointFolder
from vavae.training.trainer import TrainingConfig
from vavae.transformer import LightningDiT, LightningDiTConfig

SHAPE = AutoencoderConfig(4, 16, (1, 2), 1, attention_levels=(1,))
OBJECTIVE = ObjectiveConfig(adversarial=AdversarialConfig(discriminator=DiscriminatorConfig(8, 2)))


def make(seed: int, shape: AutoencoderConfig = SHAPE) -> tuple[AutoencoderKL, TokenizerObjective]:
    torch.manual_seed(seed)
    objective = TokenizerObjective(OBJECTIVE, shape.latent_channels, 12, nn.Identity())  # type: ignore[arg-type]
    return AutoencoderKL(shape), objective


def same(a: nn.Module | None, b: nn.Module | None) -> bool:
    assert a is not None and b is not None
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def as_run_folder(folder: Path, autoencoder: nn.Module, objective: nn.Module, wanted: int = 100) -> None:
    tensors = {f"model/autoencoder/{name}": value for name, value in autoencoder.state_dict().items()}
    tensors |= {f"model/objective/{name}": value for name, value in objective.state_dict().items()}
    checkpoints = CheckpointFolder(folder / "checkpoints")
    checkpoints.save(100, tensors, {"images_seen": 100})
    (folder / "recipe.yaml").write_text(f"training: {{images: {wanted}}}\n")
    assert checkpoints.load_newest() is not None


def as_published_checkpoint(path: Path, autoencoder: nn.Module, objective: TokenizerObjective) -> None:
    assert objective.discriminator is not None and objective.alignment is not None
    state = dict(autoencoder.state_dict())
    state |= {f"loss.discriminator.{name}": value for name, value in objective.discriminator.state_dict().items()}
    state["linear_proj.weight"] = objective.alignment.linear_proj.weight.detach()
    state["loss.logvar"] = torch.zeros(())
    torch.save({"state_dict": state}, path)


@pytest.mark.parametrize("form", ["run", "published", "tokenizer", "generator"])
def test_starting_weights(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier, earlier_terms = make(0)
    source = tmp_path / "source"
    if form == "run":
        as_run_folder(source, earlier, earlier_terms)
    elif form == "published":
        source = tmp_path / "stage1.ckpt"
        as_published_checkpoint(source, earlier, earlier_terms)
    else:
        tokenizer = Tokenizer(earlier, LatentStatistics(torch.zeros(4), torch.ones(4)))
        if form == "generator":
            shape = LightningDiTConfig((4, 4), 1, 4, 32, 1, 2, num_classes=2)
            Generator(LightningDiT(shape), tokenizer).save_pretrained(source)
        else:
            tokenizer.save_pretrained(source)
    model, objective = make(1)
    fresh = make(1)[1]
    load_initial(str(source), model, objective)
    assert same(model, earlier)
    with_training = form in ("run", "published")
    assert same(objective.discriminator, (earlier_terms if with_training else fresh).discriminator)
    assert same(objective.alignment, (earlier_terms if with_training else fresh).alignment)
    assert ("autoencoder, discriminator, alignment" in capsys.readouterr().out) == with_training


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    as_run_folder(tmp_path / "run", *make(0))
    with pytest.raises(UserError, match=r"initial: .*has shape"):
        load_initial(str(tmp_path / "run"), *make(1, AutoencoderConfig(8, 16, (1, 2), 1, attention_levels=(1,))))
    with pytest.raises(UserError, match=r"^initial: .*no such file or folder"):
        load_initial(str(tmp_path / "absent"), *make(1))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^initial: .*empty must have an undamaged checkpoint"):
        load_initial(str(tmp_path / "empty"), *make(1))


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    as_run_folder(tmp_path / "run", *make(0), wanted=1200)
    with pytest.raises(UserError, match="and was stopped after 100 of 1,200 images: resume it"):
        load_initial(str(tmp_path / "run"), *make(1))


def test_times_become_uniform() -> None:
    flow, cpu = FlowConfig(uniform_after_images=1000), torch.device("cpu")
    early, late = torch.arange(0, 1000), torch.arange(1000, 9000)
    plain = FlowConfig()
    assert torch.equal(flow.draw_times(3, early, cpu), plain.draw_times(3, early, cpu))
    times = flow.draw_times(3, late, cpu).double().sort().values
    # Kolmogorov-Smirnov distance from uniform: below 1.63 / sqrt(n) in 99 of 100 seeds; logit-normal is 0.05 away.
    distance = (times - (torch.arange(len(times)) + 0.5) / len(times)).abs().max()
    assert distance < 1.63 / len(times) ** 0.5 < 0.03
    # A batch across the switch consists of both parts.
    both = flow.draw_times(3, torch.arange(990, 1010), cpu)
    assert torch.equal(both, torch.cat((flow.draw_times(3, early[990:], cpu), flow.draw_times(3, late[:10], cpu))))


def test_times_that_become_uniform_keep_their_shift() -> None:
    narrow = TimeDistribution(shift=0.25, low=0.1, high=0.9)
    positions, cpu = torch.arange(100), torch.device("cpu")
    late = FlowConfig(times=narrow, uniform_after_images=0).draw_times(3, positions, cpu)
    assert torch.equal(late, FlowConfig(times=replace(narrow, kind="uniform")).draw_times(3, positions, cpu))


def test_published_tokenizer_takes_statistics_of_latents(tmp_path: Path) -> None:
    """A file alone has no statistics: encoding and training accept it, and take the statistics of the latents."""
    autoencoder, _ = make(0)
    torch.save({"state_dict": autoencoder.state_dict()}, tmp_path / "vavae.pt")
    images = ImagesConfig("demo", 32, limit=16, workers=0)
    encode.run(
        encode.Config(tokenizer=str(tmp_path / "vavae.pt"), output=str(tmp_path / "latents"), data=images, device="cpu")
    )
    config = train_dit.Config(
        latents=str(tmp_path / "latents"),
        tokenizer=str(tmp_path / "vavae.pt"),
        output=str(tmp_path / "run"),
        transformer=train_dit.TransformerConfig(width=32, depth=1, heads=2, patch_size=4),
        training=TrainingConfig(images=8, batch_size=8, device="cpu", tensorboard=False),
    )
    generator = train_dit.run(config)
    assert generator.tokenizer.statistics.equals(LatentDataset(tmp_path / "latents").statistics)
