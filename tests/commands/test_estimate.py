"""`vavae estimate`: its numbers are those of the run, of torch's own counter, and of the real teacher."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from aligned_runs import aligned_recipe, use_the_teacher, write_image_latents
from tiny_runs import joint_recipe, tokenizer_recipe, transformer_recipe, use_tiny_teacher, write_latents
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vavae.cli import run
from vavae.commands.estimate import Config, Estimate, estimate
from vavae.config import to_yaml
from vavae.data import LatentDataset
from vavae.models import Tokenizer
from vavae.stages import train_dit, train_joint, train_tokenizer
from vavae.stages.costs import vit_costs
from vavae.stages.hidden_alignment import Projectors
from vavae.teachers.registry import teacher_spec
from vavae.training.throughput import count_flops
from vavae.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("estimates")


def of(recipe: train_dit.Config | train_tokenizer.Config, folder: Path, **options: object) -> Estimate:
    (folder / "mine.yaml").write_text(to_yaml(recipe))
    return estimate(Config(recipe=str(folder / "mine.yaml"), **options))  # type: ignore[arg-type]


def state_of(found: Estimate) -> int:
    return sum(found.memory[part] for part in ("weights", "optimizer", "averages"))


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, 6])
def test_transformer_as_in_its_run(token: int | None, tmp_path: Path) -> None:
    data = write_latents(tmp_path / "data", class_channels=token or 0)
    recipe = transformer_recipe(tmp_path / "run", data, ema_decay=0.9, batch_size=16)
    recipe = replace(recipe, transformer=replace(recipe.transformer, depth=1, class_token=token))
    found = of(recipe, tmp_path, count=2)
    task = train_dit.TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))
    weights = sum(p.numel() for p in task.transformer.parameters())
    assert sum(found.parameters.values()) == weights and found.parameters["transformer.blocks"] > weights / 2
    assert found.memory["optimizer"] == 8 * weights and found.memory["gradients"] == 4 * weights
    assert found.images_at_once == found.gpus[0].images_at_once == 8  # a whole share of the batch
    assert found.memory["gradients"] + found.memory["activations"] == pytest.approx(task.step_bytes(8), rel=0.02)
    assert found.disk["latents"] == 30 * (8 * 4 * 4 + (token or 0)) * 4 * 2

    trainer = Trainer(task, recipe.training, tmp_path / "run")
    step = next(iter(task.batches(0, 0)))
    trainer._apply(trainer._gradients(step))  # makes the optimizer's slots
    saved = trainer._state.tensors({})
    counters = [name for name in saved if name.endswith("/step")]  # one number per parameter
    assert state_of(found) == sum(t.nbytes for t in saved.values()) - 4 * len(counters)

    x, t, y = torch.randn(1, 8, 4, 4), torch.rand(1), torch.zeros(1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if token is None:
            task.transformer(x, t, y).sum().backward()
        else:
            output = task.transformer(x, t, y, class_token=torch.randn(1, token))
            (output.prediction.sum() + output.class_token.sum()).backward()
    assert found.flops_per_image == counter.get_total_flops() == task.work().flops


@pytest.mark.slow
def test_alignment_as_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_teacher(monkeypatch.setattr)
    recipe = aligned_recipe(tmp_path / "run", write_image_latents(tmp_path / "data"))
    found = of(recipe, tmp_path)
    assert "assumed to have 1024 channels" in " ".join(found.notes) and sum(found.frozen.values()) == 0
    task = train_dit.TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))
    task.prepare()
    assert task.alignment is not None
    wide = Projectors(task.alignment.config, task.transformer.config, [1024])  # the tiny teacher has 6
    assert found.parameters["projectors.projectors"] == sum(p.numel() for p in wide.parameters())
    own, images = task.alignment.projectors.flops(), recipe.training.images
    share = task.alignment.config.active_share(images)
    assert share == pytest.approx(2 / 3, abs=0.05)
    assert found.flops_per_image - share * wide.flops() == pytest.approx((task.work().flops or 0) - share * own)
    assert (task.work(0).flops or 0) - (task.work(images).flops or 0) == own  # it ends
    x = torch.randn(1, 16, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        wide(x, [torch.randn(1, 16, 1024)]).backward()
    assert wide.flops() == counter.get_total_flops()


@pytest.mark.slow
def test_tokenizer_as_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_teacher(monkeypatch.setattr)
    recipe = tokenizer_recipe(tmp_path / "run", micro_batch=4, milestone_images=48)
    recipe = replace(recipe, teacher=replace(recipe.teacher, cache_features=False))
    found = of(recipe, tmp_path)
    task = train_tokenizer.TokenizerTask(recipe, recipe.data.open("train"), tmp_path)
    task.teacher.width = 1024  # type: ignore[union-attr]
    weights = sum(p.numel() for p in task.autoencoder.parameters())
    found_weights = {name: n for name, n in found.parameters.items() if name.startswith("autoencoder.")}
    assert sum(found_weights.values()) == weights
    assert {"objective.discriminator", "objective.alignment"} <= found.parameters.keys()
    teacher, _ = vit_costs(teacher_spec("dinov2-large"), 224) or (0.0, 0)
    assert found.flops_per_image - teacher == task._costs.flops()
    assert found.images_at_once == 4 and found.precision == "fp32"
    assert found.disk["checkpoints"] == (2 + 1 + 2) * state_of(found)


@pytest.mark.slow
def test_joint_as_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_teacher(monkeypatch.setattr)
    recipe = joint_recipe(tmp_path / "run")
    found = of(recipe, tmp_path, classes=10)
    task = train_joint.JointTask(recipe, recipe.data.open("train"), tmp_path)
    for name in ("autoencoder", "transformer"):
        weights = sum(p.numel() for p in task.modules[name].parameters())
        assert sum(n for part, n in found.parameters.items() if part.startswith(f"{name}.")) == weights
    assert {"alignment.projectors", "objective.discriminator"} <= found.parameters.keys()
    task.teacher.width = 1024  # type: ignore[union-attr]
    teacher, _ = vit_costs(teacher_spec("dinov2-large"), 224) or (0.0, 0)
    assert found.flops_per_image - teacher == task._costs.flops() > task._costs.tokenizer.flops()
    assert any("upper bound" in note for note in found.notes)


@pytest.mark.slow
def test_hours_and_images_that_fit(tmp_path: Path) -> None:
    recipe = transformer_recipe(tmp_path, write_latents(tmp_path / "data"), precision="bf16", images=10**9)
    recipe = replace(recipe, transformer=replace(recipe.transformer, depth=1))
    found = of(replace(recipe, training=replace(recipe.training, batch_size=2**22)), tmp_path, count=2, mfu=0.5)
    a100, h200 = (next(gpu for gpu in found.gpus if gpu.name == name) for name in ("A100", "H200"))
    seconds = found.steps * 2**22 * found.flops_per_image / (0.5 * 312e12 * 2)
    assert a100.hours * 3600 == pytest.approx(seconds) and a100.hours / h200.hours == pytest.approx(989 / 312)
    assert a100.images_at_once and h200.images_at_once
    sharded = of(replace(recipe, training=replace(recipe.training, parallel="shard")), tmp_path, count=2)
    whole = of(recipe, tmp_path, count=2)
    for name in ("gradients", "optimizer"):
        assert sharded.memory[name] == whole.memory[name] // 2
    saved = sum(whole.memory.values()) - sum(sharded.memory.values())
    assert sharded.gpus[0].memory == pytest.approx(whole.gpus[0].memory - saved, rel=1e-3)
    assert a100.memory <= 76e9 < a100.memory * 2.1 and h200.images_at_once == 2 * a100.images_at_once


def test_teacher_formula_is_that_of_the_model() -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14)
    with torch.device("meta"):
        model, image = transformers.Dinov2Model(settings), torch.empty(1, 3, 224, 224)
    counted = count_flops(lambda: model(image))
    spec = teacher_spec("dinov2-small")
    assert spec is not None
    flops, parameters = vit_costs(spec, 224) or (0.0, 0)
    assert flops == pytest.approx(counted, rel=0.02)
    assert parameters == pytest.approx(sum(p.numel() for p in model.encoder.parameters()), rel=0.02)
    assert vit_costs(teacher_spec("sam-base"), 1024) is None  # type: ignore[arg-type]


@pytest.mark.slow
def test_shape_comes_from_the_recipe_of_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text(to_yaml(tokenizer_recipe(Path("runs/a"))))
    recipe = replace(transformer_recipe(Path("runs/b"), Path("runs")), tokenizer="runs/a/tokenizer")
    recipe = replace(recipe, transformer=replace(recipe.transformer, depth=1))
    Path("second.yaml").write_text(to_yaml(recipe))
    assert run(["estimate", "second.yaml"]) == 0
    text = capsys.readouterr().out
    assert "latents of 8 x 4 x 4: by the recipe first" in text and "assumed: 1,000 classes (--classes)" in text
    assert "left out: latents, 1.0 kB per image (--dataset_images)" in text
    assert "RTX 4090" in text and "time at 40%" in text and max(map(len, text.splitlines())) <= 80
    options = ["--classes", "10", "--dataset_images", "100", "--latent_shape", "4,8,8", "--gpu", "A100,RTX 3090"]
    assert run(["estimate", "second.yaml", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [gpu["name"] for gpu in found["gpus"]] == ["A100", "RTX 3090"]
    assert found["parameters"]["transformer.y_embedder"] == 11 * 32
    assert found["disk"]["latents"] == 100 * 4 * 8 * 8 * 4 * 2
    assert found["notes"] == ["precision fp32: 50% of the bf16 peak, as TF32 convolutions have"]


WRONG = {
    "no recipe": (["no/such"], "no/such: no such file, and no recipe of this name"),
    "another command": (
        ["imagenet256/encode-sd-vae"],
        "recipe must be one of train-tokenizer, train-dit or train-joint, got ",
    ),
    "frontier": (["frontier/smoke"], "recipe must be one of train-tokenizer, train-dit or train-joint, got "),
    "GPU": (["small/tokenizer", "--gpu", "TPU"], "gpu"),
    "mfu": (["small/tokenizer", "--mfu", "40"], "mfu must be above 0 and at most 1, got 40"),
    "count": (["small/tokenizer", "--count", "0"], "count must be at least 1, got 0"),
    "latents": (["mine.yaml"], "latents: a does not exist, and no recipe makes b: give --latent_shape"),
    "typo": (["typo.yaml"], "typo.yaml: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("{latents: a, tokenizer: b}\n")
    Path("typo.yaml").write_text("{latents: a, tokenizer: b, trainig: {images: 8}}\n")
    options, message = WRONG[case]
    assert run(["estimate", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
