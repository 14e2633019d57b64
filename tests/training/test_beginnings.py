"""How runs of both stages start and resume: starting weights, the same data, inputs of validation."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import AUTOENCODER, tokenizer_recipe, transformer_recipe, use_tiny_teacher, write_latents

from vavae import rng
from vavae.cli import run
from vavae.data import LatentSettings, LatentWriter
from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.models import Tokenizer
from vavae.stages import train_dit, train_tokenizer
from vavae.tokenizer import AutoencoderKL, LatentStatistics
from vavae.training.checkpoint import CheckpointFolder
from vavae.training.run_log import read_metrics
from vavae.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _tiny_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_teacher(monkeypatch.setattr)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def data(latents: Path, tmp_path: Path) -> Path:
    return shutil.copytree(latents, tmp_path / "data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `first`, a tokenizer, and `run`, a run of 16 images that began with its weights."""
    folder = tmp_path_factory.mktemp("finished")
    torch.manual_seed(11)
    model = AutoencoderKL(AUTOENCODER)
    Tokenizer(model, LatentStatistics(torch.zeros(8), torch.ones(8)), {}).save_pretrained(folder / "first")
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_teacher(patch.setattr)
        train_tokenizer.run(replace(tokenizer_recipe(folder / "run", images=16), initial=str(folder / "first")))
    return folder


@pytest.fixture
def config(finished: Path, tmp_path: Path) -> train_tokenizer.Config:
    """The recipe of the finished run, in a copy of its folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return replace(tokenizer_recipe(tmp_path / "run", images=16), initial=str(tmp_path / "first"))


def first_weights(finished: Path) -> dict[str, torch.Tensor]:
    return Tokenizer.from_pretrained(finished / "first").autoencoder.state_dict()


@pytest.fixture(scope="module")
def whole(latents: Path) -> Path:
    """The folder of a transformer's run of 48 images."""
    train_dit.run(transformer_recipe(latents / "whole", latents, images=48))
    return latents / "whole"


def begun(config: train_tokenizer.Config) -> Trainer:
    """Return a run before its first step."""
    folder = Path(config.output)
    task = train_tokenizer.TokenizerTask(config, config.data.open("train"), folder)
    trainer = Trainer(task, config.training, folder)
    trainer._resume(trainer._found)
    return trainer


def begins_with(trainer: Trainer, weights: dict[str, torch.Tensor]) -> bool:
    live = trainer.task.modules["autoencoder"].state_dict()
    average = trainer.averaged_state("autoencoder")
    return all(torch.equal(live[name], value) and torch.equal(average[name], value) for name, value in weights.items())


@pytest.mark.parametrize("left", ["nothing", "a folder", "a half-written checkpoint"])
def test_starting_weights_load_without_a_good_checkpoint(left: str, finished: Path, tmp_path: Path) -> None:
    config = replace(tokenizer_recipe(tmp_path / "run", images=16), initial=str(finished / "first"))
    checkpoints = tmp_path / "run/checkpoints"
    if left != "nothing":
        (checkpoints / (".partial-000000000016" if "half" in left else "")).mkdir(parents=True)
    assert begins_with(begun(config), first_weights(finished))


@pytest.mark.slow
def test_run_with_damaged_checkpoints_does_not_start_over(
    config: train_tokenizer.Config, finished: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run/checkpoints"
    (newest,) = CheckpointFolder(checkpoints).list()
    (newest / "__0_0.distcp").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(UserError, match=r"all its checkpoints are damaged .* remove this folder to start over"):
            begun(config)
    shutil.rmtree(checkpoints)
    assert begins_with(begun(config), first_weights(finished))


@pytest.mark.slow
def test_checkpoint_overrides_starting_weights(config: train_tokenizer.Config, finished: Path, tmp_path: Path) -> None:
    """The folder of the starting weights may have been deleted by then."""
    shutil.rmtree(tmp_path / "first")
    trainer = begun(config)
    assert trainer.images_seen == 16 and not begins_with(trainer, first_weights(finished))


def stop_at(monkeypatch: pytest.MonkeyPatch, task: Any, images: int) -> None:
    """Let the next run of `task` end with KeyboardInterrupt after `images` images."""
    original = task.step

    def step(self: Any, batch: Any, images_seen: int, scale: float) -> Any:
        if images_seen >= images:
            monkeypatch.setattr(task, "step", original)
            raise KeyboardInterrupt
        return original(self, batch, images_seen, scale)

    monkeypatch.setattr(task, "step", step)


@pytest.mark.slow
def test_deleted_images_are_noticed_in_a_moved_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "pictures"
    for name in ("a", "b"):
        (pictures / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (60 * i, 0, 200)).save(pictures / name / f"{i}.png")
    recipe = tokenizer_recipe(tmp_path / "run", images=24, checkpoint_images=8)
    recipe = replace(recipe, data=replace(recipe.data, images=str(pictures), limit=None))
    stop_at(monkeypatch, train_tokenizer.TokenizerTask, 16)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer.run(recipe)
    (tmp_path / "run").rename(tmp_path / "moved")
    recipe = replace(recipe, output=str(tmp_path / "moved"))
    gone = pictures / "a/3.png"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(UserError, match=r"data\.images must name the data that the run in .*moved began with"):
        train_tokenizer.run(recipe)
    gone.write_bytes(content)
    train_tokenizer.run(recipe)
    assert (tmp_path / "moved/tokenizer/config.json").exists()


def other_latents(folder: Path) -> None:
    shutil.rmtree(folder)
    writer = LatentWriter(folder, 30, LatentSettings(image_size=8, class_names=("a", "b", "c")), 30)
    latents = rng.normal(1, "others", range(30), (8, 4, 4))
    writer.write(writer.missing()[0], [(latents, latents.flip(3), torch.arange(30) % 3)])
    writer.finish()


def replace_part(what: str, data: Path) -> None:
    """Write other latents, another decoder, or other statistics of the tokenizer."""
    if what == "latents":
        other_latents(data / "latents")
        return
    former = Tokenizer.from_pretrained(data / "tokenizer")
    statistics = LatentStatistics(torch.ones(8), 3 * torch.ones(8), 30)
    if what == "tokenizer":
        torch.nn.init.normal_(former.autoencoder.decoder.conv_out.weight)
        statistics = former.statistics
    Tokenizer(former.autoencoder, statistics, {}).save_pretrained(data / "tokenizer")


@pytest.mark.slow
def test_replaced_latents_or_tokenizer_are_refused(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    recipe = transformer_recipe(tmp_path / "run", data, images=24, checkpoint_images=8)
    recipe = replace(recipe, normalization="tokenizer")
    shutil.copytree(latents, data)
    stop_at(monkeypatch, train_dit.TransformerTask, 16)
    with pytest.raises(KeyboardInterrupt):
        train_dit.run(recipe)
    for what in ("latents", "tokenizer", "normalization"):
        shutil.rmtree(data)
        shutil.copytree(latents, data)
        replace_part(what, data)
        with pytest.raises(UserError, match=rf"^{what} must name the data that the run in .*run began with"):
            train_dit.run(recipe)
    (tmp_path / "run/data.json").unlink()  # older runs have no such file
    train_dit.run(recipe)
    assert (tmp_path / "run/data.json").exists()


@pytest.mark.slow
def test_transformer_micro_batch_may_change(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, train_dit.TransformerTask, 24)
    with pytest.raises(KeyboardInterrupt):
        train_dit.run(transformer_recipe(tmp_path / "parts", data, images=48))
    train_dit.run(transformer_recipe(tmp_path / "parts", data, images=48, micro_batch=3))
    one, other = read_metrics(whole), read_metrics(tmp_path / "parts")
    assert [line["images"] for line in one] == [line["images"] for line in other]
    for line, again in zip(one, other, strict=True):
        assert again["total"] == pytest.approx(line["total"], rel=1e-5)


@pytest.mark.slow
def test_tokenizer_micro_batch_may_not_change(config: train_tokenizer.Config, finished: Path) -> None:
    config = replace(config, initial=str(finished / "first"))
    with pytest.raises(UserError, match=r"micro_batch = None, not 4: adaptive weights and BatchNorm see one"):
        train_tokenizer.run(replace(config, training=replace(config.training, images=24, micro_batch=4)))


@pytest.mark.slow
def test_extended_run_equals_the_longer_run(data: Path, whole: Path, tmp_path: Path) -> None:
    for images in (24, 48):
        generator = train_dit.run(transformer_recipe(tmp_path / "grown", data, images=images))
        assert generator.provenance["images_seen"] == images
    states = [CheckpointFolder(folder / "checkpoints").load_newest() for folder in (whole, tmp_path / "grown")]
    assert states[0] is not None and states[1] is not None
    assert [name for name in states[0][0] if not torch.equal(states[0][0][name], states[1][0][name])] == []


def test_validation_latents_of_other_classes_are_refused(data: Path, tmp_path: Path) -> None:
    def refusal(name: str, classes: int = 6, **settings: Any) -> str:
        writer = LatentWriter(tmp_path / name, 6, LatentSettings(image_size=8, flips=False, **settings), 6)
        writer.write(writer.missing()[0], [(torch.randn(6, 8, 4, 4), None, torch.arange(6) % classes)])
        writer.finish()
        recipe = transformer_recipe(tmp_path / "run", data, validation_images=48)
        with pytest.raises(UserError) as refused:
            train_dit.run(replace(recipe, validation_latents=str(tmp_path / name)))
        assert not (tmp_path / "run/metrics.jsonl").exists()
        return str(refused.value)

    named = refusal("named", 6, class_names=("a", "dog", "c", "d", "e", "f"))
    assert named == f"validation_latents must have the classes of latents, got 'dog' for 'b' in {tmp_path / 'named'}"
    assert "must have the classes of latents, got 6 for 3 in" in refusal("more", class_names=tuple("abcdef"))
    unnamed = refusal("unnamed")
    assert unnamed.startswith("validation_latents must have classes below 3, as latents have, got 5 in")
    own = refusal("foreign", 3, class_names=("a", "b", "c"), tokenizer="another")
    assert own == f"validation_latents must be encoded by the tokenizer of latents, got {tmp_path / 'foreign'}"


MISSING = {
    "validation latents": (["--validation_latents", "no/such/folder"], "no/such/folder"),
    "network": (["--frechet.samples", "8", "--frechet.network", "no-such-network"], "no-such-network"),
    "reference": (["--frechet.samples", "8", "--frechet.reference", "no/such/images"], "no/such/images"),
}


@pytest.mark.parametrize("name", MISSING)
def test_validation_inputs_are_opened_before_the_first_step(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*arguments: Any) -> Any:
        raise AssertionError("it trains")

    monkeypatch.setattr(train_dit.TransformerTask, "step", step)
    options, named = MISSING[name]
    if name == "reference":
        from vavae.evaluation import validation
        from vavae.metrics import FeatureNetwork

        monkeypatch.setattr(
            validation, "load_feature_network", lambda name, device: FeatureNetwork(name, "none", device, lambda x: x)
        )
    common = ["--latents", f"{data}/latents", "--tokenizer", f"{data}/tokenizer", "--output", str(tmp_path / "run")]
    common += ["--transformer.size", "S/1", "--transformer.width", "32", "--transformer.heads", "2"]
    common += ["--training.device", "cpu", "--training.batch_size", "8", "--training.tensorboard", "false"]
    assert run(["train-dit", *common, "--training.validation_images", "32", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0]


def test_validation_images_are_opened_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set/train").mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(tmp_path / f"set/train/{i}.png")
    recipe = replace(
        tokenizer_recipe(tmp_path / "run", validation_images=64),
        data=ImagesConfig(str(tmp_path / "set"), size=16, workers=0),
    )
    monkeypatch.delattr(train_tokenizer.TokenizerTask, "step")
    monkeypatch.setattr(train_tokenizer.TokenizerTask, "__abstractmethods__", frozenset())
    with pytest.raises(UserError, match="has a train folder but none of test"):
        train_tokenizer.run(recipe)


def test_validation_latents_need_validation_images(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"validation_latents needs training\.validation_images"):
        replace(transformer_recipe(tmp_path, data), validation_latents=str(data / "latents"))


def test_guidance_of_more_channels_than_the_latents_have_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = transformer_recipe(tmp_path / "run", data)
    recipe = replace(recipe, sampling=replace(recipe.sampling, guidance_channels=99))
    with pytest.raises(UserError, match=r"guidance_channels must be at most \d+, got 99"):
        train_dit.run(recipe)


def test_missing_logger_is_reported_before_the_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for stage, task, recipe in (
        (train_tokenizer, "TokenizerTask", tokenizer_recipe(tmp_path / "tokenizer", loggers=("wandb",))),
        (train_dit, "TransformerTask", transformer_recipe(tmp_path / "generator", data, loggers=("wandb",))),
    ):
        monkeypatch.setattr(stage, task, lambda *_: pytest.fail("work was done"))
        with pytest.raises(UserError, match=r"^training\.loggers: wandb is not installed"):
            stage.run(recipe)
