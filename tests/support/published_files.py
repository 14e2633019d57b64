"""Synthetic files in each published form, with weights by the rule of the golden files (`rule`)."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
from rules import golden_weight
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vavae.tokenizer import AutoencoderConfig, AutoencoderKL
from vavae.transformer import LightningDiT

GOLDEN = Path(__file__).parents[1] / "golden"
# The autoencoder of golden/vae_f16d8, and small ones in the form of MAR's and of SD-VAE (f8, four channels,
# attention in the middle only).
VA_VAE = AutoencoderConfig(latent_channels=8, base_channels=32)
MAR_VAE = AutoencoderConfig(latent_channels=8, base_channels=32, decoder_attention=False)
SD_VAE = AutoencoderConfig(4, 32, (1, 2, 4, 4), attention_levels=())
# For tests of anything but the architecture.
SMALL = AutoencoderConfig(8, 32, (1, 2), blocks_per_level=1, attention_levels=())
SMALL_F16 = AutoencoderConfig(8, 32, (1, 1, 1, 1, 1), blocks_per_level=1, attention_levels=())
TEACHER_WIDTH = 24


@torch.no_grad()
def fill(model: nn.Module, others: dict[str, torch.Size] | None = None) -> dict[str, Tensor]:
    """Fill a model's parameters by the rule; return tensors of `others`, which are sorted with them."""
    parameters = {name: p for name, p in model.named_parameters() if name != "pos_embed"}
    shapes = {name: p.shape for name, p in parameters.items()} | (others or {})
    extra = {}
    for k, name in enumerate(sorted(shapes)):
        value = golden_weight(k, shapes[name], name)
        if name in parameters:
            parameters[name].copy_(value)
        else:
            extra[name] = value.float()
    return extra


def autoencoder(config: AutoencoderConfig = VA_VAE) -> tuple[AutoencoderKL, dict[str, Tensor]]:
    """Return an autoencoder, and the projection of its training."""
    model, projection = _autoencoder(config)
    return copy.deepcopy(model), dict(projection)


def weights(config: AutoencoderConfig = VA_VAE) -> dict[str, Tensor]:
    """Return the state dict of `autoencoder`, without a copy of its modules."""
    return {name: value.clone() for name, value in _autoencoder(config)[0].state_dict().items()}


@functools.cache
def _autoencoder(config: AutoencoderConfig) -> tuple[AutoencoderKL, dict[str, Tensor]]:
    model = AutoencoderKL(config)
    shape = torch.Size((TEACHER_WIDTH, config.latent_channels, 1, 1))
    return model.eval(), fill(model, {"linear_proj.weight": shape})


def golden_dit(name: str = "dit_paper") -> tuple[LightningDiT, dict[str, Tensor]]:
    """Return a published transformer and its golden numbers."""
    model, golden = _golden_dit(name)
    return copy.deepcopy(model), dict(golden)


@functools.cache
def _golden_dit(name: str) -> tuple[LightningDiT, dict[str, Tensor]]:
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        given = json.loads(file.metadata()["config"])
    model = LightningDiT(
        latent_size=given["input_size"],
        patch_size=given["patch_size"],
        latent_channels=given["in_channels"],
        width=given["hidden_size"],
        depth=given["depth"],
        heads=given["num_heads"],
        num_classes=given["num_classes"],
        swiglu=given.get("use_swiglu", False),
        rope=given.get("use_rope", False),
        rmsnorm=given.get("use_rmsnorm", False),
        qk_norm=given.get("use_qknorm", False),
        adaln_shift=not given.get("wo_shift", False),
        learn_sigma=given.get("learn_sigma", False),
    )
    fill(model)
    return model.eval(), load_file(path)


def statistics(channels: int) -> dict[str, Tensor]:
    """Return the content of latents_stats.pt."""
    i = torch.arange(channels, dtype=torch.float32).view(1, -1, 1, 1)
    return {"mean": 0.1 * torch.sin(i), "std": 1 + 0.2 * torch.cos(i)}


def lightning_checkpoint(model: AutoencoderKL, projection: dict[str, Tensor]) -> dict[str, Any]:
    """Return a checkpoint of VA-VAE training, with discriminator, LPIPS and teacher (shortened)."""
    state = {**model.state_dict(), **projection}
    state |= {
        "loss.logvar": torch.zeros(()),
        "loss.perceptual_loss.lin0.model.1.weight": torch.rand(1, 64, 1, 1),
        "loss.discriminator.main.0.weight": torch.randn(64, 3, 4, 4),
        "foundation_model.model.cls_token": torch.randn(1, 1, TEACHER_WIDTH),
    }
    return {
        "epoch": 49,
        "global_step": 500_500,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "lr_schedulers": [],
    }


PUBLISHED_TRAINING: dict[str, Any] = {
    "data": {
        "data_path": "/data/latents",
        "image_size": 64,
        "num_classes": 10,
        "latent_norm": True,
        "latent_multiplier": 1.0,
    },
    "transport": {"path_type": "Linear", "prediction": "velocity", "use_cosine_loss": True, "use_lognorm": True},
    "sample": {
        "sampling_method": "euler",
        "num_sampling_steps": 20,
        "cfg_scale": 3.0,
        "cfg_interval_start": 0.125,
        "timestep_shift": 0.3,
    },
}


def training_checkpoint(model: LightningDiT) -> dict[str, Any]:
    """Return a checkpoint of LightningDiT training on several GPUs: weights differ from their average."""
    state = model.state_dict()
    return {
        "model": {f"module._orig_mod.{name}": value + 1 for name, value in state.items()},
        "ema": dict(state),
        "opt": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 2e-4}]},
        "config": PUBLISHED_TRAINING,
    }


def same_weights(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    """Return whether two state dicts are equal bit for bit."""
    first = a.state_dict() if isinstance(a, nn.Module) else a
    second = b.state_dict() if isinstance(b, nn.Module) else b
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


# A published configuration of LightningDiT-XL/1.
LIGHTNINGDIT = """
ckpt_path: /weights/lightningdit.pt
data:
  data_path: /data/latents/train_256
  fid_reference_file: /data/reference.npz
  image_size: 256
  num_classes: 1000
  num_workers: 8
  latent_norm: true
  latent_multiplier: 1.0
vae:
  model_name: vavae_f16d32
  downsample_ratio: 16
model:
  model_type: LightningDiT-XL/1
  use_qknorm: false
  use_swiglu: true
  use_rope: true
  use_rmsnorm: true
  wo_shift: false
  in_chans: 32
train:
  max_steps: 80000
  global_batch_size: 1024
  global_seed: 0
  output_dir: output
  exp_name: lightningdit_xl
  ckpt: null
  log_every: 100
  ckpt_every: 20000
optimizer:
  lr: 0.0002
  beta2: 0.95
transport:
  path_type: Linear
  prediction: velocity
  loss_weight: null
  sample_eps: null
  train_eps: null
  use_cosine_loss: true
  use_lognorm: true
sample:
  mode: ODE
  sampling_method: euler
  atol: 0.000001
  rtol: 0.001
  reverse: false
  likelihood: false
  num_sampling_steps: 250
  cfg_scale: 10.0
  per_proc_batch_size: 4
  fid_num: 50000
  cfg_interval_start: 0.10
  timestep_shift: 0.3
"""
