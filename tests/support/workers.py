"""Functions that the tests call in each of several processes."""

import contextlib
import errno
import io
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from estimates import skip_estimates
from regression_task import Regression
from tiny_runs import joint_recipe, tokenizer_recipe, transformer_recipe, use_tiny_teacher
from torch import nn

from vavae.data.images import ImagesConfig
from vavae.errors import RunError, UserError
from vavae.stages import encode, train_dit, train_joint, train_tokenizer
from vavae.training import checkpoint, gradients
from vavae.training.batchnorm import HostSyncBatchNorm2d, synchronize_batch_norm
from vavae.training.optimizer import OptimizerConfig
from vavae.training.parallel import World, processes
from vavae.training.trainer import Trainer, TrainingConfig
from vavae.transformer.routing import RoutingConfig

torch.set_num_threads(1)


def tokenizer(folder: str, images: str, parallel: str = "replicate") -> None:
    """Train the tiny tokenizer, with a checkpoint at the end."""
    use_tiny_teacher()
    recipe = tokenizer_recipe(Path(folder), images=int(images), checkpoint_images=int(images), parallel=parallel)
    train_tokenizer.run(recipe)


def joint(folder: str, images: str, checkpoint_images: str) -> None:
    """Train the tiny tokenizer and a tiny transformer together."""
    use_tiny_teacher()
    train_joint.run(joint_recipe(Path(folder), images=int(images), checkpoint_images=int(checkpoint_images)))


def transformer(folder: str, data: str, images: str, parallel: str = "replicate") -> None:
    """Train the tiny transformer with routing, which keeps all tokens in the end, and the contrastive term."""
    recipe = transformer_recipe(Path(folder), Path(data), images=int(images), parallel=parallel)
    routing = RoutingConfig("sprint", start=1, drop=0.5, path_drop=0.25, full_after_images=int(images) - 16)
    shape = replace(recipe.transformer, depth=3, routing=routing)
    train_dit.run(replace(recipe, transformer=shape, flow=replace(recipe.flow, contrastive=0.05)))


def aligned_transformer(folder: str, data: str, parallel: str = "replicate") -> None:
    """Train the tiny transformer with alignment of hidden states, by two teachers that work in every step."""
    from aligned_runs import several_teachers_recipe, use_the_teacher

    use_the_teacher()
    skip_estimates()
    train_dit.run(several_teachers_recipe(Path(folder), Path(data), parallel=parallel))


def measured_stages(folder: str, data: str, port: str) -> None:
    """Train both stages with a Fréchet distance during training, the second one through another port."""
    from measured_runs import measured_tokenizer_recipe, measured_transformer_recipe, tiny_network

    from vavae.evaluation import validation

    use_tiny_teacher()
    validation.load_feature_network = tiny_network
    validation._REFERENCE_IMAGES = 100
    train_tokenizer.run(measured_tokenizer_recipe(Path(folder, "tokenizer")))
    os.environ["MASTER_PORT"] = port
    train_dit.run(measured_transformer_recipe(Path(folder, "transformer"), Path(data)))


def until_killed(stage: str, folder: str, data: str, number: int, at: int) -> None:
    """Train a stage, and send this process a signal after `at` images."""
    skip_estimates()
    tasks: dict[str, Any] = {"transformer": train_dit.TransformerTask, "joint": train_joint.JointTask}
    task = tasks[stage]
    original = task.step

    def step(self: Any, batch: Any, images_seen: int, scale: float) -> dict[str, torch.Tensor]:
        if images_seen == at:
            os.kill(os.getpid(), number)
        return original(self, batch, images_seen, scale)  # type: ignore[no-any-return]

    task.step = step
    if stage == "transformer":
        transformer(folder, data, "64")
    else:
        joint(folder, "64", "24")


def stopped_transformer(folder: str, data: str, parallel: str) -> None:
    """Train the tiny transformer; after 24 images one process is asked to stop."""
    original = train_dit.TransformerTask.step

    def step(self: train_dit.TransformerTask, batch: Any, images_seen: int, scale: float) -> dict[str, torch.Tensor]:
        if images_seen == 24 and self.world.first:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, images_seen, scale)

    train_dit.TransformerTask.step = step  # type: ignore[method-assign]
    try:
        transformer(folder, data, "64", parallel)
    except KeyboardInterrupt as stopped:
        assert "32 of 64 images" in str(stopped)
    else:
        raise AssertionError("it was not stopped")


def encode_images(folder: str, tokenizer: str) -> None:
    """Encode embedded images in four shards."""
    data = ImagesConfig("demo", size=16, limit=40)
    if os.environ["RANK"] != "0":

        def refuse(*_: object) -> None:
            raise AssertionError("the first process lists and checks the images for all")

        ImagesConfig.open = refuse  # type: ignore[assignment,method-assign]
    encode.run(encode.Config(tokenizer, folder, data, shard_size=10, batch_size=4, device="cpu"))


def evaluations(block: str, *recipes: str) -> None:
    """Evaluate by recipes, with small networks and blocks of `block` images."""
    import evaluate_models

    from vavae.config import load_recipe
    from vavae.evaluation import features
    from vavae.stages import evaluate
    from vavae.training.parallel import sharing_processes

    evaluate_models.use_colors()
    features.BLOCK = int(block)
    with sharing_processes():
        for recipe in recipes:
            evaluate.run(load_recipe(evaluate.Config, recipe))


def samples(generator: str, folder: str) -> None:
    """Draw five images by the command; another seed is then refused, and only the first process says so."""
    from vavae.cli import run
    from vavae.training.parallel import sharing_processes

    given = ["sample", "--generator", generator, "--output", folder, "--device", "cpu", "--batch_size", "1", "--npz"]
    with sharing_processes(), contextlib.redirect_stderr(io.StringIO()) as errors:
        assert run([*given, "--count", "5"]) == 0
        assert run([*given, "--count", "6", "--seed", "1"]) == 2
    printed = [line for line in errors.getvalue().splitlines() if line.startswith("vavae: ")]
    assert ["another seed" in line for line in printed] == ([True] if os.environ["RANK"] == "0" else [])


def collectives() -> None:
    """Call every function below in one group of processes; the last one ends them."""
    with processes("cpu") as world:
        messages(world)
        gradient_means(world)
        batch_norm(world)
        mistake(world)


def messages(world: World) -> None:
    """Collectives of World."""
    tensors = [torch.full((3,), float(world.rank)), torch.tensor([[1.0 + world.rank]]).double(), torch.zeros(())]
    world.average_(tensors)
    world.average_([])  # of a validation that measured nothing
    assert torch.equal(tensors[0], torch.full((3,), 0.5)) and tensors[1].item() == 1.5
    spoken = torch.tensor([1.0 + world.rank, 2.0])
    world.broadcast_([spoken])
    assert spoken.tolist() == [1.0, 2.0]
    assert world.any(world.rank == 1) and not world.any(False)
    assert world.gather(world.rank * 10) == [0, 10]
    assert world.once(lambda: f"from {world.rank}") == "from 0"


def gradient_means(world: World) -> None:
    """Gradients of two parts are those of the whole batch, and their transfer starts within the backward pass."""
    torch.manual_seed(0)
    first, unused, second = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    whole = torch.randn(6, 4)
    second(first(whole) * frozen).sum().div(6).backward()
    groups = [[*first.parameters(), *unused.parameters()], [frozen, *second.parameters()]]
    expected = [parameter.grad for group in groups for parameter in group]
    for module in (first, second):
        module.zero_grad()
    mine = whole[3 * world.rank : 3 * world.rank + 3]
    gradients._BUCKET_BYTES = 40  # several buckets
    averager = gradients.GradientAverager(world, groups)
    assert len(averager._buckets) == 3
    second(first(mine[:1]) * frozen).sum().div(3).backward()
    started = []
    original, dist.all_reduce = dist.all_reduce, lambda *a, **k: (started.append(len(started)), original(*a, **k))[1]
    with averager.averaging():
        second(first(mine[1:]) * frozen).sum().div(3).backward()
        assert len(started) == 0, "the unused layer's buckets come first"
    assert len(started) == 2
    for value, wanted in zip([p.grad for group in groups for p in group], expected, strict=True):
        assert (value is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(value, wanted)

    averager = gradients.GradientAverager(world, [[*first.parameters()], [*second.parameters()]])
    with pytest.raises(RuntimeError, match="more than one gradient"), averager.averaging():
        second(first(mine)).sum().backward()
        assert len(started) == 4, "all buckets are sent"
        second(first(mine)).sum().backward()
    dist.all_reduce = original
    world.wait()


def batch_norm(world: World) -> None:
    """Outputs, gradients and running statistics of two halves equal those of the whole batch."""
    torch.manual_seed(0)
    whole = torch.randn(4, 5, 6, 6) * 3 + 20
    weights = torch.randn(4, 5, 6, 6)
    plain = nn.Sequential(nn.BatchNorm2d(5), nn.SiLU(), nn.BatchNorm2d(5))
    torch.nn.init.uniform_(plain[0].weight)
    synced = nn.Sequential(nn.BatchNorm2d(5), nn.SiLU(), nn.BatchNorm2d(5))
    synced.load_state_dict(plain.state_dict())
    synchronize_batch_norm(synced)
    assert all(isinstance(synced[i], HostSyncBatchNorm2d) for i in (0, 2))
    x = whole.clone().requires_grad_()
    (plain(x) * weights).sum().backward()
    half = slice(2 * world.rank, 2 * world.rank + 2)
    y = whole[half].clone().requires_grad_()
    out = synced(y)
    (out * weights[half]).sum().backward()
    torch.testing.assert_close(out, plain(whole)[half], rtol=1e-4, atol=1e-4)
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(y.grad, x.grad[half], rtol=1e-3, atol=1e-5)
    grads = [p.grad for p in synced.parameters() if p.grad is not None]
    world.average_(grads)
    for p, q in zip(synced.parameters(), plain.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad * 2, q.grad, rtol=1e-3, atol=1e-4)
    synced(whole[half])  # a second time, as the plain one above
    torch.testing.assert_close(synced[0].running_var, plain[0].running_var, rtol=1e-5, atol=1e-5)
    without = nn.Sequential(nn.BatchNorm2d(5, eps=1e-4, affine=False))  # of latents in joint training
    synchronize_batch_norm(without)
    assert without[0].eps == 1e-4
    expected = nn.functional.batch_norm(whole, None, None, training=True, eps=1e-4)
    torch.testing.assert_close(without(whole[half]), expected[half], rtol=1e-4, atol=1e-4)


def mistake(world: World) -> None:
    """A user's mistake in the first process ends all, and only the first reports it."""

    def wrong() -> None:
        raise UserError("no such recipe")

    try:
        world.once(wrong)
    except UserError:
        assert world.first
    except SystemExit as leave:
        assert not world.first and leave.code == 2
    else:
        raise AssertionError("no error")


def unreadable_in_one(folder: str) -> None:
    """The second process cannot read its part of a checkpoint: it raises, and the first exits without a message."""
    original = checkpoint.sha256_file

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with processes("cpu") as world:
        checkpoint.sha256_file = original if world.first else fail
        try:
            checkpoint.CheckpointFolder(Path(folder), world=world).newest()
        except OSError as error:
            assert not world.first and error.errno == errno.EIO
        except SystemExit as leave:
            assert world.first and leave.code == 1
        else:
            raise AssertionError("no error")


def one_fails() -> None:
    """The first process fails, and the other waits for it."""
    if os.environ["RANK"] == "0":
        raise OSError("the port is taken")
    signal.pause()


def out_of_memory(folder: str) -> None:
    """One of two processes runs out of memory: both end, and the new micro-batch is saved."""
    with processes("cpu") as world:
        task = Regression(world=world)
        task.fits = 3 if world.first else 8
        trainer = Trainer(
            task, TrainingConfig(images=80, batch_size=8, tensorboard=False, device="cpu"), Path(folder), world
        )
        try:
            trainer.run("oom")
        except (RunError, RuntimeError) as error:  # the other process may see the first one leave
            assert isinstance(error, RuntimeError) or "works on 2 images at once" in str(error)
        else:
            raise AssertionError("no error")


def tuned_transformer(folder: str, data: str, initial: str, parallel: str = "replicate") -> None:
    """Training of learning rate 0 from the weights of another transformer."""
    recipe = transformer_recipe(Path(folder), Path(data), images=16, parallel=parallel)
    train_dit.run(replace(recipe, initial=initial, optimizer=OptimizerConfig(learning_rate=0.0)))


def wrong_initial(folder: str, data: str) -> None:
    """Missing starting weights end both processes; the first reports them."""
    try:
        tuned_transformer(folder, data, "no/such/file.pt")
    except UserError as error:
        assert os.environ["RANK"] == "0" and "no/such/file.pt" in str(error)
    except SystemExit as leave:
        assert os.environ["RANK"] == "1" and leave.code == 2
    else:
        raise AssertionError("it trains")
