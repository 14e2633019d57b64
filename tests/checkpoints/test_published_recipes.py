"""Published YAML configurations become recipes of ours."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from published_files import LIGHTNINGDIT

from vavae.checkpoints.published_recipes import convert_recipe
from vavae.cli import run
from vavae.config import from_plain, load_recipe
from vavae.errors import UserError
from vavae.stages import train_dit, train_tokenizer

RECIPES = Path(__file__).parents[2] / "src/vavae/recipes" / "imagenet256"


VA_VAE = """
ckpt_path: /weights/vavae.pt
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.autoencoder.AutoencoderKL
  params:
    monitor: val/rec_loss
    embed_dim: 32
    use_vf: dinov2
    reverse_proj: true
    lossconfig:
      target: ldm.modules.losses.LPIPSWithDiscriminator
      params:
        disc_start: 5001
        kl_weight: 1.0e-06
        disc_weight: 0.5
        vf_weight: 0.1
        adaptive_vf: true
        distmat_margin: 0.25
        cos_margin: 0.5
    ddconfig:
      double_z: true
      z_channels: 32
      resolution: 256
      in_channels: 3
      out_ch: 3
      ch: 128
      ch_mult: [1, 1, 2, 2, 4]
      num_res_blocks: 2
      attn_resolutions: [16]
      dropout: 0.0
data:
  target: main.DataModuleFromConfig
  params:
    batch_size: 8
lightning:
  trainer:
    devices: 8
    num_nodes: 4
    max_epochs: 50
    precision: 32
"""


def converted(tmp_path: Path, text: str, **changes: Any) -> Any:
    """Convert a configuration with `changes`, by dotted name with __ for dots."""
    values = yaml.safe_load(text)
    for name, value in changes.items():
        *sections, key = name.split("__")
        part = values
        for section in sections:
            part = part[section]
        part[key] = value
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(values))
    return convert_recipe(path)


def test_published_recipe_of_a_transformer_equals_ours(tmp_path: Path) -> None:
    recipe = converted(tmp_path, LIGHTNINGDIT)
    assert recipe.command == "train-dit"
    ours = load_recipe(train_dit.Config, RECIPES / "lightningdit-xl-64ep.yaml")
    config = from_plain(train_dit.Config, recipe.values)
    for name in ("transformer", "flow", "sampling", "normalization", "flip"):
        assert getattr(config, name) == getattr(ours, name), name
    assert config.optimizer == ours.optimizer
    for name in ("images", "batch_size", "seed", "ema_decay", "ema_warmup", "precision"):
        assert getattr(config.training, name) == getattr(ours.training, name), name
    assert (config.latents, config.output) == ("/data/latents/train_256", "output/lightningdit_xl")
    reasons = {part.what: part.why for part in recipe.ignored}
    assert "evaluate" in reasons["data.fid_reference_file"]
    assert "count" in reasons["sample.fid_num"]
    assert "comes from the latents" in reasons["model.in_chans"]
    assert "train.ckpt" not in reasons  # blank


def test_switches_are_converted(tmp_path: Path) -> None:
    recipe = converted(
        tmp_path,
        LIGHTNINGDIT,
        model__model_type="LightningDiT-B/2",
        model__use_qknorm=True,
        model__use_swiglu=False,
        model__use_rope=False,
        model__use_rmsnorm=False,
        model__wo_shift=True,
        transport__use_cosine_loss=False,
        transport__use_lognorm=False,
        transport__path_type="GVP",
        transport__prediction="noise",
        sample__sampling_method="dopri5",
        sample__cfg_scale=1.0,
        sample__timestep_shift=0.0,
        optimizer__max_grad_norm=1.0,
        optimizer__lr="1e-4",
        data__latent_norm=False,
        data__latent_multiplier=0.18215,
    )
    config = from_plain(train_dit.Config, recipe.values)
    shape = config.transformer
    assert (shape.size, shape.swiglu, shape.rope, shape.rmsnorm, shape.qk_norm, shape.adaln_shift) == (
        "B/2",
        False,
        False,
        False,
        True,
        False,
    )
    assert config.flow.path == "cosine"
    assert config.flow.prediction == "noise"
    assert config.flow.times.kind == "uniform"
    assert config.flow.direction_weight == 0
    assert config.sampling.solver == "dopri5"
    assert config.sampling.guidance is None
    assert config.sampling.shift == 0
    assert config.optimizer.gradient_clip == 1.0
    assert config.optimizer.learning_rate == 1e-4
    assert config.normalization == "tokenizer"
    assert any("0.18215 must be the tokenizer's" in part.why for part in recipe.ignored)


def test_published_scaling_is_the_default(tmp_path: Path) -> None:
    recipe = converted(tmp_path, LIGHTNINGDIT, data={"data_path": "latents"})
    assert recipe.values["normalization"] == "tokenizer"
    assert any("0.18215 must be the tokenizer's" in part.why for part in recipe.ignored)


def test_published_recipe_of_a_tokenizer_equals_ours(tmp_path: Path) -> None:
    recipe = converted(tmp_path, VA_VAE)
    assert recipe.command == "train-tokenizer"
    config = from_plain(train_tokenizer.Config, recipe.values)
    ours = load_recipe(train_tokenizer.Config, RECIPES / "tokenizer-f16d32-dinov2.yaml")
    for name in ("tokenizer", "objective", "optimizer", "discriminator_optimizer"):
        assert getattr(config, name) == getattr(ours, name), name
    assert (config.training.images, config.training.batch_size) == (ours.training.images, 256)
    assert config.teacher.name == "dinov2-large"
    assert (config.teacher.input_size, config.teacher.normalization) == (224, "published")
    assert (config.data.size, config.data.crop, config.data.flip) == (256, "random", False)
    assert {part.what for part in recipe.ignored} >= {"ckpt_path", "model.target", "model.params.monitor"}


def test_guidance_interval_and_flips_are_converted(tmp_path: Path) -> None:
    recipe = converted(tmp_path, LIGHTNINGDIT, sample__cfg_interval_end=0.75, data__use_flip=False)
    config = from_plain(train_dit.Config, recipe.values)
    assert (config.sampling.guidance_stop, config.flip) == (0.75, False)
    assert not {"sample.cfg_interval_end", "data.use_flip"} & {part.what for part in recipe.ignored}


def test_tokenizer_without_teacher_is_not_aligned(tmp_path: Path) -> None:
    recipe = converted(tmp_path, VA_VAE, model__params__use_vf=None, model__params__lossconfig__params__disc_start=1)
    config = from_plain(train_tokenizer.Config, recipe.values)
    assert not config.objective.alignment.enabled
    assert config.objective.adversarial.start_images == 0


def test_later_stage_starts_from_its_weights(tmp_path: Path) -> None:
    recipe = converted(tmp_path, VA_VAE, weight_init="/weights/stage1.ckpt", model__params__proj_fix=True)
    config = from_plain(train_tokenizer.Config, recipe.values)
    assert config.initial == "/weights/stage1.ckpt"
    assert not config.objective.alignment.train_projection


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (
            VA_VAE,
            {"model__params__lossconfig__params__vf_weight": None},
            "model.params.lossconfig.params.vf_weight must be of type float, got nothing",
        ),
        (VA_VAE, {"model__params__use_vf": "clip"}, "use_vf must be one of dinov2, mae, got clip"),
        (VA_VAE, {"model__params__embed_dim": 16}, "embed_dim must be ddconfig.z_channels 32, got 16"),
        (LIGHTNINGDIT, {"transport__prediction": "score"}, "transport.prediction: the score is unbounded near data"),
        (
            LIGHTNINGDIT,
            {"transport__path_type": "cubic"},
            "transport.path_type must be one of linear, gvp, vp, got cubic",
        ),
        (
            LIGHTNINGDIT,
            {"sample__sampling_method": "adams"},
            "sample.sampling_method must be one of euler, midpoint, rk4, dopri5, heun2, got adams",
        ),
        (LIGHTNINGDIT, {"train__max_steps": "many"}, "train.max_steps must be of type int, got 'many'"),
        (
            LIGHTNINGDIT,
            {"data__latent_multiplier": 0.5},
            "data.latent_multiplier must be 1.0 together with latent_norm, got 0.5",
        ),
        # The default of the published code.
        (
            LIGHTNINGDIT,
            {"data": {"latent_norm": True}},
            "data.latent_multiplier must be 1.0 together with latent_norm, got 0.18215",
        ),
        (LIGHTNINGDIT, {"train": 3}, "train must have keys, got 3"),
        (LIGHTNINGDIT, {"train__max_steps": 1.5}, "train.max_steps must be of type int, got 1.5"),
        (LIGHTNINGDIT, {"model__use_rope": "yes please"}, "model.use_rope must be of type bool, got 'yes please'"),
        # Other systems, and unknown keys.
        (
            LIGHTNINGDIT,
            {"model__model_type": "SiT-XL/2"},
            "model.model_type must begin with LightningDiT-, got SiT-XL/2",
        ),
        (LIGHTNINGDIT, {"model__mlp_ratio": 2.0}, "model.mlp_ratio must be 4.0, got 2.0"),
        (LIGHTNINGDIT, {"model__attn_type": "linear"}, "model.attn_type must be left out, got 'linear'"),
        (LIGHTNINGDIT, {"transport__loss_weight": "velocity"}, "transport.loss_weight must be left out"),
        (LIGHTNINGDIT, {"optimizer__warmup_steps": 500}, "optimizer.warmup_steps must be left out"),
        (LIGHTNINGDIT, {"train__accumulation": 4}, "train.accumulation must be left out, got 4"),
        (LIGHTNINGDIT, {"repa": {"weight": 0.5}}, "repa.weight must be left out, got 0.5"),
        (LIGHTNINGDIT, {"diffusion": {"timesteps": 1000}}, "it belongs to diffusion with discrete steps"),
        (LIGHTNINGDIT, {"sample__mode": "SDE", "sample__sampling_method": "dopri5"}, "sample.mode must be ODE, or SDE"),
        (VA_VAE, {"model__target": "taming.models.vqgan.VQModel"}, "model.target must be AutoencoderKL, got taming"),
        (
            VA_VAE,
            {"model__params__lossconfig__target": "x.VQLPIPS"},
            "lossconfig.target must be LPIPSWithDiscriminator",
        ),
        (VA_VAE, {"model__params__ddconfig__in_channels": 9}, "model.params.ddconfig.in_channels must be 3, got 9"),
        (VA_VAE, {"model__params__ddconfig__double_z": False}, "ddconfig.double_z must be True, got False"),
        (VA_VAE, {"model__params__ddconfig__dropout": 0.1}, "ddconfig.dropout must be 0.0, got 0.1"),
        (VA_VAE, {"model__params__ddconfig__attn_type": "linear"}, "ddconfig.attn_type must be vanilla, got linear"),
        (VA_VAE, {"model__params__ddconfig__window": 8}, "model.params.ddconfig.window must be left out, got 8"),
        (VA_VAE, {"model__params__lossconfig__params__disc_loss": "vanilla"}, "disc_loss must be hinge, got vanilla"),
        (VA_VAE, {"model__params__linear_start": 0.0015}, "it belongs to diffusion with discrete steps"),
        (
            VA_VAE,
            {"lightning__trainer__gradient_clip_val": 1.0},
            "lightning.trainer.gradient_clip_val must be left out",
        ),
        (VA_VAE, {"lightning__trainer__precision": 16}, "lightning.trainer.precision must be 32 or bf16, got 16"),
        (VA_VAE, {"lightning__trainer__devices": "auto"}, "lightning.trainer.devices must be of type int, got 'auto'"),
        (VA_VAE, {"lightning__trainer__devices": -1}, "must be positive, got (8, -1, 4, 1)"),
        (VA_VAE, {"weight_init": "a.ckpt", "model__params__ckpt_path": "b.ckpt"}, "they are all starting weights"),
    ],
)
def test_unconvertible_keys_are_named(text: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        converted(tmp_path, text, **changes)
    assert message in str(caught.value)
    assert "published.yaml" in str(caught.value)


def test_value_out_of_range_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "published.yaml"
    values = yaml.safe_load(LIGHTNINGDIT)
    values["model"]["class_dropout_prob"] = 2.0
    source.write_text(yaml.safe_dump(values))
    assert run(["convert", str(source), str(tmp_path / "ours.yaml")]) == 2
    assert f"{source}: transformer.label_dropout must be from 0 to 1, got 2.0" in capsys.readouterr().err
    assert not (tmp_path / "ours.yaml").exists()


def test_times_of_newer_configurations_are_converted(tmp_path: Path) -> None:
    recipe = converted(
        tmp_path,
        LIGHTNINGDIT,
        transport__lognorm_mu=-0.75,
        transport__lognorm_sigma=0.5,
        transport__train_timestep_shift=0.7,
        optimizer__weight_decay=0.01,
        sample__mode="SDE",
        sample__sampling_method="Euler",
        sample__timestep_shift=0.4,
        train__weight_init="xl.pt",
    )
    times = recipe.values["flow"]["times"]
    assert times == {"kind": "logit_normal", "mean": -0.75, "std": 0.5, "shift": 0.7}
    assert recipe.values["optimizer"]["weight_decay"] == 0.01
    assert (recipe.values["sampling"]["solver"], recipe.values["sampling"]["shift"]) == ("euler_maruyama", 0.4)
    assert recipe.values["initial"] == "xl.pt"
    moved = converted(tmp_path, LIGHTNINGDIT, transport__shift_lg=True, transport__shifted_mu=0.3)
    assert moved.values["flow"]["times"]["mean"] == 0.3


def test_batch_size_of_ldm_counts_accumulation_and_devices(tmp_path: Path) -> None:
    recipe = converted(
        tmp_path,
        VA_VAE,
        model__params__use_vf=None,
        model__params__ckpt_path="start.ckpt",
        data__params={"batch_size": 12, "train": {"params": {"data_root": "images/mine", "size": 256}}},
        lightning={"trainer": {"accumulate_grad_batches": 2, "max_epochs": 3, "check_val_every_n_epoch": 2}},
    )
    config = from_plain(train_tokenizer.Config, recipe.values)
    assert (config.training.batch_size, config.training.images) == (24, 3 * 1_281_166)
    assert (config.initial, config.data.images) == ("start.ckpt", "images/mine")
    lines = "\n".join(recipe.lines(10_000))
    assert "assumed lightning.trainer: devices 1, num_nodes 1" in lines
    assert "images of an epoch 1281166" in lines and "factor of base_learning_rate 1" in lines
    assert "lightning.trainer.check_val_every_n_epoch: does not change what is trained" in lines
    for gpus, devices in (("0,1,", 2), (4, 4), ([0, 1, 2], 3)):
        other = converted(tmp_path, VA_VAE, lightning={"trainer": {"gpus": gpus}})
        assert other.values["training"]["batch_size"] == 8 * devices


def test_conversion_is_listed_on_screen_and_in_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("model: {model_type: LightningDiT-B/1, in_chans: 32}\nwandb: {run: 1}")
    assert run(["convert", str(tmp_path / "a.yaml"), str(tmp_path / "out.yaml")]) == 0
    printed = capsys.readouterr().out.splitlines()[1:-1]
    assert "  taken over model: model_type" in printed
    assert any(line.startswith("  assumed transport: prediction velocity") for line in printed)
    assert "  left out wandb.run: does not change what is trained" in printed
    assert max(len(line) for line in printed) <= 80
    written = (tmp_path / "out.yaml").read_text().splitlines()
    assert all(f"# {line.removeprefix('  ')}" in written for line in printed)
    assert yaml.safe_load("\n".join(written))["transformer"]["size"] == "B/1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage_2: {target: stage2.DiTwDDTHead}\ntransport: {params: {}}", "stage_2.target must be a LightningDiT"),
        ("transport: {path_type: Linear}", "model.model_type is missing"),
        ("model: {target: ldm.models.diffusion.ddpm.LatentDiffusion}", "model.target must be AutoencoderKL, got ldm"),
    ],
)
def test_configurations_of_other_models_are_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert run(["convert", str(tmp_path / "a.yaml"), str(tmp_path / "out.yaml")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.yaml").exists()


def test_other_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for content, message in [("a: 1", "must be a configuration of"), ("{", "not YAML"), ("- 1", "must have keys")]:
        path.write_text(content)
        with pytest.raises(UserError) as caught:
            convert_recipe(path)
        assert message in str(caught.value)
