"""Every recipe resolves, builds (on the meta device), has the published parameter counts and a complete header."""

import itertools
import json
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from vavae.checkpoints.registry import MODELS
from vavae.cli import COMMANDS
from vavae.config import load_recipe, parse_command_line, to_plain
from vavae.config.recipes import package_recipe, recipe_names
from vavae.device import without_values
from vavae.flow.times import shift_times
from vavae.frontier import run as frontier
from vavae.losses import TokenizerObjective
from vavae.losses.dino_discriminator import DinoViT
from vavae.stages import encode, evaluate, train_dit, train_joint, train_tokenizer
from vavae.teachers.registry import teacher_spec
from vavae.tokenizer import AutoencoderKL
from vavae.training.optimizer import OptimizerConfig
from vavae.transformer import LightningDiT, LightningDiTConfig, build_transformer
from vavae.transformer.routing import RoutingConfig

ROOT = Path(__file__).parents[2]
ALL = [package_recipe(name) for name in recipe_names()]
IMAGENET = [path for path in ALL if path.parent.name == "imagenet256"]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "state_dicts.json").read_text())
EPOCH = 1_281_166
DIT_EPOCH = 1_280_000  # the paper's 80,000 steps of 1,024 are 64 epochs


def stage_of(path: Path) -> Any:
    if path.parent.name == "frontier":
        return frontier
    command = {"tokenizer": train_tokenizer, "encode": encode, "joint": train_joint}
    return next((stage for name, stage in command.items() if path.stem.startswith(name)), train_dit)


@cache
def recipe(path: Path) -> Any:
    return load_recipe(stage_of(path).Config, path)


def imagenet(name: str) -> Any:
    return recipe(package_recipe(f"imagenet256/{name}"))


def ident(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_every_published_experiment_has_a_recipe() -> None:
    tokenizers = {f"tokenizer-f16d{d}-{t}" for d in (16, 32, 64) for t in ("none", "mae", "dinov2", "sam", "clip")}
    stages = {f"tokenizer-f16d32-dinov2-final-{stage}" for stage in (1, 2, 3)}
    transformers = {f"lightningdit-{size}-{epochs}ep" for size in ("b", "l", "xl") for epochs in (64, 80, 160, 800)}
    names = {path.stem for path in IMAGENET}
    assert tokenizers | stages | transformers <= names
    assert sum(name.startswith("table1-") for name in names) == 10


@pytest.mark.parametrize("path", IMAGENET, ids=ident)
def test_recipe_headers(path: Path) -> None:
    text = path.read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for field in ("# Published", "# Expected: ", "# Run: vavae ", "# Measured with this project: "):
        assert f"\n{field}" in header
    assert re.search(r"Expected: .*H800-hours \(", header)
    command = stage_of(path).__name__.split(".")[-1].replace("_", "-")
    assert re.search(rf"vavae {command} {path.parent.name}/{re.escape(path.stem)}(\s|$)", header)
    assert max(map(len, text.splitlines())) <= 120
    for named in re.findall(r"(?<![\w/])(?:small|imagenet256|frontier|demo-model)/[\w.-]*[\w-]", header):
        assert named in recipe_names()


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    parts = [flat(value, f"{prefix}.{name}".lstrip(".")) for name, value in values.items()]
    return {name: value for part in parts for name, value in part.items()}


def covering() -> list[Path]:
    """Return recipes that together set every key that a recipe sets."""
    chosen, known = [], set[tuple[Any, str]]()
    for path in sorted(ALL, key=lambda path: path.stat().st_size, reverse=True):
        keys = {(stage_of(path), key) for key in flat(yaml.safe_load(path.read_text()))}
        if not keys <= known:
            chosen.append(path)
        known |= keys
    return chosen


@pytest.mark.parametrize("path", covering(), ids=ident)
def test_resolved_recipes_are_read_back(path: Path, tmp_path: Path) -> None:
    config = recipe(path)
    (tmp_path / "resolved.yaml").write_text(json.dumps(to_plain(config)))
    assert load_recipe(type(config), tmp_path / "resolved.yaml") == config


def tokenizer_recipes() -> list[Path]:
    return [path for path in ALL if path.stem.startswith("tokenizer")]


@pytest.mark.parametrize("path", tokenizer_recipes(), ids=ident)
def test_tokenizers_build(path: Path) -> None:
    config = recipe(path)
    with without_values():
        teacher = teacher_spec(config.teacher.name)
        aligned = config.objective.alignment.enabled
        width = teacher.width if teacher else None
        objective = TokenizerObjective(
            config.objective, config.tokenizer.latent_channels, width, nn.Identity(), DinoViT()
        )
        grid = config.data.latent_size(config.factor)
        if config.representation is None:
            model: nn.Module = AutoencoderKL(config.tokenizer).eval()
        else:
            model = config.representation.decoder(width, grid)
            assert teacher and (config.teacher.input_size or teacher.input_size) == grid[0] * teacher.patch
    assert config.data.size == grid[0] * config.factor
    assert (objective.alignment is not None) == aligned
    if teacher and aligned:
        assert config.teacher.input_size is None or config.teacher.input_size % teacher.patch == 0
    if path in IMAGENET:
        published = GOLDEN[f"vavae_f16d{config.tokenizer.latent_channels}"]
        for part in ("encoder", "decoder"):
            count = sum(parameter.numel() for parameter in model.get_submodule(part).parameters())
            assert count == published[f"parameters_{part}"]
        assert sum(parameter.numel() for parameter in objective.discriminator_parameters()) == 2_765_633
        if aligned:
            assert objective.alignment.linear_proj.weight.shape[1] == config.tokenizer.latent_channels


@cache
def built(shape: LightningDiTConfig) -> LightningDiT:
    """Return a network without numbers; many recipes share one."""
    with without_values():
        return build_transformer(shape)


def parameters(model: LightningDiT) -> int:
    """Count as the published code does: with the position embedding, which is a parameter there."""
    return sum(parameter.numel() for parameter in model.parameters()) + model.pos_embed.numel()


def build(config: train_dit.Config, channels: int, side: int, classes: int = 1000, **changes: Any) -> LightningDiT:
    return built(replace(config.transformer.resolve(channels, side, classes), **changes))


@pytest.mark.parametrize("path", [p for p in IMAGENET if stage_of(p) is train_dit], ids=ident)
def test_transformers_have_published_parameter_counts(path: Path) -> None:
    config = recipe(path)
    shape, small = config.transformer, "sd-vae" in config.latents
    channels, side = (4, 32) if small else (32, 16)
    count = parameters(build(config, channels, side, routing=RoutingConfig()))
    size = "L/2" if shape.size == "L/1" else shape.size  # no L/1 is published
    expected, grid = GOLDEN[f"LightningDiT-{size}"]["parameters"], resolved(config, channels, side)
    width, depth, patch = grid.width, grid.depth, grid.patch_size
    if (published := int(size[-1])) != patch or small:  # other patches and channels, and 256 tokens instead of 64
        maps = 2 * width * (channels * patch**2 - 32 * published**2) + channels * patch**2 - 32 * published**2
        expected += maps + (256 - 64) * width
    hidden = 8 * width // 3
    if not shape.swiglu:
        expected += depth * ((8 * width**2 + 5 * width) - (3 * width * hidden + 2 * hidden + width))
    if not shape.rmsnorm:
        expected -= (2 * depth + 1) * width
    if shape.qk_norm:
        expected += 2 * depth * width // grid.heads
    if (token := shape.class_token) is not None:  # two linear maps, a norm, a row of positions
        expected += (token * width + width) + 2 * width + (width * token + token) + width
    assert count == expected


def resolved(config: train_dit.Config, channels: int, side: int) -> LightningDiTConfig:
    shape = config.transformer.resolve(channels, side, 1000)
    assert isinstance(shape, LightningDiTConfig)
    return shape


def measuring(path: Path) -> evaluate.Config:
    """Return the command in a recipe's header that measures its result."""
    (command,) = re.findall(r"^# Measure: vavae (evaluate .*?[^\\])\n", path.read_text(), re.MULTILINE | re.DOTALL)
    arguments = shlex.split(command.replace("\\\n#", " "))
    return parse_command_line(evaluate.Config, arguments[1:], "", COMMANDS["evaluate"].positionals)


@pytest.mark.parametrize("path", [p for p in IMAGENET if stage_of(p) is train_dit], ids=ident)
def test_generators_are_measured_by_the_published_protocol(path: Path) -> None:
    """Published: ADM's reference, 50,000 samples, random labels and no guidance where the number has no other."""
    text, config, measured = path.read_text(), recipe(path), measuring(path)
    assert (measured.what, measured.model) == ("generator", [f"{config.output}/generator"])
    labels = "balanced" if re.search(r"balanced\s#?\s*labels", text) else "random"
    assert (measured.label_protocol, measured.reference) == (labels, "VIRTUAL_imagenet256_labeled.npz")
    assert measured.count == (10_000 if "FID-10k" in text else 50_000)
    assert (measured.guidance_scales or [1.0])[0] == 1.0
    assert (measured.guidance_scales or [1.0])[-1] == config.sampling.guidance_scale
    if "(sFID" in text:  # the Inception Score needs logits
        assert measured.networks[0].startswith("inception:")


@pytest.mark.parametrize("path", [p for p in IMAGENET if stage_of(p) is train_tokenizer], ids=ident)
def test_tokenizers_are_measured_by_the_published_protocol(path: Path) -> None:
    if path.stem.endswith(("final-1", "final-2")):  # their numbers are those of the third stage
        return
    measured = measuring(path)
    assert (measured.what, measured.model) == ("tokenizer", [f"{recipe(path).output}/tokenizer"])
    assert measured.conventions == ["published"]
    assert (measured.data.images, measured.data.size, measured.split) == ("/data/imagenet", 256, "test")


@pytest.mark.parametrize("path", [p for p in IMAGENET if stage_of(p) is train_dit], ids=ident)
def test_transformers_save_often_and_keep_few(path: Path) -> None:
    """A lost machine costs minutes of eight GPUs, and the disk holds about ten checkpoints."""
    training = recipe(path).training
    assert training.checkpoint_images == 2_048_000
    assert training.milestone_images % training.checkpoint_images == 0
    assert training.images <= 10 * training.milestone_images


def test_first_row_of_table_1_is_dit() -> None:
    """With its learned variances, DiT-XL/2 has 675,129,632 parameters (arXiv 2212.09748, its released code)."""
    assert parameters(build(imagenet("table1-01-dit"), 4, 32, learn_sigma=True)) == 675_129_632


def test_small_transformer_builds() -> None:
    for path in ALL:
        if stage_of(path) is train_dit and path.parent.name in ("small", "demo-model"):
            assert parameters(build(recipe(path), 8, 8, 10)) < 40_000_000


@pytest.mark.parametrize("name", ["ditdh-xl-80ep", "ditdh-xl-800ep", "ditdh-xl-512-400ep"])
def test_transformers_of_rae(name: str) -> None:
    """Their latents are 768 x 16 x 16, or 32 x 32 at 512 px, where the published training file is wrong."""
    config = recipe(ROOT / f"src/vavae/recipes/rae/{name}.yaml")
    side = 32 if "512" in name else 16
    model = build(config, 768, side)
    published = json.loads((ROOT / "tests/golden/state_dicts_next.json").read_text())
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == published[f"RAE DiTDH-XL {16 * side}"]["parameters"]
    flow = config.flow.for_latents((768, side, side))
    assert flow.times.shift == pytest.approx(0.14434 * 16 / side, rel=1e-4)
    assert flow.times.low == pytest.approx(float(shift_times(torch.tensor(0.001), flow.times.shift)), rel=1e-3)


@pytest.mark.parametrize("folder", ["imagenet256", "rae"])
def test_transformers_that_predict_data(folder: str) -> None:
    config = recipe(package_recipe(f"{folder}/lightningdit-xl-data-80ep"))
    assert (config.flow.prediction, config.flow.space, config.flow.floor) == ("data", "velocity", 0.05)
    assert config.optimizer.learning_rate == pytest.approx(5e-5 * config.training.batch_size / 256)


@pytest.mark.parametrize("channels", [16, 32, 64])
def test_tokenizers_differ_by_teacher_and_channels_only(channels: int) -> None:
    plain = imagenet("tokenizer-f16d32-dinov2")
    for teacher, name in [
        ("none", None),
        ("mae", "mae-large"),
        ("dinov2", "dinov2-large"),
        ("sam", "sam-large"),
        ("clip", "clip-large14"),
    ]:
        config = imagenet(f"tokenizer-f16d{channels}-{teacher}")
        assert config.tokenizer == replace(plain.tokenizer, latent_channels=channels)
        assert config.training == plain.training
        assert config.training.images == 50 * EPOCH
        assert config.optimizer == config.discriminator_optimizer == OptimizerConfig("adam", 1e-4, (0.5, 0.9))
        assert config.objective.alignment.enabled == (name is not None)
        if name:
            assert config.teacher.name == name
            assert config.objective == plain.objective


def test_final_tokenizer_is_three_chained_recipes() -> None:
    stages = [imagenet(f"tokenizer-f16d32-dinov2-final-{stage}") for stage in (1, 2, 3)]
    assert [round(stage.training.images / EPOCH) for stage in stages] == [100, 15, 15]
    assert [stage.initial for stage in stages] == [None, stages[0].output, stages[1].output]
    terms = [stage.objective.alignment for stage in stages]
    assert [(term.weight, term.distance_margin, term.cos_margin) for term in terms] == [
        (0.5, 0, 0),
        (0.1, 0, 0),
        (0.1, 0.25, 0.5),
    ]
    assert [stage.objective.adversarial.start_images for stage in stages] == [640_000, 0, 0]
    assert len({stage.tokenizer for stage in stages}) == 1


def test_three_stages_in_one_recipe() -> None:
    """The terms change at the same images as in the chain of three; nothing else differs from its first recipe."""
    whole = imagenet("tokenizer-f16d32-dinov2-final")
    chained = [imagenet(f"tokenizer-f16d32-dinov2-final-{stage}") for stage in (1, 2, 3)]
    begin = 0
    for stage in chained:
        assert whole.objective_at(begin).alignment == stage.objective.alignment
        begin += stage.training.images
        assert whole.objective_at(begin - 1).alignment == stage.objective.alignment
    assert whole.training.images == begin
    page = (ROOT / "docs" / "training.md").read_text()
    (shown,) = re.findall(r"```yaml\n(objective:.*?)```", page, re.DOTALL)
    text = package_recipe("imagenet256/tokenizer-f16d32-dinov2-final").read_text()
    assert yaml.safe_load(shown)["stages"] == yaml.safe_load(text)["stages"]
    training = replace(whole.training, images=chained[0].training.images, milestone_images=None)
    assert replace(whole, output=chained[0].output, stages=(), training=training) == chained[0]


def test_transformer_recipes_differ_by_size_and_length() -> None:
    for size in ("b", "l", "xl"):
        for epochs in (64, 80, 160, 800):
            config = imagenet(f"lightningdit-{size}-{epochs}ep")
            assert config.transformer.size == f"{size.upper()}/1"
            assert config.training.images == epochs * DIT_EPOCH
            assert config.flow.uniform_after_images == (480 * DIT_EPOCH if epochs == 800 else None)
            assert config.optimizer == OptimizerConfig("adamw", 2e-4, (0.9, 0.95))
            assert (config.training.batch_size, config.training.ema_decay) == (1024, 0.9999)
            assert not config.training.ema_warmup
    short, long = (imagenet(f"lightningdit-xl-{epochs}ep").sampling for epochs in (64, 800))
    assert (short.guidance_scale, short.guidance_start, short.guidance_channels) == (10.0, 0.10, 3)
    assert (long.guidance_scale, long.guidance_start, long.guidance_channels) == (6.7, 0.125, 3)


def test_each_row_of_table_1_changes_its_keys() -> None:
    paths = [path for path in IMAGENET if path.stem.startswith("table1-")]
    rows = [flat(to_plain(recipe(path))) for path in paths]
    changed = [{name for name in new if new[name] != old[name]} - {"output"} for old, new in itertools.pairwise(rows)]
    assert changed == [
        {"flow.path", "flow.prediction"},
        {"training.batch_size", "optimizer.learning_rate"},
        {"optimizer.betas"},
        {"flow.times.kind"},
        {"flow.direction_weight"},
        {"transformer.swiglu"},
        {"transformer.rmsnorm"},
        {"transformer.rope"},
        {"transformer.size", "latents", "tokenizer", "normalization"},
    ]
    published = [re.search(r"Published: gFID ([\d.]+)", path.read_text()) for path in paths]
    assert [float(found[1]) for found in published if found] == [
        19.50,
        17.20,
        16.59,
        16.61,
        13.99,
        12.52,
        10.10,
        9.25,
        7.13,
        4.29,
    ]


def test_inputs_of_recipes_are_outputs_of_others() -> None:
    configs = [recipe(path) for path in IMAGENET]
    written = {config.output for config in configs}
    written |= {f"{config.output}/tokenizer" for config in configs if isinstance(config, train_tokenizer.Config)}
    written |= {"runs/imagenet256/sd-vae", "runs/imagenet256/sd-vae-mse"}  # by the `vavae convert` of the header
    written |= {model.name for model in MODELS}
    for config in configs:
        if isinstance(config, train_dit.Config):
            assert {config.latents, config.tokenizer} <= written
            made = [other for other in configs if isinstance(other, encode.Config) and other.output == config.latents]
            assert [other.tokenizer for other in made] == [config.tokenizer]
        elif isinstance(config, encode.Config):
            assert config.tokenizer in written
