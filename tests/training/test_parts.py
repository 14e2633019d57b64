"""Parts of the engine: micro-batches, going back, optimizers, schedules, averages, recomputation, host transfers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from regression_task import Regression
from tiny_runs import TinyTeacher, tokenizer_recipe, transformer_recipe, write_latents
from torch import Tensor, nn

from vavae.cli import run
from vavae.data import LatentDataset, LatentSettings, LatentWriter
from vavae.errors import RunError, UserError
from vavae.flow import FlowConfig
from vavae.models import Tokenizer
from vavae.stages import train_dit, train_tokenizer
from vavae.stages.encode import fingerprint
from vavae.stages.train_dit import TransformerTask
from vavae.stages.train_tokenizer import TokenizerTask
from vavae.training.activation_checkpointing import apply_activation_checkpointing
from vavae.training.checkpoint import CheckpointFolder
from vavae.training.ema import AveragesConfig, MovingAverage, exponential, power, power_exponent
from vavae.training.float8 import use_float8
from vavae.training.memory import split_batch
from vavae.training.optimizer import Optimizer, OptimizerConfig, linear_matrices
from vavae.training.posthoc_ema import combination, decayed, reconstruct
from vavae.training.run_log import Tracker, read_metrics
from vavae.training.schedule import ScheduleConfig, learning_rate_factor
from vavae.training.stability import SpikeDetector, StabilityConfig
from vavae.training.trainer import Trainer, TrainingConfig

CONFIG = TrainingConfig(
    images=800, batch_size=8, device="cpu", ema_decay=0.9, log_images=40, checkpoint_images=200, tensorboard=False
)


class Unnormed(Regression):
    """Without BatchNorm, so that parts of a batch add up to the batch."""

    def __init__(self, kind: str = "adamw") -> None:
        super().__init__(kind=kind)
        self.modules["body"] = nn.Sequential(nn.Linear(4, 6), nn.SiLU())


def weights(engine: Trainer) -> list[Tensor]:
    return [p.detach().clone() for module in engine.task.modules.values() for p in module.parameters()]


def test_parts_of_a_batch_give_the_same_run(tmp_path: Path) -> None:
    whole = Trainer(Unnormed(), CONFIG, tmp_path / "whole")
    whole.run("whole")
    task = Unnormed()
    parts = Trainer(task, replace(CONFIG, micro_batch=3), tmp_path / "parts")
    parts.run("parts")
    assert task.lengths[:3] == [3, 3, 2]
    for one, other in zip(weights(whole), weights(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_batch_that_does_not_fit_is_halved_and_remembered(tmp_path: Path) -> None:
    task = Unnormed()
    task.fits = 3
    Trainer(task, replace(CONFIG, images=16), tmp_path).run("halved")
    assert task.lengths == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]  # the second step knows
    again = Unnormed()
    Trainer(again, replace(CONFIG, images=32), tmp_path).run("resumed")
    assert set(again.lengths) == {2}


def test_a_single_image_or_a_given_part_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    for given, name in ((None, "one"), (4, "given")):
        task = Unnormed()
        task.fits = 0
        with pytest.raises(RunError, match="out of memory with"):
            Trainer(task, replace(CONFIG, micro_batch=given), tmp_path / name).run("no")


def test_split_batch_takes_tuples_and_keeps_numbers() -> None:
    parts = list(split_batch((5, torch.arange(5), None), 2))
    assert [p[1].tolist() for p in parts] == [[0, 1], [2, 3], [4]]
    assert all(p[0] == 5 and p[2] is None for p in parts)


def test_a_run_goes_back_once_and_takes_another_order(tmp_path: Path) -> None:
    task = Regression()
    task.bad_steps = {(0, p) for p in range(480, 560, 8)}
    engine = Trainer(task, CONFIG, tmp_path)
    engine.run("back")
    assert engine.order == 1 and engine.images_seen == 800
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert event["images"] == 520 and "back to 400, data order 1" in event["event"]
    lines = [line["images"] for line in read_metrics(tmp_path)]
    assert lines == list(range(40, 801, 40))  # no gap, no line twice
    assert all(line["skipped/body"] == 0 for line in read_metrics(tmp_path))


@pytest.mark.parametrize(
    ("every", "keep", "back"),
    [
        (40, 2, 480),  # written when all before was known to be good
        (8, 2, 480),  # those within the bad interval do not push it out
        (200, 2, 400),
        (24, 5, 480),
    ],
)
def test_a_run_goes_back_no_further_than_it_must(every: int, keep: int, back: int, tmp_path: Path) -> None:
    task = Regression()
    task.bad_steps = {(0, p) for p in range(480, 560, 8)}
    Trainer(task, replace(CONFIG, checkpoint_images=every, keep_checkpoints=keep), tmp_path).run("back")
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert event["images"] == 520 and f"back to {back}, data order 1" in event["event"]


def test_a_skipped_step_hides_no_other(tmp_path: Path) -> None:
    """Means are over the steps that were taken, so a spike in the same interval is seen."""
    steady = replace(CONFIG, stability=StabilityConfig(spike=20.0, history=8))
    task = Regression()
    task.bad_steps = {(0, 480)}
    Trainer(task, steady, tmp_path / "skipped").run("skipped")
    lines = {line["images"]: line for line in read_metrics(tmp_path / "skipped")}
    assert lines[520]["skipped/body"] == pytest.approx(1 / 5)
    assert lines[520]["total"] is not None and lines[520]["gradient_norm/body"] is not None
    plain = Regression()
    Trainer(plain, steady, tmp_path / "plain").run("plain")
    assert lines[480] == next(line for line in read_metrics(tmp_path / "plain") if line["images"] == 480)
    spiked = Regression()
    original = spiked.step

    def step(batch: Any, images_seen: int, scale: float) -> dict[str, Tensor]:
        terms = original(batch, images_seen, scale)
        return {name: value * 1000 for name, value in terms.items()} if 480 <= images_seen < 520 else terms

    spiked.step = step  # type: ignore[method-assign]
    spiked.bad_steps = {(order, 480) for order in range(3)}
    with pytest.raises(RunError, match="total jumped to"):
        Trainer(spiked, steady, tmp_path / "spiked").run("spiked")


def test_a_run_that_stays_bad_stops_with_a_folder_that_repeats_it(tmp_path: Path) -> None:
    def bad() -> Regression:
        task = Regression()
        task.bad_steps = {(order, p) for order in range(3) for p in range(480, 800, 8)}
        return task

    with pytest.raises(RunError, match=r"for the 3. time; .*failure reproduces it"):
        Trainer(bad(), CONFIG, tmp_path).run("bad")
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2
    repeated = Trainer(bad(), CONFIG, tmp_path / "failure")
    with pytest.raises(RunError, match=r"100% of the steps were skipped.*520 images"):
        repeated.run("again")
    assert repeated.order == 2


def test_a_run_bad_from_the_start_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    task = Regression()
    task.bad_steps = {(0, p) for p in range(0, 800, 8)}
    with pytest.raises(RunError, match="no checkpoint to go back to"):
        Trainer(task, CONFIG, tmp_path).run("bad")
    assert read_metrics(tmp_path)[0]["total"] is None  # JSON has no NaN


def test_a_spike_is_seen_against_its_own_history_only() -> None:
    watch = SpikeDetector(StabilityConfig(spike=10.0, history=8))
    for value in (1.0, 1.1, 0.9, 1.05, 1.0):
        assert watch.judge({"total": value, "gradient_norm/a": 2.0}, 0) is None
    assert watch.judge({"total": 1.2, "gradient_norm/a": 2.0}, 0) is None
    assert "total jumped to 9" in str(watch.judge({"total": 9.0, "gradient_norm/a": 2.0}, 0))
    assert watch.judge({"total": 9.0, "gradient_norm/a": 2.0}, 1) is None  # another objective begins
    assert watch.history["total"] == [9.0]
    assert watch.judge({"total": float("nan")}, 1) is None and watch.history["total"] == [9.0]


def test_milestones_stay(tmp_path: Path) -> None:
    Trainer(Regression(), replace(CONFIG, milestone_images=400, keep_checkpoints=1), tmp_path).run("kept")
    names = [p.name for p in CheckpointFolder(tmp_path / "checkpoints").list()]
    assert names == ["images-000000000400", "images-000000000800"]


@pytest.mark.parametrize("kind", ["adam", "adamw", "muon"])
def test_a_bad_step_leaves_parameters_and_slots_alone(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Embedding(3, 6))
    optimizer = Optimizer(OptimizerConfig(kind, 1e-2, weight_decay=0.1), list(net.parameters()), linear_matrices([net]))

    def step(bad: bool) -> None:
        for p in net.parameters():
            p.grad = torch.full_like(p, torch.nan if bad else 0.3)
        optimizer.step(1.0, torch.tensor(bad))

    def values() -> list[Tensor]:
        return [v.clone() for v in (*net.parameters(), *(slot for _, _, slot in optimizer.slots()))]

    before = values()
    step(True)  # before any slot exists
    assert all(torch.equal(a, b) for a, b in zip(before, values(), strict=False))
    step(False)
    moved = values()
    assert not torch.equal(moved[0], before[0])
    step(True)
    assert all(torch.equal(a, b) for a, b in zip(moved, values(), strict=True))


def test_muon_takes_matrices_of_linear_layers_only() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Embedding(3, 6), nn.Conv2d(1, 2, 3))
    optimizer = Optimizer(OptimizerConfig("muon", 1e-2), list(net.parameters()), linear_matrices([net]))
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    before = net[0].weight.detach().clone()
    optimizer.step(1.0, torch.tensor(False))
    owners = {
        slot: {tuple(p.shape) for p, name, _ in optimizer.slots() if name == slot}
        for slot in ("exp_avg", "momentum_buffer")
    }
    assert owners["momentum_buffer"] == {(6, 4)} and (3, 6) in owners["exp_avg"]
    # An orthogonal update, scaled to AdamW's size: all singular values are near each other.
    singular = torch.linalg.svdvals(net[0].weight.detach() - before)
    assert singular.max() / singular.min() < 2.5


def test_muon_runs_resume_exactly(tmp_path: Path) -> None:
    Trainer(Unnormed("muon"), CONFIG, tmp_path / "whole").run("whole")
    task = Unnormed("muon")
    task.stop_at = 336
    with pytest.raises(KeyboardInterrupt):
        Trainer(task, CONFIG, tmp_path / "parts").run("part")
    Trainer(Unnormed("muon"), CONFIG, tmp_path / "parts").run("rest")
    one, _ = CheckpointFolder(tmp_path / "whole/checkpoints").load_newest() or ({}, {})
    other, _ = CheckpointFolder(tmp_path / "parts/checkpoints").load_newest() or ({}, {})
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_schedules() -> None:
    staged = ScheduleConfig("staged", boundaries=(100, 200), factors=(1.0, 0.5, 0.1))
    assert [learning_rate_factor(staged, n, 10, 300) for n in (0, 99, 100, 199, 200, 299)] == [1, 1, 0.5, 0.5, 0.1, 0.1]
    late = ScheduleConfig("linear", warmup_images=20, decay_images=100)
    assert [learning_rate_factor(late, n, 10, 300) for n in (0, 10, 150, 200, 250, 300)] == [0.5, 1, 1, 1, 0.5, 0]
    with pytest.raises(UserError, match="need 3 factors"):
        ScheduleConfig("staged", boundaries=(1, 2), factors=(1.0,))


@pytest.mark.parametrize("warmup", [True, False])
def test_decays_are_smaller_at_first_unless_as_published(warmup: bool) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    average = MovingAverage(model, exponential(0.9, warmup))
    nn.init.ones_(model.weight)
    expected = 0.0
    for step in range(200):
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        expected = decay * expected + 1 - decay
        assert float(average.values["weight"]) == pytest.approx(expected, abs=1e-12)
        if not warmup:
            assert expected == pytest.approx(1 - 0.9 ** (step + 1), abs=1e-12)


def test_power_function_averages_weigh_steps_by_a_power() -> None:
    """Weights of step τ after t steps: (τ^(γ+1) - (τ-1)^(γ+1)) / t^(γ+1); their deviation is the width asked for."""
    width, steps = 0.1, 4000
    factors, rate = np.zeros(steps), power(width)
    for n in range(steps):
        r = rate(n)
        factors[:n] *= 1 - r
        factors[n] = r
    tau = np.arange(1, steps + 1, dtype=np.float64)
    gamma = power_exponent(width)
    expected = np.diff(np.concatenate([[0.0], (tau / steps) ** (gamma + 1)]))
    np.testing.assert_allclose(factors, expected, rtol=1e-6, atol=1e-12)
    mean = (factors * tau).sum()
    assert np.sqrt((factors * (tau - mean) ** 2).sum()) / steps == pytest.approx(width, rel=1e-3)


def test_snapshots_give_an_average_of_any_length(tmp_path: Path) -> None:
    """Widths 0.05 and 0.10 are stored; 0.15, tracked directly beside them, is what reconstruction finds."""
    averages = AveragesConfig(decays=(0.5,), widths=(0.05, 0.1, 0.15), snapshot_images=64)
    engine = Trainer(Unnormed(), replace(CONFIG, images=1600, averages=averages), tmp_path)
    engine.run("averages")
    assert set(engine._state.averages) == {"0.9", "0.5", "width 0.05", "width 0.1", "width 0.15"}
    wanted = engine.averaged_state("head", "width 0.15")["weight"]
    for path in (tmp_path / "averages").glob("*width0.15*"):
        path.unlink()
    found = reconstruct(tmp_path / "averages", "head", 0.15)["weight"]
    live = engine.task.modules["head"].weight.detach()  # type: ignore[union-attr]
    assert (found - wanted).norm() < 0.02 * (live - wanted).norm()
    assert found.dtype == torch.float32
    with pytest.raises(UserError, match="no snapshots"):
        reconstruct(tmp_path / "averages", "head", 0.15, images=8)


def test_a_stored_length_reconstructs_itself() -> None:
    factors = combination([100, 100, 200, 200], [0.05, 0.1, 0.05, 0.1], 200, 0.1)
    np.testing.assert_allclose(factors, [0, 0, 0, 1], atol=1e-6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"))


def task_of(data: Path, folder: Path, **changes: Any) -> TransformerTask:
    recipe = replace(transformer_recipe(folder, data), **changes)
    return TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_changes_no_gradient_and_no_name(mode: str, data: Path, tmp_path: Path) -> None:
    shape = transformer_recipe(tmp_path, data).transformer
    plain = task_of(data, tmp_path)
    saving = task_of(data, tmp_path, transformer=replace(shape, activation_checkpointing=mode))
    saving.transformer.load_state_dict(plain.transformer.state_dict())
    for p, q in zip(plain.transformer.parameters(), saving.transformer.parameters(), strict=True):
        with torch.no_grad():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
            q.copy_(p)
    kept = []
    for task in (plain, saving):
        sizes = 0

        def pack(t: Tensor) -> Tensor:
            nonlocal sizes
            sizes += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            task.step(next(task.batches(0, 0)), 0, 1.0)
        kept.append(sizes)
    for (name, p), q in zip(plain.transformer.named_parameters(), saving.transformer.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name  # type: ignore[arg-type]
    assert mode == "selective" or kept[1] < 0.6 * kept[0]
    with pytest.raises(UserError, match="not one of none, selective, full"):
        apply_activation_checkpointing([], "half")  # type: ignore[arg-type]


def tokenizer_task(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TokenizerTask:
    """With the discriminator at work from the third step on."""
    monkeypatch.setattr(train_tokenizer, "load_teacher", lambda *_, **__: TinyTeacher())
    recipe = tokenizer_recipe(folder)
    return TokenizerTask(recipe, recipe.data.open("train"), folder)


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_no_number_leaves_the_device_between_two_log_lines(
    stage: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would make a GPU wait: item, float, bool, int, tolist of a tensor."""
    task = tokenizer_task(tmp_path, monkeypatch) if stage == "tokenizer" else task_of(data, tmp_path)
    engine = Trainer(task, task.config.training, tmp_path)
    batches = task.batches(0, 0)
    for _ in range(3):
        engine._apply(engine._gradients(next(batches)))
        engine.images_seen += 8
    batch = next(batches)

    def refuse(self: Tensor, *arguments: Any) -> Any:
        raise AssertionError("a tensor's value was asked for in the step")

    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__float__", "__bool__", "__int__", "__index__"):
            patched.setattr(Tensor, name, refuse)
        engine._apply(engine._gradients(batch))
    batches.close()  # type: ignore[attr-defined]
    if stage == "tokenizer":
        assert task.objective.adversarial_active(engine.images_seen)  # type: ignore[union-attr]


def test_the_log_of_a_tokenizer_shows_norms_and_adaptive_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tokenizer_task(tmp_path, monkeypatch)
    Trainer(task, task.config.training, tmp_path).run("log")
    lines = read_metrics(tmp_path)
    wanted = {"gradient_norm/autoencoder", "gradient_norm/discriminator", "adversarial_weight", "alignment_weight"}
    assert wanted | {"skipped/autoencoder", "skipped/discriminator"} <= lines[0].keys()
    assert all(float(lines[-1][name] or 0) > 0 for name in wanted)
    assert lines[0]["adversarial_weight"] == 0  # it begins with the third step


def test_latents_of_another_tokenizer_are_refused(data: Path, tmp_path: Path) -> None:
    """By their fingerprint: the channels are the same."""
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


def test_a_switch_of_the_times_is_no_spike(data: Path, tmp_path: Path) -> None:
    task = task_of(data, tmp_path, flow=FlowConfig(uniform_after_images=480))
    assert [task.regime(images) for images in (0, 479, 480, 960)] == [0, 0, 1, 1]


def test_help_does_not_wait_for_distributed_training() -> None:
    """Those modules took half of the seconds that every --help and every start cost."""
    code = (
        "import sys, vavae.stages.train_dit, vavae.stages.train_tokenizer; "
        "print([m for m in ('torch.distributed.tensor', 'torch.distributed.checkpoint', 'torch.distributed.fsdp', "
        "'transformers', 'sklearn', 'matplotlib', 'torch._dynamo') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_fp8_without_its_hardware_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"fp8: needs a GPU of compute capability 8.9"):
        use_float8([], torch.device("cpu"))


class WandbRun:
    def __init__(self, sent: list[Any]) -> None:
        self._sent = sent

    def define_metric(self, *names: str, **options: str) -> None: ...

    def log(self, numbers: dict[str, float]) -> None:
        self._sent.append(numbers)

    def finish(self) -> None:
        self._sent.append("finished")


def use_wandb(monkeypatch: pytest.MonkeyPatch, option: str) -> list[Any]:
    """Replace wandb; what was sent, beginning with `option` of each start."""
    sent: list[Any] = []

    class Wandb:
        @staticmethod
        def init(**options: Any) -> WandbRun:
            sent.append(options[option])
            return WandbRun(sent)

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    return sent


def test_wandb_gets_what_the_log_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = use_wandb(monkeypatch, "project")
    config = replace(CONFIG, wandb="project")
    tracker = Tracker(tmp_path, 0, config)
    tracker.log(8, {"total": 1.0}, {"images_per_second": 2.0})
    tracker.close()
    assert sent == ["project", {"images": 8, "total": 1.0, "images_per_second": 2.0}, "finished"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'vavae\[wandb\]'"):
        Tracker(tmp_path, 0, config)


def test_a_folder_is_one_run_of_wandb_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = use_wandb(monkeypatch, "id")
    config = replace(CONFIG, wandb="project")

    def started(folder: Path, resumed: int = 0) -> str:
        Tracker(folder, resumed, config).close()
        return str(sent[-2])

    first, other = started(tmp_path / "a/generator"), started(tmp_path / "b/generator")
    assert first != other and len(first) == 12
    assert started(tmp_path / "a/generator", 8) == first
    (tmp_path / "a").rename(tmp_path / "moved")
    assert started(tmp_path / "moved/generator", 16) == first


def test_tensorboard_keeps_the_point_that_a_run_goes_on_from(tmp_path: Path) -> None:
    """And takes back those beyond it, with the first one too where a run begins again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown() -> list[int]:
        found = EventAccumulator(str(tmp_path / "tensorboard"))
        found.Reload()
        return [event.step for event in found.Scalars("metrics/total")]

    def log(resumed: int, *images: int) -> None:
        tracker = Tracker(tmp_path, resumed, replace(CONFIG, tensorboard=True))
        for seen in images:
            tracker.log(seen, {"total": 1.0}, {})
        tracker.close()

    log(0, 16, 32, 48)
    log(32, 48, 64)
    assert shown() == [16, 32, 48, 64]
    log(0, 16)
    assert shown() == [16]


def test_numbers_out_of_range_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "training.images": "0",
        "training.batch_size": "-1",
        "training.log_images": "0",
        "training.keep_checkpoints": "0",
        "training.micro_batch": "0",
        "training.checkpoint_images": "0",
        "training.milestone_images": "-3",
        "training.preview_images": "0",
        "training.validation_images": "0",
        "training.ema_decay": "2",
        "training.averages.decays": "[1.5]",
        "training.averages.snapshot_images": "-5",
        "training.stability.history": "0",
        "training.stability.rollbacks": "-1",
        "training.stability.spike": ".nan",
        "optimizer.learning_rate": "-1",
        "optimizer.betas": "[0.9,2]",
        "optimizer.eps": "-1e-8",
        "optimizer.weight_decay": ".inf",
        "optimizer.momentum": "1.0",
        "optimizer.gradient_clip": ".nan",
        "optimizer.schedule.warmup_images": "-1",
        "optimizer.schedule.decay_images": "0",
        "optimizer.schedule.final": "-0.5",
        "optimizer.schedule": "{kind: staged, boundaries: [8], factors: [1.0, -1.0]}",
    }
    for key, value in wrong.items():
        assert run(["train-dit", f"--{key}={value}", "--latents=none"]) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and key.rpartition(".")[2] in told[0].partition(": ")[2], (key, told)


def test_the_averages_of_a_checkpoint_can_be_had_afterwards(tmp_path: Path) -> None:
    engine = Trainer(Unnormed(), replace(CONFIG, images=80, averages=AveragesConfig(decays=(0.5,))), tmp_path)
    engine.run("averages")
    for decay in (0.9, 0.5):
        wanted, found = engine.averaged_state("head", str(decay)), decayed(tmp_path, "head", decay)
        assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert not torch.equal(decayed(tmp_path, "head", 0.9)["weight"], decayed(tmp_path, "head", 0.5)["weight"])
    with pytest.raises(UserError, match=r"no average 0.99/head; there is 0.5/body, 0.5/head, 0.9/body, 0.9/head"):
        decayed(tmp_path, "head", 0.99)
    with pytest.raises(UserError, match="no good checkpoint"):
        decayed(tmp_path / "nowhere", "head", 0.9)


@pytest.mark.parametrize("key", ["latents", "validation_latents"])
def test_damaged_latents_are_not_trained_on(key: str, data: Path, tmp_path: Path) -> None:
    copy = write_latents(tmp_path) / "latents"
    recipe = transformer_recipe(tmp_path / "run", data, validation_images=48)
    (shard,) = copy.glob("latents_*.safetensors")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"{shard} is damaged"):
        train_dit.run(replace(recipe, **{key: str(copy)}))
    assert not (tmp_path / "run/checkpoints").exists()


def test_what_a_fault_left_in_a_log_is_no_line_of_it(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"images": 8, "total": 1.0}\n5\n{"images": 16, "to\xff": 0}\n\xff\xfe\n{"images": 16, "tot')
    assert read_metrics(tmp_path) == [{"images": 8, "total": 1.0}]
    Tracker(tmp_path, 16, CONFIG).close()
    assert log.read_bytes() == b'{"images": 8, "total": 1.0}\n'
