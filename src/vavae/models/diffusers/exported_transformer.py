"""LightningDiT as a model of diffusers; `pipeline.py` appends this to the network's modules at export."""

# mypy: ignore-errors
# (diffusers makes attributes of its classes at run time)

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin

from vavae.transformer.model import LightningDiT
from vavae.transformer.routing import RoutingConfig


class LightningDiTModel(ModelMixin, ConfigMixin):
    """A LightningDiT whose configuration and weights diffusers loads, with the arguments of LightningDiT."""

    _no_split_modules = ("Block",)

    @register_to_config
    def __init__(
        self,
        latent_size=16,
        patch_size: int = 1,
        latent_channels: int = 32,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        num_classes: int = 1000,
        swiglu: bool = True,
        rope: bool = True,
        rmsnorm: bool = True,
        qk_norm: bool = False,
        adaln_shift: bool = True,
        learn_sigma: bool = False,
        label_dropout: float = 0.1,
        positions: str = "recompute",
        auxiliary_block: int | None = None,
        routing: dict | None = None,
    ) -> None:
        super().__init__()
        self.network = LightningDiT(
            latent_size=latent_size,
            patch_size=patch_size,
            latent_channels=latent_channels,
            width=width,
            depth=depth,
            heads=heads,
            num_classes=num_classes,
            swiglu=swiglu,
            rope=rope,
            rmsnorm=rmsnorm,
            qk_norm=qk_norm,
            adaln_shift=adaln_shift,
            learn_sigma=learn_sigma,
            label_dropout=label_dropout,
            positions=positions,
            auxiliary_block=auxiliary_block,
            routing=RoutingConfig(**(routing or {})),
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor,
        return_dict: bool = True,
        auxiliary: bool = False,
        path_drop: bool = False,
    ):
        """Return the velocity at (B, C, h, w) latents and (B,) times in [0, 1], where 0 is noise.

        With `auxiliary` return the record of the network: its prediction and the auxiliary head's. With `path_drop` the
        routed blocks are left out (SPRINT).
        """
        if auxiliary:
            return self.network(hidden_states, timestep, class_labels, auxiliary=True)
        velocity = self.network(hidden_states, timestep, class_labels, path_drop=path_drop)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)
