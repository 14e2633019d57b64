"""Latents of RAE's three encoders against the published implementation (bytetriper/RAE at a4d18c4)."""

from pathlib import Path

import pytest
import torch
import transformers
from golden_next import assert_close, load
from safetensors.torch import save_file
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.teachers import Backbone, Teacher, TeacherFeatures, load_teacher
from vavae.teachers.base import HALF, IMAGENET
from vavae.teachers.latent import LatentEncoder

# Kind -> model type and class of transformers, prefix of published names, and the norm that is not in the file.
KINDS = {
    "dinov2": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", "", "layernorm"),
    "mae": ("ViTMAEConfig", "ViTMAEModel", "vit.", "layernorm"),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", "vision_model.", "post_layernorm"),
}


def encoder(kind: str, folder: Path, layers: int = 1) -> tuple[LatentEncoder, dict[str, Tensor]]:
    """The encoder of a golden file, from a folder in the hub's form; its last norm has weights that must not count."""
    tensors, config, weights = load(f"rae_encoder_{kind}")
    config_class, model_class, prefix, norm = KINDS[kind]
    settings = getattr(transformers, config_class)(**config["encoder"])
    settings.vision_use_head = False  # SigLIP's pooling is not in the file
    width = settings.hidden_size
    stored = dict(weights["encoder"])
    if kind == "dinov2":
        stored["embeddings.mask_token"] = torch.zeros(1, width)
    if kind == "mae":
        stored["embeddings.position_embeddings"] = tensors["position_embeddings"]
    stored |= {f"{norm}.weight": torch.full((width,), 3.0), f"{norm}.bias": torch.full((width,), -2.0)}
    settings.architectures = [model_class]
    settings.save_pretrained(folder)
    save_file({prefix + name: value.contiguous() for name, value in stored.items()}, folder / "model.safetensors")
    teacher = load_teacher(str(folder), input_size=config["encoder_input_size"])
    assert teacher.normalization == (HALF if kind == "siglip" else IMAGENET)
    return LatentEncoder(teacher, layers), tensors


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_latents(kind: str, tmp_path: Path) -> None:
    model, tensors = encoder(kind, tmp_path)
    latents = model(2 * tensors["image"] - 1)
    assert latents.shape[1:] == (model.width, *model.grid)
    assert_close(latents, tensors["latents"], 1e-5)


def test_sum_of_two_blocks_is_that_of_their_normalized_tokens(tmp_path: Path) -> None:
    """Without the last block's latents, the sum of two leaves tokens of mean 0 and variance 1."""
    both, tensors = encoder("dinov2", tmp_path, layers=2)
    latents = both(2 * tensors["image"] - 1)
    first = latents - tensors["latents"]
    tokens = first.flatten(2)
    torch.testing.assert_close(tokens.mean(1), torch.zeros_like(tokens.mean(1)), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.var(1, correction=0), torch.ones_like(tokens.mean(1)), atol=1e-3, rtol=0)
    assert latents.shape == tensors["latents"].shape


class Convolution(Backbone):
    """A backbone without a last norm."""

    width, patch = 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        return TeacherFeatures(self.model(pixels), None)


def test_teachers_that_cannot_be_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a ViT with a last LayerNorm"):
        LatentEncoder(Teacher("conv", Convolution(), (16, 16), IMAGENET))
    with pytest.raises(UserError, match="layers must be from 1 to the teacher's 2 blocks, got 3"):
        encoder("dinov2", tmp_path, layers=3)


def test_clip_tokens_are_normalized_too(tmp_path: Path) -> None:
    """Its model normalizes the class token only."""
    settings = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    transformers.CLIPVisionModel(settings).save_pretrained(tmp_path)
    latents = LatentEncoder(load_teacher(str(tmp_path)))(torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(latents.mean(1), torch.zeros(1, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.var(1, correction=0), torch.ones(1, 4, 4), atol=1e-3, rtol=0)


def test_images_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    model, _ = encoder("mae", tmp_path)
    with pytest.raises(UserError, match=r"images must be floats in \[-1, 1\], got torch\.uint8"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
