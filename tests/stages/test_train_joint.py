"""Joint training: which gradient reaches what, starting weights, the folder it writes, and the collapse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import joint_recipe, transformer_recipe, use_tiny_teacher
from torch import Tensor

from vavae.cli import run
from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.flow import FlowConfig
from vavae.models import Generator, SamplingConfig, Tokenizer
from vavae.stages import encode, train_dit, train_joint
from vavae.stages.joint_alignment import latent_statistics
from vavae.stages.train_tokenizer import TokenizerTask
from vavae.training.optimizer import OptimizerConfig
from vavae.training.run_log import read_metrics
from vavae.training.trainer import Trainer

Gradients = dict[str, Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 16 images."""
    folder = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_teacher(patch.setattr)
        train_joint.run(joint_recipe(folder / "run", images=16, preview_images=16))
    return folder / "run"


@pytest.fixture
def gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gradients]:
    """A function: gradients of one step, by module and parameter, of a recipe with changes."""
    use_tiny_teacher(monkeypatch.setattr)

    def compute(kind: type[TokenizerTask] = train_joint.JointTask, **changes: Any) -> Gradients:
        recipe = replace(joint_recipe(tmp_path), **changes)
        source = recipe.data.open("train")
        task = kind(recipe, source, tmp_path)
        task.step(next(iter(task.batches(32, 0))), 32, 1.0)
        named = [(f"{m}.{n}", p.grad) for m, module in task.modules.items() for n, p in module.named_parameters()]
        return {name: gradient for name, gradient in named if gradient is not None}

    return compute


def of(module: str, gradients: Gradients) -> Gradients:
    return {name: gradient for name, gradient in gradients.items() if name.startswith(module)}


def same(one: Gradients, other: Gradients) -> bool:
    assert one and one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_flow_loss_does_not_reach_the_tokenizer(gradients: Callable[..., Gradients]) -> None:
    plain, other = gradients(), gradients(flow=FlowConfig(direction_weight=9.0))
    assert same(of("autoencoder.", plain), of("autoencoder.", other))
    assert same(of("objective.discriminator.", plain), of("objective.discriminator.", other))
    assert not same(of("transformer.", plain), of("transformer.", other))
    through = gradients(flow_reaches_tokenizer=True)
    assert not same(of("autoencoder.encoder.", plain), of("autoencoder.encoder.", through))
    assert same(of("transformer.", plain), of("transformer.", through))


def test_alignment_reaches_the_encoder_only(gradients: Callable[..., Gradients]) -> None:
    off = train_joint.JointAlignmentConfig(
        block=1, projector=train_joint.ProjectorConfig(hidden=24), tokenizer_weight=0.0
    )
    plain, without, tokenizer = gradients(), gradients(alignment=off), gradients(TokenizerTask)
    assert same(of("autoencoder.", without), of("autoencoder.", tokenizer))
    assert same(of("objective.", without), of("objective.", tokenizer))
    assert not same(of("autoencoder.encoder.", plain), of("autoencoder.encoder.", without))
    assert same(of("autoencoder.decoder.", plain), of("autoencoder.decoder.", without))
    for module in ("objective.discriminator.", "transformer.", "alignment."):
        assert same(of(module, plain), of(module, without))


@pytest.mark.slow
@pytest.mark.parametrize("through", [True, False])
def test_latents_collapse_if_the_flow_loss_reaches_the_tokenizer(
    through: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow loss falls where latents are constant: their deviation shrinks; without it, it does not."""
    use_tiny_teacher(monkeypatch.setattr)
    recipe, fast = joint_recipe(tmp_path), OptimizerConfig("adamw", 4e-3, (0.9, 0.999), gradient_clip=1.0)
    recipe = replace(
        recipe,
        tokenizer=replace(recipe.tokenizer, latent_channels=4, base_channels=16),
        flow=FlowConfig(direction_weight=0.0),
        flow_reaches_tokenizer=through,
        optimizer=fast,
        transformer_optimizer=fast,
    )
    task = train_joint.JointTask(recipe, recipe.data.open("train"), tmp_path)
    trainer = Trainer(task, recipe.training, tmp_path)
    deviations = []
    for _, batch in zip(range(24), task.batches(0, 0), strict=False):
        terms = task.step(batch, 0, 1.0)
        deviations.append(terms["latent_std"].item())
        trainer._apply(terms)
    shrunk = deviations[-1] / deviations[0]
    assert shrunk < 0.2 if through else shrunk > 0.7


def test_result_and_log(trained: Path) -> None:
    generator = Generator.from_pretrained(trained / "generator")
    assert generator.num_classes == 10 and generator.latent_shape == (8, 4, 4)
    assert generator.provenance["images_seen"] == 16 and generator.tokenizer.provenance["teacher"] == "dinov2-large"
    lines = read_metrics(trained)
    assert {"flow", "projection", "tokenizer_projection", "latent_std", "nll", "gradient_norm/transformer"} <= set(
        lines[-1]
    )
    assert len(list((trained / "previews").iterdir())) == 1


def test_result_is_the_live_tokenizer_and_the_averaged_transformer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_teacher(monkeypatch.setattr)
    recipe = joint_recipe(tmp_path, images=16)
    task = train_joint.JointTask(recipe, recipe.data.open("train"), tmp_path)
    trainer = Trainer(task, recipe.training, tmp_path)
    trainer.run("joint")
    model = trainer.model()
    averages = {name: trainer.averaged_state(name) for name in task.averaged}
    assert model.tokenizer.statistics.equals(latent_statistics(averages["alignment"]))
    assert not torch.equal(averages["alignment"]["bn.running_var"], task.alignment.bn.running_var)
    for name, value in task.autoencoder.state_dict().items():
        assert torch.equal(model.tokenizer.autoencoder.state_dict()[name], value)
    for name, value in averages["transformer"].items():
        assert torch.equal(model.transformer.state_dict()[name], value)


def test_other_commands_take_the_result(trained: Path, tmp_path: Path) -> None:
    generator, latents = str(trained / "generator"), str(tmp_path / "latents")
    given = ["sample", generator, "--output", str(tmp_path / "drawn"), "--count", "2", "--steps", "2"]
    assert run([*given, "--device", "cpu"]) == 0
    assert len(list((tmp_path / "drawn").glob("0*.png"))) == 2
    data = ImagesConfig("demo", 8, limit=16, workers=0)
    encode.run(encode.Config(generator, latents, data, flips=False, device="cpu"))
    recipe = replace(transformer_recipe(tmp_path / "dit", tmp_path, images=8), tokenizer=generator, latents=latents)
    recipe = replace(recipe, normalization="tokenizer", flip=False)
    found = train_dit.run(recipe)
    own = Tokenizer.from_pretrained(generator)
    assert found.tokenizer.statistics.equals(own.statistics) and own.statistics.channels == 8


@pytest.mark.parametrize("form", ["folders", "run", "file"])
@pytest.mark.slow
def test_starting_weights(
    form: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task begins with them; with learning rate 0 they are the result of a run too."""
    use_tiny_teacher(monkeypatch.setattr)
    former = Generator.from_pretrained(trained / "generator")
    initial = {"folders": f"{trained}/generator", "run": str(trained), "file": str(tmp_path / "tokenizer.pt")}[form]
    torch.save({"state_dict": former.tokenizer.autoencoder.state_dict()}, tmp_path / "tokenizer.pt")
    still = OptimizerConfig("adamw", 0.0)
    recipe = replace(
        joint_recipe(tmp_path / "run", images=8),
        initial=initial,
        initial_transformer=str(trained) if form == "run" else f"{trained}/generator",
        optimizer=still,
        transformer_optimizer=still,
    )
    task = train_joint.JointTask(recipe, recipe.data.open("train"), tmp_path)
    assert task.begin() is not None
    std = task.alignment.bn.running_var.sqrt()
    wanted = torch.ones(8) if form == "file" else former.tokenizer.statistics.std
    torch.testing.assert_close(std, wanted)
    said = capsys.readouterr().out
    assert ("no statistics of the latents, so batch normalization starts at mean 0" in said) == (form == "file")
    assert f"initial_transformer: {len(former.transformer.state_dict())} of" in said
    begun: list[torch.nn.Module] = [task.transformer, task.autoencoder]
    if form == "run":
        found = train_joint.run(recipe)
        assert found.provenance["initial"] == initial
        begun += [found.transformer, found.tokenizer.autoencoder]
    wanted_weights = former.transformer.state_dict(), former.tokenizer.autoencoder.state_dict()
    for network, weights in zip(begun, wanted_weights * 2, strict=False):
        assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alignment.block": 0}, "alignment.block must be at least 1, got 0"),
        ({"alignment.weight": -1.0}, "alignment.weight must be at least 0, got -1.0"),
        ({"objective.alignment.enabled": True}, "objective.alignment.enabled must be false for a joint training"),
        ({"transformer.size": "DiTDH-S"}, "transformer.size must be a LightningDiT for a joint training, got DiTDH-S"),
        ({"transformer.label_dropout": 0, "sampling.guidance_scale": 2}, "sampling.guidance_scale must be 1"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    import vavae

    with pytest.raises(UserError, match=message):
        vavae.train_joint(None, **settings)


def test_mistakes_come_before_the_work_of_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenizerTask, "_load_teacher", lambda _: pytest.fail("the teacher is loaded"))
    recipe = joint_recipe(tmp_path)
    block = replace(recipe, alignment=train_joint.JointAlignmentConfig(block=3))
    with pytest.raises(UserError, match=r"alignment\.block must be at most transformer\.depth 2, got 3"):
        train_joint.JointTask(block, recipe.data.open("train"), tmp_path)
    internal = replace(recipe, sampling=SamplingConfig(guidance_scale=2.0, guidance_kind="internal"))
    with pytest.raises(UserError, match="guidance_kind must not be internal"):
        train_joint.JointTask(internal, recipe.data.open("train"), tmp_path)
