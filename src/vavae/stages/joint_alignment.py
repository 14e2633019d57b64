"""What a joint training adds to tokenizer and transformer: normalized latents, and tokens that predict features.

The transformer's tokens are aligned with a teacher in two passes over the same noised latents. In the tokenizer's pass
the transformer is frozen and normalizes by its running statistics; in its own pass it normalizes by those of the batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from vavae.device import without_values
from vavae.errors import UserError
from vavae.flow import FlowConfig
from vavae.grids import to_tokens
from vavae.losses.representation import Projector, projection_loss
from vavae.stages.hidden_alignment import HiddenTokens
from vavae.stages.joint_config import JointAlignmentConfig
from vavae.tokenizer import LatentStatistics
from vavae.transformer import LightningDiT


class LatentAlignment(nn.Module):
    """Batch normalization of latents and a projector of tokens; state-dict names are the published ones (REPA-E).

    Args:
        config: The alignment.
        channels: Channels of the latents.
        width: Channels of the transformer's tokens.
        features: Channels of the teacher.
    """

    def __init__(self, config: JointAlignmentConfig, channels: int, width: int, features: int) -> None:
        super().__init__()
        self.config = config
        self.bn = nn.BatchNorm2d(channels, eps=1e-4, momentum=0.1, affine=False)
        shape = config.projector
        self.projectors = nn.ModuleList([Projector(width, features, shape.kind, shape.hidden, shape.kernel)])

    @torch.no_grad()
    def start_from(self, statistics: LatentStatistics) -> None:
        """Set the running statistics.

        Raises:
            UserError: They are of other latents, or per position.
        """
        if statistics.grid is not None or statistics.channels != self.bn.num_features:
            raise UserError(
                f"statistics of the latents must be of {self.bn.num_features} channels, got the shape "
                f"{tuple(statistics.mean.shape)}"
            )
        self.bn.running_mean.copy_(statistics.mean)  # type: ignore[union-attr]
        self.bn.running_var.copy_(statistics.std.square())  # type: ignore[union-attr]

    def losses(
        self,
        model: Callable[..., object],
        flow: FlowConfig,
        latents: Tensor,
        labels: Tensor,
        noise: Tensor,
        t: Tensor,
        label_drop: Tensor,
        features: Tensor,
    ) -> dict[str, Tensor]:
        """Return the mean terms of `flow.loss` and `projection`, the loss of the aligned tokens: 0-dim each.

        Args:
            model: A transformer, called with `hidden_blocks`.
            flow: The flow.
            latents: (B, C, h, w), not normalized.
            labels: (B,) integers.
            noise: (B, C, h, w).
            t: (B,) times.
            label_drop: (B,) bool.
            features: (B, D, h', w') of the teacher, on the grid of the tokens.
        """
        kept = HiddenTokens(model, self.config.block)
        terms = flow.loss(kept, self.bn(latents), labels, noise, t, label_drop)
        projected = self.projectors[0](kept.tokens, (features.shape[2], features.shape[3]))
        return {name: value.mean() for name, value in terms.items()} | {
            "projection": projection_loss(projected, to_tokens(features))
        }


def latent_statistics(state: dict[str, Tensor]) -> LatentStatistics:
    """Return the running statistics in the state dict of a `LatentAlignment`; the deviation is sqrt(var + 1e-4)."""
    return LatentStatistics.from_dict({name: state[f"bn.{name}"] for name in ("running_mean", "running_var")})


def first_blocks(transformer: LightningDiT, count: int) -> LightningDiT:
    """Return a transformer of the first blocks, which shares all its weights with the whole one."""
    with without_values():
        part = LightningDiT(replace(transformer.config, depth=count))
    for name, module in transformer.named_children():
        setattr(part, name, module)
    for name, buffer in transformer.named_buffers(recurse=False):
        setattr(part, name, buffer)
    part.blocks = transformer.blocks[:count]
    return part


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode and let gradients pass them without reaching their parameters, for the block.

    Afterwards all parameters are trained, in train mode.
    """

    def switch(training: bool) -> None:
        for module in modules:
            module.train(training).requires_grad_(training)

    switch(False)
    try:
        yield
    finally:
        switch(True)
