"""Tiny models of every family with random weights, as transformers saves them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
_DINO: dict[str, Any] = {**_VIT, "mlp_ratio": 2}
_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
}
_SAM: dict[str, Any] = {
    **_VIT,
    "output_channels": 12,
    "window_size": 3,
    "global_attn_indexes": [1],
    "mlp_dim": 24,
    "num_pos_feats": 6,
}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Set weights large enough that every part of the model affects its output; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def _sam() -> torch.nn.Module:
    vision = hf.SamVisionConfig(**_SAM)
    decoder = hf.SamMaskDecoderConfig(
        hidden_size=12, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
    )
    prompts = hf.SamPromptEncoderConfig(hidden_size=12, image_size=32, patch_size=8, mask_input_channels=4)
    return hf.SamModel(hf.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


_RESNET = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck")

VISION_MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**_DINO)),
    "dinov2-registers": lambda: hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**_DINO, num_register_tokens=3)
    ),
    "dinov3": lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**_VIT, num_register_tokens=4)),
    "mae": lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**_VIT)),
    "clip": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_VIT)),
    "siglip": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**_VIT)),
    "siglip2-naflex": lambda: hf.Siglip2VisionModel(
        hf.Siglip2VisionConfig(**{k: v for k, v in _VIT.items() if k != "image_size"}, num_patches=16)
    ),
    "sam": lambda: hf.SamVisionModel(hf.SamVisionConfig(**_SAM)),
    "resnet": lambda: hf.ResNetModel(_RESNET),
}

# Checkpoints as they are published: with a text model, a decoder, a classifier.
FULL_MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "dinov2": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**_DINO)),
    "mae": lambda: hf.ViTMAEForPreTraining(
        hf.ViTMAEConfig(**_VIT, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    ),
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=_TEXT, vision_config=_VIT, projection_dim=8)),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=_TEXT, vision_config=_VIT)),
    "sam": _sam,
    "resnet": lambda: hf.ResNetForImageClassification(_RESNET),
}
