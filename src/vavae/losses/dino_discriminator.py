"""A discriminator on the tokens of a frozen DINO ViT, and its augmentation (RAE, arXiv 2510.11690).

The ViT is frozen; only the small heads are trained, so gradients reach images through features that already see
objects.
"""

import pickle
import re
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from vavae import assets
from vavae.errors import UserError, one_line
from vavae.grids import to_tokens
from vavae.transformer.layers import MLP, Attention

_EPS = 1e-6
_INPUT = 224
# Parts of names of transformers' ViT -> names of DINO's authors.
_NAMES = (
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("encoder.layer.", "blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
)
_QKV = re.compile(r"blocks\.\d+\.attention\.attention\.query\.(weight|bias)")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoViT(nn.Module):
    """DINO's ViT with the state-dict names of its authors and timm; the defaults are ViT-S/8.

    Args:
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads.
        patch: Side of a patch in pixels; images are 224 pixels a side.
    """

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6, patch: int = 8) -> None:
        super().__init__()
        self.width, self.patch = width, patch
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (_INPUT // patch) ** 2, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=_EPS)  # in the published files; not used

    @classmethod
    def from_pretrained(cls, source: str) -> Self:
        """Load a ViT of transformers, whose heads have 64 channels.

        Args:
            source: A folder, or a model of the hub (`owner/name`).

        Raises:
            UserError: The model cannot be fetched, or is not such a ViT for images of 224 pixels.
        """
        folder = Path(source) if Path(source).is_dir() else assets.path(source)
        file = folder / "model.safetensors"
        try:
            stored = load_file(file) if file.is_file() else torch.load(folder / "pytorch_model.bin", weights_only=True)
        except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
            text = one_line(error)[:200]
            raise UserError(f"discriminator.dino must have readable weights, got {folder} ({text})") from error
        tensors = {}
        for name, value in stored.items():
            for hub_name, own_name in _NAMES:
                name = name.replace(hub_name, own_name)
            tensors[re.sub("^layernorm", "norm", name)] = value
        for name in filter(_QKV.fullmatch, list(tensors)):
            parts = [tensors.pop(name.replace("query", part)) for part in ("query", "key", "value")]
            tensors[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
        tensors = {name: value for name, value in tensors.items() if not name.startswith("pooler.")}
        try:
            width, _, _, patch = tensors["patch_embed.proj.weight"].shape
            depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
            model = cls(width, depth, max(1, width // 64), patch)
            model.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"discriminator.dino must be a ViT of transformers for 224 pixels, got {source}") from error
        return model

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the patch tokens (B, T, width) after every block, of pixels (B, 3, 224, 224)."""
        tokens = to_tokens(self.patch_embed["proj"](pixels))  # (B, width, h, w) -> (B, h·w, width)
        tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1) + self.pos_embed
        after = []
        for block in self.blocks:
            tokens = block(tokens)
            after.append(tokens[:, 1:])
        return after


class _Block(nn.Module):
    """Pre-norm block; the published discriminator runs DINO with the tanh-approximated GELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads, qk_norm=False, rmsnorm=False)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        x = x + self.attn(self.norm1(x), None)
        return x + self.mlp(self.norm2(x))


class _Residual(nn.Module):
    """(x + fn(x)) / √2."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return (self.fn(x) + x) / 2**0.5


def _convolution(width: int, out: int, kernel: int) -> nn.Module:
    return spectral_norm(nn.Conv1d(width, out, kernel, padding=kernel // 2, padding_mode="circular"))


def _layer(width: int, kernel: int) -> nn.Sequential:
    """Return convolution, norm over the tokens of each image, and leaky ReLU."""
    return nn.Sequential(
        _convolution(width, width, kernel), nn.InstanceNorm1d(width, eps=_EPS, affine=True), nn.LeakyReLU(0.2)
    )


class DinoDiscriminator(nn.Module):
    """Heads on tokens of a frozen DINO; logits are positive for real images.

    Args:
        dino: The network; it is frozen.
        key_depths: Blocks (from 0) whose tokens get a head, after one for the last block; None takes the last block of
            each quarter, 2, 5, 8 and 11 of 12 as published.
        kernel: Kernel of the second convolution, over the row of tokens.
    """

    def __init__(self, dino: DinoViT, key_depths: tuple[int, ...] | None = None, kernel: int = 9) -> None:
        super().__init__()
        self.dino = dino.requires_grad_(False)
        quarters = tuple(len(dino.blocks) * quarter // 4 - 1 for quarter in range(1, 5))
        self.key_depths = (-1, *(quarters if key_depths is None else key_depths))
        width = dino.width
        self.heads = nn.ModuleList(
            nn.Sequential(_layer(width, 1), _Residual(_layer(width, kernel)), _convolution(width, 1, 1))
            for _ in self.key_depths
        )
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, heads · tokens) of images (B, 3, H, W) in [-1, 1]; all sizes are resized to 224."""
        pixels = F.interpolate(images, (_INPUT, _INPUT), mode="bilinear", align_corners=False)
        after = self.dino(((pixels + 1) / 2 - self.mean) / self.std)
        # (B, T, width) -> (B, width, T) -> (B, 1, T) -> (B, T)
        logits = [head(after[depth].transpose(1, 2)) for head, depth in zip(self.heads, self.key_depths, strict=True)]
        return torch.cat(logits, dim=1).flatten(1)


def quantized(images: Tensor) -> Tensor:
    """Return images as 8-bit files hold them, in [-1, 1], so that the discriminator cannot tell them by rounding."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def diff_augment(images: Tensor, uniform: Tensor, translation: float = 0.125) -> Tensor:
    """Change place, brightness, saturation and contrast of images, differentiably (DiffAugment, arXiv 2006.10738).

    As in the published code, images move before their color changes.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        uniform: (B, 5) numbers in [0, 1): brightness, saturation, contrast, row, column.
        translation: Largest shift, as a part of the side; zeros move in.
    """
    brightness, saturation, contrast, row, column = uniform.to(images).T.view(5, -1, 1, 1, 1)
    # Shifts are whole pixels from -most to most: zeros are padded, and each image reads its own window.
    height, width = images.shape[2:]
    down, right = int(height * translation + 0.5), int(width * translation + 0.5)
    rows = (row.flatten() * (2 * down + 1)).long()[:, None] + torch.arange(height, device=images.device)
    columns = (column.flatten() * (2 * right + 1)).long()[:, None] + torch.arange(width, device=images.device)
    padded = F.pad(images, (right, right, down, down))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # (B, H + 2·down, W + 2·right, 3) at (B, H, W) -> (B, H, W, 3) -> (B, 3, H, W)
    images = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    images = images + (brightness - 0.5)
    gray = images.mean(dim=1, keepdim=True)
    images = (images - gray) * (2 * saturation) + gray
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean
