"""Alignment of hidden states in `train-dit`: targets follow images and flips, schedules, resume, refusals."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from aligned_runs import (
    IMAGES,
    aligned_recipe,
    several_teachers_recipe,
    the_teacher,
    use_the_teacher,
    write_image_latents,
)
from golden_next import assert_close, load, sit

from vavae.cli import run
from vavae.data import LatentDataset, load_images
from vavae.errors import UserError
from vavae.grids import to_grid
from vavae.models import Tokenizer
from vavae.stages import train_dit
from vavae.stages.hidden_alignment import HiddenAlignmentConfig, HiddenTokens, ProjectorConfig, Projectors
from vavae.stages.train_dit import TransformerTask
from vavae.teachers.config import TeacherConfig
from vavae.training.checkpoint import CheckpointFolder
from vavae.training.run_log import read_metrics
from vavae.transformer import LightningDiTConfig
from vavae.transformer.routing import RoutingConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_latents(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    use_the_teacher(monkeypatch.setattr)


def task_of(recipe: train_dit.Config) -> TransformerTask:
    task = TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))
    task.prepare()
    return task


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_targets_are_of_the_images_and_flips_of_latents(kept: bool, flip: bool, data: Path, tmp_path: Path) -> None:
    """The latents are the teacher's features here, on a grid of twice the size."""
    task = task_of(replace(aligned_recipe(tmp_path, data, kept=kept), flip=flip))
    assert task.alignment is not None
    batches = task.batches(0, 0)
    for _ in range(4):
        batch = next(batches)
        assert batch.targets is not None
        (features,) = task.alignment.features(batch.targets)
        latents = batch.latents * task.statistics.std.view(-1, 1, 1) + task.statistics.mean.view(-1, 1, 1)
        torch.testing.assert_close(to_grid(features, (4, 4)), F.avg_pool2d(latents, 2), rtol=2e-3, atol=2e-3)
    batches.close()  # type: ignore[attr-defined]


def test_features_of_several_teachers_are_kept_apart(data: Path, tmp_path: Path) -> None:
    teachers = tuple(TeacherConfig(name, cache_features=True) for name in ("one", "other"))
    alignment = HiddenAlignmentConfig(IMAGES, teachers, projector=ProjectorConfig(hidden=24))
    task = task_of(aligned_recipe(tmp_path, data, alignment))
    assert task.alignment is not None and len(task.alignment.projectors.projectors) == 2
    loaded = task.alignment.load(torch.tensor([7, 3]), torch.tensor([True, False]), 0)
    assert loaded is not None and loaded.shape == (2, 12, 4, 4)
    images = load_images(IMAGES.open("train"), [7, 3], 16)
    images[0] = images[0].flip(-1)
    expected = the_teacher().features_at(images, (4, 4))
    for features in task.alignment.features(loaded):
        torch.testing.assert_close(to_grid(features, (4, 4)), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("changes", [{}, {"normalization": "zscore", "projector": ProjectorConfig("conv")}])
@pytest.mark.slow
def test_alignment_is_trained(changes: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """Training raises the cosine; without the term's gradient it stays where it was."""
    cosines = {}
    for weight in (0.5, 1e-9):
        small = {"projector": ProjectorConfig(hidden=256), **changes}
        alignment = HiddenAlignmentConfig(IMAGES, (TeacherConfig("any"),), weight=weight, **small)
        task = task_of(aligned_recipe(tmp_path, data, alignment))
        ((_, parameters),) = task.optimizers().values()
        optimizer = torch.optim.Adam(parameters, 4e-3, eps=1e-6)  # far above a gradient of weight 1e-9
        found = []
        for step, batch in zip(range(12), task.batches(0, 0), strict=False):
            terms = task.step(batch, 8 * step, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            torch.testing.assert_close(terms["total"], terms["mse"] + terms["direction"] + weight * terms["alignment"])
            found.append(-float(terms["alignment"]))
        cosines[weight] = found
    assert sum(cosines[0.5][-5:]) / 5 > sum(cosines[0.5][:5]) / 5 + 0.1
    assert abs(sum(cosines[1e-9][-5:]) - sum(cosines[1e-9][:5])) / 5 < 0.05


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.slow
def test_stopped_run_ends_bit_identical(
    kept: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped twice: while the weight falls, and after the alignment has ended."""
    train_dit.run(aligned_recipe(tmp_path / "whole", data, kept=kept))
    original, begin_saving = TransformerTask.step, CheckpointFolder.save

    def save(self: CheckpointFolder, *arguments: Any) -> None:
        begin_saving(self, *arguments)
        self.wait()  # so that the stop finds it

    monkeypatch.setattr(CheckpointFolder, "save", save)

    for after in (24, 40):

        def step(self: TransformerTask, batch: Any, images_seen: int, scale: float, last: int = after) -> Any:
            if images_seen == last:
                raise KeyboardInterrupt
            return original(self, batch, images_seen, scale)

        monkeypatch.setattr(TransformerTask, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train_dit.run(aligned_recipe(tmp_path / "stopped", data, kept=kept))
    monkeypatch.setattr(TransformerTask, "step", original)
    train_dit.run(aligned_recipe(tmp_path / "stopped", data, kept=kept))
    one, other = (CheckpointFolder(tmp_path / name / "checkpoints").newest() for name in ("whole", "stopped"))
    assert one is not None and other is not None and one.shapes == other.shapes
    data, others = ([file.read_bytes() for file in found.path.glob("*.distcp")] for found in (one, other))
    assert len(data) == 1 and data == others
    # The projector is saved to resume, and neither averaged nor part of the generator.
    assert any(name.startswith("model/projectors/") for name in one.shapes)
    assert not any("projectors" in name for name in one.shapes if name.startswith("average/"))
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert logs[0] == logs[1]
    assert ["alignment" in line for line in read_metrics(tmp_path / "whole")] == [True, True, False]


@pytest.fixture(scope="module")
def alone(data: Path) -> Path:
    """The run folder of a transformer trained by one process."""
    with pytest.MonkeyPatch.context() as patch:
        use_the_teacher(patch.setattr)
        train_dit.run(several_teachers_recipe(data / "alone", data))
    return data / "alone"


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_two_processes_train_as_one(
    parallel: str, launch: Callable[..., None], data: Path, alone: Path, tmp_path: Path
) -> None:
    launch(2, "aligned_transformer", tmp_path / "two", data, parallel)
    lines, others = read_metrics(alone), read_metrics(tmp_path / "two")
    assert ["alignment" in line for line in lines] == [True, True, True, False]
    for line, other in zip(lines, others, strict=True):
        assert other == pytest.approx(line, rel=1e-3, abs=1e-4)


def test_no_teacher_works_after_the_end(data: Path, tmp_path: Path) -> None:
    alignment = HiddenAlignmentConfig(
        IMAGES, (TeacherConfig("any"),), projector=ProjectorConfig(hidden=24), stop_images=16
    )
    task = task_of(aligned_recipe(tmp_path, data, alignment))
    assert task.alignment is not None
    assert [task.phase(images) for images in (0, 8, 16, 24)] == [0, 0, 1, 1]
    batches = task.batches(0, 0)
    seen = [next(batches) for _ in range(3)]
    assert [batch.targets is None for batch in seen] == [False, False, True]
    assert "alignment" in task.step(seen[1], 8, 1.0)
    task.alignment.projectors.zero_grad()
    task.alignment.teachers.clear()
    assert set(task.step(seen[2], 16, 1.0)) == {"mse", "direction", "total"}
    assert all(p.grad is None for p in task.alignment.projectors.parameters())
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("schedule", "stop", "expected"),
    [
        ("constant", None, [0.5, 0.5, 0.5, 0.5]),
        ("constant", 50, [0.5, 0.5, 0.0, 0.0]),
        ("linear", 50, [0.5, 0.25, 0.0, 0.0]),
    ],
)
def test_weight_over_images(schedule: Any, stop: int | None, expected: list[float]) -> None:
    config = HiddenAlignmentConfig(schedule=schedule, stop_images=stop)
    assert [config.weight_at(images) for images in (0, 25, 50, 100)] == expected


@pytest.mark.parametrize(("depth", "block"), [(28, 8), (24, 8), (12, 4), (6, 2), (1, 1)])
def test_default_block(depth: int, block: int) -> None:
    assert HiddenAlignmentConfig().block_of(depth) == block


@pytest.mark.parametrize("how", ["full", "selective", "compile", "blocks"])
@pytest.mark.slow
def test_gradients_with_checkpointing_and_compilation(
    how: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    recipe = aligned_recipe(tmp_path, data)
    if how in ("full", "selective"):
        other = replace(recipe, transformer=replace(recipe.transformer, activation_checkpointing=how))
    else:
        other = replace(recipe, compile=True if how == "compile" else how)
    gradients = []
    for task in (task_of(recipe), task_of(other)):
        terms = task.step(next(task.batches(0, 0)), 0, 1.0)
        gradients.append([terms["alignment"], *(p.grad for _, own in task.optimizers().values() for p in own[1:])])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["repa", "irepa"])
def test_golden_totals(name: str) -> None:
    """The wrapped model and the projectors give the published totals and gradients; their times are 1 − t."""
    tensors, config, weights = load(name)
    shape, model = config["model"], sit(name)
    kind = shape.get("projection_layer_type", "mlp")
    recipe = HiddenAlignmentConfig(
        block=shape["encoder_depth"],
        projector=ProjectorConfig(kind, shape["projector_dim"]),
        normalization="none" if name == "repa" else "zscore",
        alpha=config.get("train_alpha", 0.6),
    )
    projectors = Projectors(recipe, model.config, shape["z_dims"])
    projectors.load_state_dict({key: value for key, value in weights["model"].items() if key.startswith("projectors.")})
    kept = HiddenTokens(model, projectors.block)
    t = 1 - tensors["loss_t"]
    x = torch.lerp(tensors["noise"], tensors["data"], t.view(-1, 1, 1, 1))
    velocity = kept(x, t, tensors["loss_y"])
    denoising = (velocity - (tensors["data"] - tensors["noise"])).square().flatten(1).mean(1)
    assert_close(denoising.detach(), tensors["denoising_loss"], 1e-5)
    features = [tensors[f"features.{number}"] for number in range(len(shape["z_dims"]))]
    term = config["coefficient"] * projectors(kept.tokens, features)
    total, prefix = denoising.mean() + term, "" if name == "repa" else "zscore."
    assert_close(total.detach(), tensors[f"{prefix}total"], 1e-5)
    alone = torch.autograd.grad(term, model.blocks[0].attn.qkv.weight, retain_graph=True)[0]
    share = config["coefficient"] if name == "repa" else 1.0
    assert_close(alone / share, tensors[f"{prefix}grad_projection.blocks.0.attn.qkv.weight"], 1e-4)
    total.backward()
    for key in ("blocks.0.attn.qkv.weight", "blocks.2.attn.qkv.weight"):
        expected = tensors.get(f"{prefix}grad.{key}", tensors.get(f"grad.{key}"))
        assert expected is not None
        assert_close(model.get_parameter(key).grad, expected, 1e-4)


def other_images(**changes: Any) -> dict[str, Any]:
    return {"data": replace(IMAGES, **changes)}


REFUSED: list[tuple[Any, str]] = [
    (lambda: other_images(limit=29), "alignment.data must be the 30 images that .* got 29 images with another"),
    (lambda: other_images(size=32), "alignment.data.size must be 16, as latents were encoded, got 32"),
    (lambda: other_images(flip=True), "alignment.data.crop must be center and flip false"),
    (lambda: {"block": 3}, "alignment.block must be from 1 to 2, the transformer's blocks, got 3"),
    (lambda: {"teachers": ()}, "alignment.teachers must be at least one teacher"),
    (
        lambda: {"teachers": (TeacherConfig("a", cache_features=True), TeacherConfig("b"))},
        "alignment.teachers must have the same cache_features",
    ),
    (lambda: {"weight": 0.0}, "alignment.weight must be above 0, got 0.0"),
    (
        lambda: {"stop_images": None, "schedule": "linear"},
        "alignment.stop_images must be a number with schedule linear",
    ),
    (lambda: {"stop_images": 0}, "alignment.stop_images must be at least 1 or null, got 0"),
    (lambda: {"projector": ProjectorConfig(hidden=0)}, "alignment.projector.hidden must be at least 1, got 0"),
    (lambda: {"projector": ProjectorConfig(kernel=2)}, "alignment.projector.kernel must be an odd number, got 2"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused(change: Any, message: str, data: Path, tmp_path: Path) -> None:
    usual: Any = aligned_recipe(tmp_path, data).alignment
    with pytest.raises(UserError, match=message):
        task_of(aligned_recipe(tmp_path, data, replace(usual, **change())))


def test_routed_block_is_refused() -> None:
    """It sees kept tokens only."""
    shape = LightningDiTConfig(latent_size=4, width=8, depth=5, heads=2, routing=RoutingConfig("sprint", 1, 4))
    with pytest.raises(UserError, match=r"alignment\.block must not be from 2 to 4, the routed blocks, .* got 2"):
        Projectors(HiddenAlignmentConfig(block=2), shape, [4])
    assert [Projectors(HiddenAlignmentConfig(block=block), shape, [4]).block for block in (1, 5)] == [1, 5]


def test_latents_without_a_record_of_their_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_image_latents(tmp_path, source="")
    places = [f"--{name}={data / name}" for name in ("latents", "tokenizer")]
    given = ["--alignment.data.size=16", "--alignment.data.limit=30", f"--output={tmp_path / 'run'}"]
    assert run(["train-dit", *places, *given, "--transformer.size=S/2", "--training.device=cpu"]) == 2
    assert "alignment needs latents that record their images" in " ".join(capsys.readouterr().err.split())
