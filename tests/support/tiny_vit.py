"""A tiny DINOv2 with registers and a tiny DINO, as folders of transformers."""

from pathlib import Path

import torch
import transformers


def write_tiny_dinov2(folder: Path, seed: int = 0) -> str:
    """Write a DINOv2 with registers of width 32 and patch 4 for images of 16 pixels: latents of 32 x 4 x 4."""
    torch.manual_seed(seed)
    settings = transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=4, image_size=16, mlp_ratio=2
    )
    transformers.Dinov2WithRegistersModel(settings).save_pretrained(folder)
    return str(folder)


def write_tiny_encoder(folder: Path, kind: str, width: int = 64) -> str:
    """Write an encoder of two layers in RAE's forms: "dinov2" of patch 14, "siglip2" or "mae" of patch 16."""
    torch.manual_seed(0)
    settings = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": max(width // 64, 1)}
    if kind == "dinov2":
        config = transformers.Dinov2WithRegistersConfig(**settings, patch_size=14, image_size=518)
        transformers.Dinov2WithRegistersModel(config).save_pretrained(folder)
    elif kind == "siglip2":
        transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**settings, patch_size=16, image_size=256)
        ).save_pretrained(folder)
    else:
        transformers.ViTMAEModel(transformers.ViTMAEConfig(**settings)).save_pretrained(folder)
    return str(folder)


def write_tiny_dino(folder: Path) -> str:
    """Write a ViT of width 64 and four blocks with patches of 56 pixels of images of 224."""
    torch.manual_seed(0)
    settings = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=1, intermediate_size=256, patch_size=56
    )
    transformers.ViTModel(settings).save_pretrained(folder)
    return str(folder)
