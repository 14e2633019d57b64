"""LPIPS in evaluations."""

import pytest
import torch

from vavae.evaluation import tokenizer as of_tokenizer
from vavae.losses import LPIPS


def test_perceptual_distances_of_small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LPIPS, "pretrained", lambda name: torch.nn.Identity())
    for size, names in (((16, 40), {"lpips_vgg16"}), (31, {"lpips_vgg16", "lpips_alexnet"}), (8, set())):
        said: list[str] = []
        assert of_tokenizer.perceptual_networks(torch.device("cpu"), size, said.append).keys() == names
        assert len(said) == 2 - len(names)
