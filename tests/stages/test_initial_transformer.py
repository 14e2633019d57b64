"""`vavae train-dit --initial`: training from the weights of another transformer, own or published."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import workers
from tiny_runs import AUTOENCODER, transformer_recipe, write_latents

from vavae.cli import run
from vavae.errors import UserError
from vavae.flow import FlowConfig
from vavae.models import Generator, Tokenizer
from vavae.stages import train_dit
from vavae.stages.initial import load_initial_transformer
from vavae.tokenizer import AutoencoderKL, LatentStatistics
from vavae.training.optimizer import OptimizerConfig
from vavae.transformer import LightningDiT, LightningDiTConfig

TINY = LightningDiTConfig(4, 1, 8, 32, 2, 2, num_classes=3)
IDENTITY = LatentStatistics(torch.zeros(8), torch.ones(8))
TABLE = "y_embedder.embedding_table.weight"
FIRST = ("x_embedder.proj.weight", "x_embedder.proj.bias")
LAST = ("final_layer.linear.weight", "final_layer.linear.bias")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def trained(**shape: Any) -> LightningDiT:
    """Return a transformer in which no parameter is zero, as after training."""
    torch.manual_seed(3)
    model = LightningDiT(replace(TINY, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def published(path: Path, model: LightningDiT, **more: Any) -> str:
    """Write a training checkpoint; its weights that are not averaged differ from the averaged ones."""
    state = dict(model.state_dict())
    torch.save({"model": {name: value + 1 for name, value in state.items()}, "ema": state, **more}, path)
    return str(path)


def generator_of(model: LightningDiT, folder: Path, **more: Any) -> str:
    """Write a generator's folder with a tokenizer that has as many channels."""
    channels = model.config.latent_channels
    tokenizer = AutoencoderKL(replace(AUTOENCODER, latent_channels=channels, base_channels=32))  # 32 for diffusers
    statistics = more.pop("statistics", LatentStatistics(torch.zeros(channels), torch.ones(channels)))
    Generator(model, Tokenizer(tokenizer, statistics), **more).save_pretrained(folder)
    return str(folder)


def still(folder: Path, data: Path, initial: str, **training: Any) -> train_dit.Config:
    """Return a recipe of learning rate 0, which ends with its initial weights."""
    recipe = transformer_recipe(folder, data, images=8, **training)
    return replace(recipe, initial=initial, optimizer=OptimizerConfig(learning_rate=0.0))


def test_samples_equal_those_of_the_initial_model(data: Path, tmp_path: Path) -> None:
    model = trained()
    source = published(tmp_path / "dit.pt", model)
    tuned = train_dit.run(still(tmp_path / "run", data, source))
    first = Generator.from_pretrained(source, tokenizer=tuned.tokenizer)
    before, images = (model([0, 1, 2], seed=5, output_type="pt", steps=5) for model in (first, tuned))
    assert torch.equal(before, images)
    assert float(images.std()) > 0.1
    assert tuned.provenance["initial"] == source


@pytest.mark.parametrize("form", ["generator", "run", "pipeline", "safetensors"])
def test_every_form_is_read(form: str, tmp_path: Path) -> None:
    model = trained()
    source = tmp_path / "source"
    if form == "safetensors":
        from safetensors.torch import save_file

        source = tmp_path / "dit.safetensors"
        save_file(model.state_dict(), source)
    elif form == "pipeline":
        generator_of(model, tmp_path / "plain")
        Generator.from_pretrained(tmp_path / "plain").save_diffusers(source)
    elif form == "run":
        (source / "checkpoints").mkdir(parents=True)
        generator_of(model, source / "generator")
    else:
        generator_of(model, source)
    tuned, count = LightningDiT(TINY), len(model.state_dict())
    report = load_initial_transformer(str(source), tuned, FlowConfig(), IDENTITY)
    assert report.splitlines()[0] == f"initial: {count} of {count} tensors from {source}"
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in tuned.state_dict().items())


def test_ten_classes_become_three(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(num_classes=10)
    source = published(tmp_path / "dit.pt", model)
    tuned = train_dit.run(still(tmp_path / "run", data, source))
    report = capsys.readouterr().out
    count = len(model.state_dict())
    line = (
        f"initial: {count - 1} of {count} tensors from {source}; "
        'new: y_embedder.embedding_table (3 classes, has 10 classes; its row of "no label" is taken)\n'
    )
    assert line in report and (tmp_path / "run/initial.txt").read_text().startswith(line)
    old, new = model.state_dict(), tuned.transformer.state_dict()
    assert [name for name in old if name != TABLE and not torch.equal(old[name], new[name])] == []
    assert torch.equal(new[TABLE][-1], old[TABLE][-1]) and not torch.equal(new[TABLE][:3], old[TABLE][:3])


def load_into(shape: LightningDiTConfig, source: str) -> tuple[LightningDiT, str]:
    """Load a source into a new transformer; return it and the report."""
    model = LightningDiT(shape)
    return model, load_initial_transformer(source, model, FlowConfig(), IDENTITY)


def test_a_class_token_is_added_and_left_out(tmp_path: Path) -> None:
    with_token = replace(TINY, class_token=6)
    tuned, report = load_into(with_token, published(tmp_path / "plain.pt", trained()))
    assert "pos_embed (grid 4x4 and a class token, has grid 4x4; recomputed)" in report
    assert report.splitlines()[0].endswith("recomputed), cls_projectors2, wg_norm, final_layer.linear_cls")
    assert tuned.pos_embed.shape == (1, 17, TINY.width)
    source = generator_of(trained(class_token=6), tmp_path / "generator")
    plain, report = load_into(TINY, source)
    assert "initial: left out: cls_projectors2, wg_norm, final_layer.linear_cls" in report
    assert torch.equal(plain.x_embedder.proj.weight, trained(class_token=6).x_embedder.proj.weight)


def test_an_auxiliary_head_is_added_and_left_out(tmp_path: Path) -> None:
    head = "auxiliary_head.norm_final, auxiliary_head.linear, auxiliary_head.adaLN_modulation.1"
    tuned, report = load_into(replace(TINY, auxiliary_block=1), published(tmp_path / "plain.pt", trained()))
    assert report.splitlines()[0].endswith(f"; new: {head}")
    assert not tuned.auxiliary_head.linear.weight.any()  # as a network begins
    _, report = load_into(TINY, generator_of(trained(auxiliary_block=1), tmp_path / "generator"))
    assert f"initial: left out: {head}" in report and "; new" not in report


def test_four_channels_become_eight(tmp_path: Path) -> None:
    model = trained(latent_channels=4)
    tuned, report = load_into(TINY, published(tmp_path / "dit.pt", model))
    for layer in ("x_embedder.proj", "final_layer.linear"):
        assert f"{layer} (8 channels in patches of 1, has 4 channels in patches of 1)" in report
    old, new = model.state_dict(), tuned.state_dict()
    assert [name for name in old if old[name].shape == new[name].shape and not torch.equal(old[name], new[name])] == [
        FIRST[1]
    ]
    assert bool((new[FIRST[1]] == 0).all() & (new[LAST[0]] == 0).all())  # as a network begins


def test_positions_of_another_grid_are_computed(tmp_path: Path) -> None:
    model = trained(latent_size=8)
    tuned, report = load_into(TINY, published(tmp_path / "dit.pt", model))
    for layer in ("pos_embed", "feat_rope"):
        assert f"{layer} (grid 4x4, has grid 8x8; recomputed)" in report
    fresh, new = LightningDiT(TINY).state_dict(), tuned.state_dict()
    for name in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"):
        assert torch.equal(new[name], fresh[name])
    assert torch.equal(new[TABLE], model.state_dict()[TABLE])


def test_outputs_for_sigma_are_left_out(tmp_path: Path) -> None:
    model = trained(learn_sigma=True, rope=False).eval()
    tuned, report = load_into(replace(TINY, rope=False), published(tmp_path / "dit.pt", model))
    assert "initial: the outputs for sigma" in report
    x, t, y = torch.randn(2, 8, 4, 4), torch.rand(2), torch.tensor([0, 3])
    torch.testing.assert_close(tuned.eval()(x, t, y), model(x, t, y))


OTHERS = {
    "transformer.width": ({"width": 64, "heads": 4}, "transformer.width must be 64"),
    "transformer.depth": ({"depth": 3}, "transformer.depth must be 3"),
    "transformer.heads": ({"heads": 1}, "transformer.heads must be 1"),
    "transformer.rope": ({"rope": False}, "transformer.rope must be false"),
    "transformer.swiglu": ({"swiglu": False}, "transformer.swiglu must be false"),
    "transformer.rmsnorm": ({"rmsnorm": False}, "transformer.rmsnorm must be false"),
    "transformer.qk_norm": ({"qk_norm": True}, "transformer.qk_norm must be true"),
    "transformer.adaln_shift": ({"adaln_shift": False}, "transformer.adaln_shift must be false"),
}


@pytest.mark.parametrize("key", OTHERS)
def test_another_architecture_is_refused(key: str, tmp_path: Path) -> None:
    shape, message = OTHERS[key]
    source = published(tmp_path / "dit.pt", trained(**shape))
    with pytest.raises(UserError) as refused:
        load_into(TINY, source)
    got = json.dumps(getattr(TINY, key.removeprefix("transformer.")))
    assert str(refused.value).startswith(f"{message}, as in initial {source}")
    assert str(refused.value).endswith(f", got {got}")


def test_folder_is_free_after_a_refused_initial(data: Path, tmp_path: Path) -> None:
    assert command(data, tmp_path / "run", published(tmp_path / "dit.pt", trained(depth=3))) == 2
    assert command(data, tmp_path / "run", published(tmp_path / "other.pt", trained())) == 0


def command(data: Path, folder: Path, source: str, *options: str) -> int:
    given = ["--latents", f"{data}/latents", "--tokenizer", f"{data}/tokenizer", "--output", str(folder)]
    given += ["--transformer.size", "S/1", "--transformer.width", "32", "--transformer.depth", "2"]
    given += ["--transformer.heads", "2", "--training.images", "8", "--training.batch_size", "8"]
    given += ["--training.device", "cpu", "--training.tensorboard", "false", "--initial", source]
    return run(["train-dit", *given, *options])


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), [("path", "cosine"), ("prediction", "noise")])
def test_another_flow_is_refused(key: str, value: str, data: Path, tmp_path: Path) -> None:
    own = generator_of(trained(), tmp_path / "generator", **{key: value})
    transport = {"path_type": "GVP"} if key == "path" else {"prediction": "noise"}
    checkpoint = published(tmp_path / "dit.pt", trained(), config={"transport": transport})
    for source in (own, checkpoint):
        with pytest.raises(UserError, match=rf'^flow\.{key} must be "{value}", as in initial .*, got "'):
            train_dit.run(still(tmp_path / "run", data, source))
    recipe = replace(still(tmp_path / "run", data, own), flow=FlowConfig(**{key: value}))  # type: ignore[arg-type]
    assert getattr(train_dit.run(recipe), key) == value


@pytest.mark.parametrize("source", ["no/such/file.pt", "tokenizer", "half a run"])
def test_wrong_sources_are_one_line(
    source: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half a run/checkpoints").mkdir(parents=True)
    named = {"tokenizer": f"{data}/tokenizer", "half a run": str(tmp_path / "half a run")}.get(source, source)
    assert command(data, tmp_path / "run", named) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


@pytest.mark.slow
def test_resuming_does_not_need_the_initial_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = published(tmp_path / "dit.pt", trained())
    recipe = replace(transformer_recipe(tmp_path / "whole", data, images=32, checkpoint_images=8), initial=source)
    whole = train_dit.run(recipe)
    parts = replace(recipe, output=str(tmp_path / "parts"))
    original = train_dit.TransformerTask.step

    def step(self: Any, batch: Any, images_seen: int, scale: float) -> Any:
        if images_seen >= 24:
            raise KeyboardInterrupt
        return original(self, batch, images_seen, scale)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train_dit.TransformerTask, "step", step)
        train_dit.run(parts)
    shutil.move(source, tmp_path / "elsewhere.pt")
    report = (tmp_path / "parts/initial.txt").read_text()
    capsys.readouterr()
    resumed = train_dit.run(parts)
    assert "initial" not in capsys.readouterr().out and (tmp_path / "parts/initial.txt").read_text() == report
    first, second = whole.transformer.state_dict(), resumed.transformer.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(UserError, match=r"has a run with initial = .*dit\.pt, not None"):
        train_dit.run(replace(parts, initial=None))


@pytest.mark.slow
def test_warning_for_other_statistics(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Tokenizer.from_pretrained(data / "tokenizer").statistics  # mean 1, deviation 2, as the generator's
    source = generator_of(trained(), tmp_path / "generator", statistics=own)
    train_dit.run(still(tmp_path / "run", data, source))
    report = capsys.readouterr().out
    assert "initial: WARNING: its latents were normalized by other statistics" in report
    assert "mean 1 and deviation 2, here" in report and "--normalization tokenizer" in report

    def lines(source: str) -> list[str]:
        return load_initial_transformer(source, trained(), FlowConfig(), own).splitlines()

    assert len(lines(source)) == 1
    assert "the statistics that normalized its latents are unknown" in lines(published(tmp_path / "a.pt", trained()))[1]
    scaled = {"data": {"latent_norm": True, "latent_multiplier": 0.5}}
    for name, more, std in (("a.pt", {}, 2.0), ("b.pt", {"config": scaled}, 1.0)):
        folder = tmp_path / name.removesuffix(".pt")
        folder.mkdir()
        published(folder / name, trained(), **more)
        torch.save({"mean": torch.ones(1, 8, 1, 1), "std": torch.full((1, 8, 1, 1), std)}, folder / "latents_stats.pt")
        assert len(lines(str(folder))) == 1, name


def test_note_on_renamed_classes(tmp_path: Path) -> None:
    source = generator_of(trained(), tmp_path / "generator", class_names=("a", "dog", "c"))
    report = load_initial_transformer(source, trained(), FlowConfig(), IDENTITY, ("a", "b", "c"))
    assert report.splitlines()[1] == "initial: class 1 was 'dog' and is 'b': rows are taken by number"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_two_processes_have_the_same_initial_weights(
    parallel: str, launch: Callable[..., None], data: Path, tmp_path: Path
) -> None:
    model = trained(num_classes=10)
    source = published(tmp_path / "dit.pt", model)
    launch(2, "tuned_transformer", tmp_path / "run", data, source, parallel)
    new, old = Generator.from_pretrained(tmp_path / "run/generator").transformer.state_dict(), model.state_dict()
    assert [name for name in old if name != TABLE and not torch.equal(old[name], new[name])] == []


@pytest.mark.slow
def test_first_process_reports_a_wrong_source(launch: Callable[..., None], data: Path, tmp_path: Path) -> None:
    assert workers.tuned_transformer  # called in each process
    launch(2, "wrong_initial", tmp_path / "run", data)
