"""The tasks of both stages: steps without waiting, logs, phases, and the data that they accept."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tokenizer_recipe, transformer_recipe, use_tiny_teacher, write_latents
from torch import Tensor

from vavae.data import LatentDataset, LatentSettings, LatentWriter
from vavae.errors import UserError
from vavae.flow import FlowConfig
from vavae.models import Tokenizer
from vavae.stages import train_dit
from vavae.stages.encode import fingerprint
from vavae.stages.train_dit import TransformerTask
from vavae.stages.train_tokenizer import TokenizerTask
from vavae.training.run_log import read_metrics
from vavae.training.trainer import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def task_of(data: Path, folder: Path, **changes: Any) -> TransformerTask:
    recipe = replace(transformer_recipe(folder, data), **changes)
    return TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))


def tokenizer_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TokenizerTask:
    """Return a task whose discriminator starts with the third step."""
    use_tiny_teacher(monkeypatch.setattr)
    recipe = tokenizer_recipe(folder)
    return TokenizerTask(recipe, recipe.data.open("train"), folder)


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_step_does_not_wait_for_the_device(
    stage: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the value of a tensor would make a GPU wait."""
    task = tokenizer_task(tmp_path, monkeypatch) if stage == "tokenizer" else task_of(data, tmp_path)
    trainer = Trainer(task, task.config.training, tmp_path)
    batches = task.batches(0, 0)
    for _ in range(3):
        trainer._apply(trainer._gradients(next(batches)))
        trainer.images_seen += 8
    batch = next(batches)

    def refuse(self: Tensor, *arguments: Any) -> Any:
        raise AssertionError("the step read the value of a tensor")

    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__float__", "__bool__", "__int__", "__index__"):
            patched.setattr(Tensor, name, refuse)
        trainer._apply(trainer._gradients(batch))
    batches.close()  # type: ignore[attr-defined]
    if stage == "tokenizer":
        assert task.objective.adversarial_active(trainer.images_seen)  # type: ignore[union-attr]


@pytest.mark.slow
def test_tokenizer_logs_norms_and_adaptive_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tokenizer_task(tmp_path, monkeypatch)
    Trainer(task, replace(task.config.training, images=32), tmp_path).run("log")
    lines = read_metrics(tmp_path)
    wanted = {"gradient_norm/autoencoder", "gradient_norm/discriminator", "adversarial_weight", "alignment_weight"}
    assert wanted | {"skipped/autoencoder", "skipped/discriminator"} <= lines[0].keys()
    assert all(float(lines[-1][name] or 0) > 0 for name in wanted)
    assert lines[0]["adversarial_weight"] == 0  # it begins with the third step


def test_latents_of_another_tokenizer_are_refused(data: Path, tmp_path: Path) -> None:
    """The fingerprints differ; the channels are the same."""
    tokenizer = Tokenizer.from_pretrained(str(data / "tokenizer"))
    recipe = replace(transformer_recipe(tmp_path, data), latents=str(tmp_path / "latents"))
    settings = LatentSettings(image_size=8, flips=False, tokenizer=fingerprint(tokenizer))
    writer = LatentWriter(tmp_path / "latents", 4, settings)
    writer.write(writer.missing()[0], [(torch.randn(4, 8, 4, 4), None, torch.zeros(4, dtype=torch.int64))])
    writer.finish()
    TransformerTask(recipe, LatentDataset(recipe.latents), tokenizer)
    with torch.no_grad():
        tokenizer.autoencoder.decoder.conv_out.bias[0] += 1.0
    with pytest.raises(UserError, match=r"latents: .*latents .* tokenizer: .*tokenizer has") as refused:
        TransformerTask(recipe, LatentDataset(recipe.latents), tokenizer)
    assert fingerprint(tokenizer)[:12] in str(refused.value) and settings.tokenizer[:12] in str(refused.value)


def test_switch_of_times_starts_a_new_phase(data: Path, tmp_path: Path) -> None:
    task = task_of(data, tmp_path, flow=FlowConfig(uniform_after_images=480))
    assert [task.phase(images) for images in (0, 479, 480, 960)] == [0, 0, 1, 1]


@pytest.mark.parametrize("key", ["latents", "validation_latents"])
def test_damaged_latents_are_refused(key: str, data: Path, tmp_path: Path) -> None:
    copy = write_latents(tmp_path) / "latents"
    recipe = transformer_recipe(tmp_path / "run", data, validation_images=48)
    (shard,) = copy.glob("latents_*.safetensors")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"{shard}: damaged"):
        train_dit.run(replace(recipe, **{key: str(copy)}))
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.slow
def test_stages_do_not_import_slow_modules() -> None:
    """These modules took half of the start-up time of every command; loading a model does not import them either."""
    code = (
        "import sys, vavae, vavae.stages.train_dit, vavae.stages.train_tokenizer; "
        "vavae.Generator.from_pretrained('demo'); "
        "print([m for m in ('torch.distributed.tensor', 'torch.distributed.checkpoint', 'torch.distributed.fsdp', "
        "'transformers', 'sklearn', 'matplotlib', 'torch._dynamo') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
