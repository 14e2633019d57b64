"""Synthetic files in RAE's published forms: a decoder of 2 x 2 pixels for each of 16 x 16 latents, and a DiT^DH."""

from pathlib import Path

import torch
from tiny_vit import write_tiny_encoder
from torch import Tensor, nn

from vavae.models import Tokenizer
from vavae.tokenizer import ViTDecoder
from vavae.transformer import DiTDH

DECODER = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 8}


def stat(grid: int = 16) -> dict[str, Tensor]:
    """Return the content of RAE's stat.pt."""
    torch.manual_seed(2)
    return {"mean": torch.randn(64, grid, grid), "var": torch.rand(64, grid, grid)}


def decoder() -> ViTDecoder:
    torch.manual_seed(3)
    model = ViTDecoder(64, 16, 2, **DECODER)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "decoder_pos_embed":
                parameter.normal_(std=0.3)
    return model.eval()


def published_rae(folder: Path, kind: str = "dinov2") -> Tokenizer:
    """Write a published decoder, its statistics and its teacher, and read them."""
    torch.save(decoder().state_dict(), folder / "model.pt")
    torch.save(stat(), folder / "stat.pt")
    teacher = write_tiny_encoder(folder / "teacher", kind)
    return Tokenizer.from_pretrained(folder / "model.pt", teacher=teacher, statistics=folder / "stat.pt", heads=2)


def ditdh() -> DiTDH:
    torch.manual_seed(5)
    model = DiTDH(latent_size=16, latent_channels=64, num_classes=3, widths=(16, 24), depths=(2, 1), heads=(2, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def training_checkpoint(model: nn.Module, prefix: str = "") -> dict[str, object]:
    """Return the content of a checkpoint of RAE's training: weights differ from their average."""
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    others: dict[str, object] = {"optimizer": {"state": {}, "param_groups": []}, "scheduler": {"last_epoch": 3}}
    plain = {name: value + 1 for name, value in state.items()}
    return {"step": 5, "epoch": 1, "model": plain, "ema": state, **others}
