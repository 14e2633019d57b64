"""A teacher of one convolution, in place of a foundation model."""

import torch
from torch import Tensor, nn

from vavae.teachers import Teacher, TeacherFeatures
from vavae.teachers.base import IMAGENET, Backbone


class _Convolution(Backbone):
    width, patch = 6, 4

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 4, stride=4)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))

    def forward(self, pixels: Tensor) -> TeacherFeatures:
        return TeacherFeatures(self.layer(pixels), None)


def tiny_teacher(seed: int = 0, input_size: tuple[int, int] = (16, 16)) -> Teacher:
    """Return a teacher of six channels for each patch of 4 x 4 pixels, with weights of `seed`."""
    return Teacher("convolution", _Convolution(seed), input_size, IMAGENET)
