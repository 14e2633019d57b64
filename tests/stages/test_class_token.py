"""REG: class tokens from images to samples."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VISION_MODELS, randomise
from tiny_runs import AUTOENCODER, transformer_recipe, write_latents
from torch import Tensor

from vavae.cli import run
from vavae.data import LatentDataset, load_images
from vavae.data.images import ImagesConfig
from vavae.errors import UserError
from vavae.flow import FlowConfig
from vavae.losses.representation import spatial_normalize
from vavae.models import Generator, Tokenizer
from vavae.serve.studio import Studio
from vavae.stages import encode, train_dit
from vavae.stages.hidden_alignment import HiddenAlignmentConfig, ProjectorConfig, Projectors
from vavae.stages.train_dit import TransformerTask
from vavae.teachers import load_teacher
from vavae.tokenizer import AutoencoderKL, LatentStatistics
from vavae.transformer import LightningDiT, LightningDiTConfig
from vavae.transformer.routing import RoutingConfig

D = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_latents(tmp_path_factory.mktemp("data"), class_channels=D)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents without class tokens."""
    return write_latents(tmp_path_factory.mktemp("plain"))


def recipe_of(folder: Path, data: Path, **training: Any) -> train_dit.Config:
    recipe = transformer_recipe(folder, data, **training)
    return replace(recipe, transformer=replace(recipe.transformer, class_token=D))


def make_task(recipe: train_dit.Config) -> TransformerTask:
    return TransformerTask(recipe, LatentDataset(recipe.latents), Tokenizer.from_pretrained(recipe.tokenizer))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_dit.run(recipe_of(folder, data, images=32, checkpoint_images=8))
    return folder


def test_class_tokens_have_their_own_noise_and_the_flips_and_times_of_the_latents(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    original = FlowConfig.loss

    def loss(self: FlowConfig, *arguments: Any) -> dict[str, Tensor]:
        seen.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(FlowConfig, "loss", loss)
    task = make_task(recipe_of(tmp_path, data, batch_size=30))
    batches = task.batches(0, 0)
    batch = next(batches)
    batches.close()  # type: ignore[attr-defined]
    terms = task.step(batch, 0, 1.0)
    assert task.transformer.get_parameter("final_layer.linear_cls.weight").grad.abs().max() > 0  # type: ignore[union-attr]
    torch.testing.assert_close(terms["total"], terms["mse"] + terms["direction"] + 0.03 * terms["class_token"])
    latents, _, noise, _, _, (tokens, own) = seen[0][1:]
    # Each latent and its token are of the same image, and both mirrored or both not.
    every, pairs = torch.arange(30), set()
    for mirrored in (False, True):
        mask = torch.full((30,), mirrored)
        table, _ = task.latents.get(every, mask)
        rows, images = (latents[:, None] == table[None]).flatten(2).all(2).nonzero(as_tuple=True)
        assert torch.equal(tokens[rows], task.latents.class_tokens(every, mask)[images])
        pairs |= {(int(row), mirrored) for row in rows}
    assert len(pairs) == 30 and 5 < sum(mirrored for _, mirrored in pairs) < 25
    # The noise is not the beginning of the latents' noise, and standard normal.
    assert own.shape == (30, D) and not torch.equal(own, noise.flatten(1)[:, :D])
    correlation = (own * noise.flatten(1)[:, :D]).mean()
    assert abs(float(correlation)) < 0.25 and 0.8 < float(own.std()) < 1.2


@pytest.mark.slow
def test_resume_is_exact(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TransformerTask.step

    def step(self: Any, batch: Any, images_seen: int, scale: float) -> Any:
        if images_seen >= 24:
            raise KeyboardInterrupt
        return original(self, batch, images_seen, scale)

    recipe = recipe_of(tmp_path, data, images=32, checkpoint_images=8)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TransformerTask, "step", step)
        train_dit.run(recipe)
    train_dit.run(recipe)
    for name in ("generator/model.safetensors", "metrics.jsonl"):
        assert (trained / name).read_bytes() == (tmp_path / name).read_bytes()
    assert b'"class_token"' in (trained / "metrics.jsonl").read_bytes()


def with_weights(folder: Path) -> Generator:
    """Return the generator of a folder with an output that is not near zero."""
    generator = Generator.from_pretrained(folder / "generator")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in generator.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator


def test_samples_are_functions_of_seed_index_and_label(trained: Path, tmp_path: Path) -> None:
    generator = with_weights(trained)
    assert isinstance(generator.transformer, LightningDiT) and generator.config.class_token == D
    for solver in ("heun", "euler_maruyama"):
        settings: dict[str, Any] = {"steps": 6, "guidance_scale": 2.0, "solver": solver}
        three = generator.latents([0, 1, 2], seed=3, **settings)
        one = generator.latents([2], seed=3, indices=[2], **settings)
        torch.testing.assert_close(three[2:], one, rtol=1e-4, atol=1e-5)
    own = generator.class_noise([0, 1, 2], 3)
    assert own is not None and own.shape == (3, D)
    assert not torch.equal(own, generator.noise([0, 1, 2], 3).flatten(1)[:, :D])
    other = generator.latents([0, 1, 2], seed=3, steps=6, class_noise=-own)
    assert not torch.allclose(other, generator.latents([0, 1, 2], seed=3, steps=6), atol=1e-3)
    generator.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    assert torch.equal(again.latents([0, 1], steps=6), generator.latents([0, 1], steps=6))
    assert generator.latents([1], steps=4, size=(16, 8)).shape == (1, 8, 8, 4)
    with pytest.raises(UserError, match=f"class_token must be null for a pipeline of diffusers, got {D}"):
        generator.save_diffusers(tmp_path / "pipeline")


def test_a_walk_between_seeds_ends_at_their_samples(trained: Path) -> None:
    generator = with_weights(trained)
    sampling = generator.sampling.changed(steps=4)
    walk = Studio(generator.tokenizer, generator).between_seeds(1, 5, 9, 3, sampling)
    ends = [Studio(generator.tokenizer, generator).sample([1], seed, sampling)[0] for seed in (5, 9)]
    assert all(abs(walk[i].astype(int) - end).max() <= 1 for i, end in zip((0, -1), ends, strict=True))


def test_encode_stores_the_teachers_class_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(AUTOENCODER).eval()
    Tokenizer(model, LatentStatistics(torch.zeros(8), torch.ones(8))).save_pretrained(tmp_path / "tokenizer")
    randomise(VISION_MODELS["dinov2"]()).save_pretrained(tmp_path / "teacher")  # type: ignore[operator]
    images = ImagesConfig("demo", 16, limit=6)
    config = encode.Config(
        str(tmp_path / "tokenizer"),
        str(tmp_path / "latents"),
        images,
        device="cpu",
        class_token=f"{tmp_path / 'teacher'}@24",
    )
    stored = encode.run(config)
    pixels, teacher = load_images(images.open("train"), range(6), 16), load_teacher(tmp_path / "teacher", input_size=24)
    for mirrored in (False, True):
        tokens = stored.class_tokens(torch.arange(6), torch.full((6,), mirrored))
        assert torch.allclose(tokens, teacher(pixels.flip(3) if mirrored else pixels).pooled, atol=1e-5)
    with pytest.raises(UserError, match="was made with another class_token"):
        encode.run(replace(config, class_token=None))


def test_a_teacher_without_class_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_teacher import tiny_teacher

    monkeypatch.setattr(encode, "load_teacher", lambda *_, **__: tiny_teacher())
    torch.manual_seed(0)
    model = AutoencoderKL(AUTOENCODER).eval()
    Tokenizer(model, LatentStatistics(torch.zeros(8), torch.ones(8))).save_pretrained(tmp_path / "tokenizer")
    config = encode.Config(str(tmp_path / "tokenizer"), str(tmp_path / "latents"), ImagesConfig("demo", 16, limit=6))
    with pytest.raises(UserError, match="a feature of the whole image, got sam"):
        encode.run(replace(config, class_token="sam", device="cpu"))
    assert not (tmp_path / "latents").exists()


@pytest.mark.usefixtures("estimates")
def test_routing_drops_the_class_token_as_often_as_others(data: Path, tmp_path: Path) -> None:
    """As in SR-DiT; 4 of 17 tokens are kept."""
    recipe = recipe_of(tmp_path, data)
    routing = RoutingConfig("sprint", start=1)
    task = make_task(replace(recipe, transformer=replace(recipe.transformer, depth=3, routing=routing)))
    kept = task._routed(torch.arange(4000), 0)["kept"]
    assert kept.shape == (4000, 4)
    shares = torch.bincount(kept.flatten(), minlength=17) / 4000
    assert len(shares) == 17 and float((shares - 4 / 17).abs().max()) < 0.03
    assert "class_token" in task.step(next(iter(task.batches(0, 0))), 0, 1.0)
    assert task.work(0).tokens == round(17 * (2 + 4 / 17) / 3)


WRONG: dict[str, tuple[Callable[[train_dit.Config, Path], train_dit.Config], str]] = {
    "channels": (
        lambda recipe, _: replace(recipe, transformer=replace(recipe.transformer, class_token=D + 1)),
        rf"transformer\.class_token must be {D}, the channels of the class tokens in latents .*, got {D + 1}",
    ),
    "none stored": (
        lambda recipe, plain: replace(recipe, latents=str(plain / "latents")),
        rf"transformer\.class_token must be null, .*, got {D}; 'vavae encode --class_token TEACHER' stores them",
    ),
    "prediction": (
        lambda recipe, _: replace(recipe, flow=FlowConfig(prediction="data")),
        r"flow\.prediction must be velocity with transformer\.class_token, got data",
    ),
    "architecture": (
        lambda recipe, _: replace(recipe, transformer=train_dit.TransformerConfig("DiTDH-S", class_token=D)),
        rf"transformer\.class_token must be null for DiTDH-S, got {D}",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_recipes_are_one_line(name: str, data: Path, plain: Path, tmp_path: Path) -> None:
    change, words = WRONG[name]
    with pytest.raises(UserError, match=words):
        train_dit.run(change(recipe_of(tmp_path / "run", data), plain))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_samples_by_command(trained: Path, tmp_path: Path) -> None:
    command = ["sample", "--generator", str(trained / "generator"), "--output", str(tmp_path), "--count", "3"]
    assert run([*command, "--steps", "3", "--device", "cpu"]) == 0
    assert (tmp_path / "000002.png").exists()


def test_class_token_is_aligned_with_the_teachers() -> None:
    """REG's projection loss has the class token as the first of its tokens; the normalization leaves it as it is."""
    torch.manual_seed(0)
    shape = LightningDiTConfig(4, 1, 8, width=16, depth=2, heads=2, num_classes=3, class_token=D)
    config = HiddenAlignmentConfig(block=1, projector=ProjectorConfig(hidden=8), normalization="zscore")
    projectors = Projectors(config, shape, [D])
    tokens, features, class_token = torch.randn(2, 17, 16), torch.randn(2, 16, D), torch.randn(2, D)
    projected = projectors.projectors[0](tokens, (4, 4))
    patches = F.cosine_similarity(projected[:, 1:], spatial_normalize(features, 0.6), dim=-1)
    first = F.cosine_similarity(projected[:, 0], class_token, dim=-1)
    expected = -(patches.sum() + first.sum()) / (2 * 17)
    torch.testing.assert_close(projectors(tokens, [features], class_token), expected)

    with pytest.raises(UserError, match=r"alignment\.teachers must be one of 6 channels, .* got 6, 6"):
        Projectors(config, shape, [D, D])
    with pytest.raises(UserError, match=r"alignment\.projector\.kind must be mlp or linear with"):
        Projectors(replace(config, projector=ProjectorConfig("conv")), shape, [D])
