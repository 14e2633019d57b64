"""Training gives the same numbers with the teacher's features on the disk and in the device's memory."""

import json
from pathlib import Path

import pytest
import torch
from tiny_teacher import tiny_teacher

from vavae.cli import run
from vavae.data.images import ImagesConfig
from vavae.device import fits_on
from vavae.losses import AdversarialConfig, ObjectiveConfig
from vavae.stages import train_tokenizer
from vavae.stages.costs import TokenizerCosts
from vavae.tokenizer import AutoencoderConfig

SMALL = [
    "--data.images=demo", "--data.size=16", "--data.limit=40", "--data.workers=2",
    "--tokenizer.latent_channels=8", "--tokenizer.base_channels=16", "--tokenizer.channel_multipliers=[1, 2]",
    "--tokenizer.blocks_per_level=1", "--tokenizer.attention_levels=[]",
    "--objective.perceptual.weight=0", "--objective.adversarial.enabled=false", "--teacher.cache_features=true",
    "--training.batch_size=4", "--training.device=cpu", "--training.log_images=4", "--training.precision=fp32",
    "--training.tensorboard=false", "--training.images=16", "--training.checkpoint_images=16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _small_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny_teacher()
    monkeypatch.setattr(train_tokenizer, "load_teacher", lambda *_, **__: teacher)


def train(folder: Path, *more: str) -> list[dict[str, float]]:
    assert run(["train-tokenizer", *SMALL, f"--output={folder}", *more]) == 0
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_features_on_disk_and_in_memory_agree(tmp_path: Path) -> None:
    from_disk = train(tmp_path / "disk", "--teacher.features_on_device=false")
    in_memory = train(tmp_path / "memory", "--teacher.features_on_device=true")
    terms = [[line["alignment"] for line in log] for log in (from_disk, in_memory)]
    assert terms[0] == terms[1] and len(set(terms[0])) == 4
    # The run may resume with the other setting.
    assert train(tmp_path / "memory", "--teacher.features_on_device=false") == in_memory


def test_missing_starting_weights_are_noticed_before_features_are_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(["train-tokenizer", *SMALL, f"--output={folder}", "--initial=nowhere"]) == 2
    assert "initial: nowhere: no such file or folder" in capsys.readouterr().err
    assert not (folder / "teacher-features").exists()


@pytest.mark.usefixtures("estimates")
def test_memory_estimate_includes_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenizerCosts, "step_bytes", lambda self, images: 1000)  # of the networks
    data = ImagesConfig("demo", 16, limit=40)
    source = data.open("train")
    sizes = []
    for kept in (False, True):
        config = train_tokenizer.Config(
            output=str(tmp_path),
            data=data,
            tokenizer=AutoencoderConfig(8, 16, (1, 2), 1, ()),
            objective=ObjectiveConfig(adversarial=AdversarialConfig(enabled=False)),
            teacher=train_tokenizer.TeacherConfig(cache_features=True, features_on_device=kept),
        )
        task = train_tokenizer.TokenizerTask(config, source, tmp_path)
        task.prepare()
        sizes.append(task.step_bytes(4))
    assert sizes[0] > 1000 and sizes[1] - sizes[0] == 40 * 6 * 8 * 8 * 2  # float16


def test_fits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    gpu = torch.device("cuda")
    assert fits_on(gpu, 249, 1 / 4) and not fits_on(gpu, 250, 1 / 4)
    assert fits_on(gpu, 499, 1 / 2) and not fits_on(gpu, 500, 1 / 2)
    assert not fits_on(torch.device("cpu"), 1, 1 / 2)
