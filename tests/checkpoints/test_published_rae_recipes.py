"""RAE's YAML configurations become recipes of ours."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from vavae.checkpoints.published_keys import ConvertedRecipe
from vavae.checkpoints.published_recipes import convert_recipe
from vavae.cli import run
from vavae.config import from_plain, load_recipe
from vavae.errors import UserError
from vavae.stages import sample, train_dit, train_tokenizer

RECIPES = Path(__file__).parents[2] / "src/vavae/recipes/rae"
DECODER = """
stage_1:
  target: stage1.RAE
  params:
    encoder_cls: 'Dinov2withNorm'
    encoder_config_path: 'facebook/dinov2-with-registers-base'
    encoder_input_size: 224
    encoder_params:
      dinov2_path: 'facebook/dinov2-with-registers-base'
      normalize: true
    decoder_config_path: 'configs/decoder/ViTXL'
    noise_tau: 0.8
    reshape_to_2d: true
training:
  epochs: 16
  ema_decay: 0.9978
  global_batch_size: 512
  num_workers: 8
  clip_grad: 0.0
  log_interval: 100
  checkpoint_interval: 1
  sample_every: 2500
  optimizer:
    lr: 2.0e-4
    betas: [0.9, 0.95]
    weight_decay: 0.0
  scheduler:
    type: cosine
    warmup_epochs: 1
    decay_end_epoch: 16
    base_lr: 2.0e-4
    final_lr: 2.0e-5
    warmup_from_zero: true
gan:
  disc:
    arch:
      dino_ckpt_path: 'models/discs/dino_vit_small_patch8_224.pth'
      ks: 9
      norm_type: 'bn'
      using_spec_norm: true
      recipe: 'S_8'
    optimizer:
      lr: 2.0e-4
      betas: [0.9, 0.95]
      weight_decay: 0.0
    scheduler:
      type: cosine
      warmup_epochs: 1
      decay_end_epoch: 16
      base_lr: 2.0e-4
      final_lr: 2.0e-5
      warmup_from_zero: true
    augment:
      prob: 1.0
      cutout: 0.0
  loss:
    disc_loss: hinge
    gen_loss: vanilla
    disc_weight: 0.75
    perceptual_weight: 1.0
    disc_start: 8
    disc_upd_start: 6
    lpips_start: 0
    max_d_weight: 10000.0
    disc_updates: 1
"""
NETWORKS = """
stage_1:
  target: stage1.RAE
  params:
    encoder_cls: 'Dinov2withNorm'
    encoder_config_path: 'models/encoders/dinov2/wReg_base'
    encoder_input_size: 224
    encoder_params:
      dinov2_path: 'models/encoders/dinov2/wReg_base'
      normalize: true
    decoder_config_path: 'configs/decoder/ViTXL'
    pretrained_decoder_path: 'models/decoders/dinov2/wReg_base/ViTXL_n08/model.pt'
    noise_tau: 0.0
    reshape_to_2d: true
    normalization_stat_path: 'models/stats/dinov2/wReg_base/imagenet1k/stat.pt'
stage_2:
  target: stage2.models.DDT.DiTwDDTHead
  params:
    input_size: 16
    patch_size: 1
    in_channels: 768
    hidden_size: [1152, 2048]
    depth: [28, 2]
    num_heads: [16, 16]
    mlp_ratio: 4.0
    class_dropout_prob: 0.1
    num_classes: 1000
    use_qknorm: false
    use_swiglu: true
    use_rope: true
    use_rmsnorm: true
    wo_shift: false
    use_pos_embed: true
"""
FLOW = """
transport:
  params:
    path_type: 'Linear'
    prediction: 'velocity'
    loss_weight: null
    time_dist_type: 'logit-normal_0_1'
sampler:
  mode: ODE
  params:
    sampling_method: 'euler'
    num_steps: 50
    atol: 1.0e-6
    rtol: 1.0e-3
    reverse: false
guidance:
  method: 'cfg'
  scale: 1.0
  t_min: 0.0
  t_max: 1.0
misc:
  latent_size: [768, 16, 16]
  num_classes: 1000
  time_dist_shift_dim: 196608
  time_dist_shift_base: 4096
"""
TRAINING = """
training:
  global_seed: 0
  epochs: 1400
  global_batch_size: 1024
  grad_accum_steps: 4
  ema_decay: 0.9995
  num_workers: 4
  log_every: 100
  ckpt_every: 5000
  sample_every: 10000
  base_lr: 0.0002
  final_lr: 0.00002
  beta: [0.9, 0.95]
  wd: 0.0
  schedule_type: linear
  decay_start_epoch: 40
  decay_end_epoch: 800
  clip_grad: 1.0
  cfg_scale: 1.0
"""
TRANSFORMER = NETWORKS + FLOW + TRAINING


def converted(tmp_path: Path, text: str, changes: dict[str, Any] | None = None) -> ConvertedRecipe:
    """Convert a configuration with `changes`, by dotted name."""
    values = yaml.safe_load(text)
    for name, value in (changes or {}).items():
        *sections, key = name.split(".")
        part = values
        for section in sections:
            part = part.setdefault(section, {})
        part[key] = value
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(values))
    return convert_recipe(path)


def test_decoder_training_equals_our_recipe(tmp_path: Path) -> None:
    recipe = converted(tmp_path, DECODER)
    assert recipe.command == "train-tokenizer"
    config = from_plain(train_tokenizer.Config, recipe.values)
    ours = load_recipe(train_tokenizer.Config, RECIPES / "tokenizer-dinov2-b.yaml")
    for name in ("teacher", "representation", "objective", "optimizer", "discriminator_optimizer"):
        assert getattr(config, name) == getattr(ours, name), name
    assert replace(config.data, workers=ours.data.workers) == ours.data
    for name in ("images", "batch_size", "ema_decay", "ema_warmup", "precision", "log_images"):
        assert getattr(config.training, name) == getattr(ours.training, name), name
    assert any("--data-path /data/imagenet" in text for text in recipe.assumed)


@pytest.mark.parametrize(
    ("encoder", "teacher", "size"),
    [
        ("SigLIP2wNorm", "siglip2-base", 256),
        ("MAEwNorm", "mae-base", 256),
        ("Dinov2withNorm", "dinov2-registers-base", 448),
    ],
)
def test_encoders(encoder: str, teacher: str, size: int, tmp_path: Path) -> None:
    changes = {"stage_1.params.encoder_cls": encoder, "stage_1.params.encoder_input_size": size}
    changes |= {"stage_1.params.encoder_config_path": "models/base", "stage_1.params.encoder_params": {}}
    values = converted(tmp_path, DECODER, changes).values
    assert values["teacher"] == {"name": teacher, "input_size": size}
    assert values["data"]["size"] == (512 if size == 448 else 256)


@pytest.mark.parametrize(("epochs", "ours"), [(1400, "ditdh-xl-800ep"), (80, "ditdh-xl-80ep")])
def test_transformer_training_equals_our_recipe(epochs: int, ours: str, tmp_path: Path) -> None:
    recipe = converted(tmp_path, TRANSFORMER, {"training.epochs": epochs})
    assert recipe.command == "train-dit"
    config, own = from_plain(train_dit.Config, recipe.values), load_recipe(train_dit.Config, RECIPES / f"{ours}.yaml")
    assert config.transformer == own.transformer and config.sampling == own.sampling
    assert config.flow.times.low == pytest.approx(own.flow.times.low, rel=1e-4)
    assert replace(config.flow.times, low=own.flow.times.low) == own.flow.times
    assert config.optimizer.schedule.final == pytest.approx(own.optimizer.schedule.final, abs=1e-4)
    assert config.optimizer.schedule.decay_images == own.optimizer.schedule.decay_images
    for name in ("images", "batch_size", "ema_decay", "ema_warmup", "precision"):
        assert getattr(config.training, name) == getattr(own.training, name), name
    said = any("800 instead of 1400" in text for text in recipe.assumed)
    assert said == (epochs == 1400)  # our runs end with the decay of the learning rate


def test_sections_for_the_optimizer_mean_the_same(tmp_path: Path) -> None:
    text = yaml.safe_load(TRANSFORMER)
    for name in ("base_lr", "final_lr", "beta", "wd", "schedule_type", "decay_start_epoch", "decay_end_epoch"):
        del text["training"][name]
    scheduler = {"type": "linear", "warmup_epochs": 40, "warmup_from_zero": False, "decay_end_epoch": 800}
    text["training"]["scheduler"] = {**scheduler, "base_lr": 2e-4, "final_lr": 2e-5}
    text["training"]["optimizer"] = {"lr": 2e-4, "betas": [0.9, 0.95], "weight_decay": 0.0}
    nested = converted(tmp_path, yaml.safe_dump(text))
    assert nested.values == converted(tmp_path, TRANSFORMER).values


def test_inconsistent_512_px_is_said(tmp_path: Path) -> None:
    recipe = converted(tmp_path, TRANSFORMER, {"stage_1.params.encoder_input_size": 448})
    assert recipe.values["flow"]["times"]["shift"] == "dimension"
    assert recipe.values["flow"]["times"]["low"] == pytest.approx(7.2236e-5, rel=1e-4)
    (line,) = [text for text in recipe.assumed if "time shift" in text]
    assert "32 x 32 latents of encoder_input_size, not input_size 16, latent_size and the shift of 196608" in line


@pytest.mark.parametrize("mark", ["_", "-"])
def test_sampling_with_guidance(mark: str, tmp_path: Path) -> None:
    guidance = {"method": "cfg", "scale": 1.5, f"t{mark}min": 0.1, f"t{mark}max": 0.9}
    changes = {"guidance": guidance, "stage_2.ckpt": "generators/xl", "sampler.params.num_steps": 30}
    recipe = converted(tmp_path, NETWORKS + FLOW, changes)
    assert recipe.command == "sample"
    config = from_plain(sample.Config, recipe.values)
    assert (config.generator, config.solver, config.steps, config.guidance_scale) == ("generators/xl", "euler", 30, 1.5)
    assert config.shift == pytest.approx(1 / math.sqrt(196608 / 4096)) and config.end == 0.999
    assert (config.guidance_start, config.guidance_stop) == pytest.approx((0.1, 0.9))


def test_autoguidance_names_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = {"target": "stage2.models.DDT.DiTwDDTHead", "ckpt": "DiTDH-S_ep14/stage2_model.pt", "params": {"depth": 12}}
    guidance = {"method": "autoguidance", "scale": 1.42, "t-min": 0.0, "t-max": 0.75, "guidance_model": model}
    recipe = converted(tmp_path, NETWORKS + FLOW, {"guidance": guidance})
    assert "guidance_scale" not in recipe.values
    assert (recipe.values["guidance_start"], recipe.values["guidance_stop"]) == (0.25, 1.0)
    text = (
        "autoguidance of scale 1.42: convert its weak model stage2.models.DDT.DiTwDDTHead DiTDH-S_ep14/stage2_model.pt"
    )
    assert any(text in part.why for part in recipe.ignored)
    assert run(["convert", "published.yaml", "sampling.yaml"]) == 0
    assert "# Run: vavae sample --config sampling.yaml\n" in Path("sampling.yaml").read_text()
    assert run(["sample", "--config", "sampling.yaml", "--print_config"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.secret": 1}, "training.secret must be left out, got 1: it is not known"),
        ({"stage_1.params.encoder_cls": "CLIP"}, "encoder_cls must begin with one of dinov2, siglip2, mae, got CLIP"),
        ({"gan.disc.arch.ks": 7}, "gan.disc.arch.ks must be 9, got 7"),
        ({"gan.disc.augment.prob": 0.5}, "gan.disc.augment.prob must be 0 or 1, got 0.5"),
        ({"training.scheduler.decay_end_epoch": 20}, "decay_end_epoch must be the epochs 16, got 20"),
        ({"gan.disc.scheduler.decay_end_epoch": 8}, "decay_end_epoch must be the epochs 16, got 8"),
        ({"training.optimizer.lr": 1e-3}, "training.optimizer.lr must be 0.0002, got 0.001"),
    ],
)
def test_wrong_decoder_files(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        converted(tmp_path, DECODER, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_2.target": "stage2.models.LightningDiT"}, "stage_2.target must be DiTwDDTHead, got"),
        ({"stage_2.params.wo_shift": True}, "stage_2.params.wo_shift must be False, got True"),
        ({"transport.params.prediction": "noise"}, "transport.params.prediction must be velocity, got noise"),
        ({"transport.params.time_dist_type": "cosine"}, "must be uniform or logit-normal_MEAN_STD, got cosine"),
        ({"guidance.method": "other"}, "guidance.method must be cfg or autoguidance, got other"),
        ({"misc.latent_size": [768, 16]}, "misc.latent_size must be 3 whole numbers above 0, got"),
        ({"misc.time_dist_shift_dim": 100}, "time_dist_shift_dim must be at least 4096, got 100"),
    ],
)
def test_wrong_transformer_files(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        converted(tmp_path, TRANSFORMER, changes)
