"""The whole tokenizer objective, with only the backward passes that it needs.

The published total is

    nll + w_kl · kl + w_adv · generator + w_align · alignment

where nll = (Σ pixel error + elements · LPIPS) / batch, and the adaptive weights compare gradients at the last
layers of decoder and encoder. Written down naively, each of them takes its own pass back to that layer: LPIPS
is passed three times and the decoder twice. Here the graph is cut at the latent and at the reconstruction, so
each term's gradient is known there: a norm at a last layer costs one convolution, and the terms' gradients are
added before the one pass through decoder and encoder.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.losses.adaptive import adaptive_weight
from vavae.losses.adversarial import (
    AdversarialConfig,
    PatchDiscriminator,
    discriminator_hinge_loss,
    generator_loss,
)
from vavae.losses.alignment import AlignmentConfig, AlignmentLoss
from vavae.losses.kl import KLConfig, kl_loss
from vavae.losses.perceptual import LPIPS, PerceptualConfig
from vavae.losses.pixel import PixelConfig, pixel_error
from vavae.tokenizer.autoencoder import AutoencoderKL

Average = Callable[[Tensor], Tensor]
Precision = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class ObjectiveConfig:
    """All terms of the tokenizer objective; the defaults are the published ones.

    Attributes:
        pixel: absolute or squared error.
        perceptual: LPIPS.
        kl: pull of the posterior towards N(0, I).
        adversarial: discriminator of patches.
        alignment: the VF loss.
    """

    pixel: PixelConfig = field(default_factory=PixelConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    def __post_init__(self) -> None:
        if self.pixel.weight == 0 and self.perceptual.weight == 0:
            raise UserError("pixel.weight, perceptual.weight: both are 0, so nothing asks for reconstruction")


class TokenizerObjective(nn.Module):
    """Everything tokenizer training needs besides the autoencoder: LPIPS, discriminator, alignment.

    The state dict holds discriminator and projection only: LPIPS is frozen and comes from its asset.

    Args:
        config: the terms.
        latent_channels: channels of the autoencoder's latent.
        teacher_channels: channels of the teacher's features; needed if alignment is enabled.
        perceptual: LPIPS to use instead of fetching the published weights.

    Attributes:
        perceptual: `LPIPS`, or None if its weight is 0.
        discriminator: `PatchDiscriminator`, or None if not enabled.
        alignment: `AlignmentLoss`, or None if not enabled.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        latent_channels: int,
        teacher_channels: int | None = None,
        perceptual: LPIPS | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.perceptual: LPIPS | None = None
        if config.perceptual.weight > 0:
            self.perceptual = perceptual or LPIPS.pretrained(config.perceptual.network)
        self.discriminator: PatchDiscriminator | None = None
        if config.adversarial.enabled:
            self.discriminator = PatchDiscriminator(config.adversarial.discriminator)
        self.alignment: AlignmentLoss | None = None
        if config.alignment.enabled:
            if teacher_channels is None:
                raise UserError("alignment.enabled: a teacher is needed to align with")
            self.alignment = AlignmentLoss(config.alignment, latent_channels, teacher_channels)
        self.register_state_dict_post_hook(_drop_perceptual)
        self.register_load_state_dict_post_hook(_forgive_perceptual)

    def projection_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters that belong to the autoencoder's optimizer: the alignment's projection."""
        if self.alignment is None:
            return []
        return [parameter for parameter in self.alignment.parameters() if parameter.requires_grad]

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """Parameters of the discriminator's own optimizer; none if it is not enabled."""
        return [] if self.discriminator is None else list(self.discriminator.parameters())

    def adversarial_active(self, images_seen: int) -> bool:
        """Whether the adversarial term has begun, so that the discriminator's optimizer is to step."""
        return self.discriminator is not None and images_seen >= self.config.adversarial.start_images

    def accumulate_gradients(
        self,
        autoencoder: AutoencoderKL,
        images: Tensor,
        noise: Tensor,
        teacher_features: Tensor | None = None,
        images_seen: int = 0,
        *,
        compute_dtype: torch.dtype = torch.float32,
        gradient_scale: float = 1.0,
        average: Average | None = None,
    ) -> dict[str, Tensor]:
        """Add this batch's gradients to `.grad` of autoencoder, projection and discriminator.

        Autoencoder and projection get the gradient of the total, the discriminator that of its hinge loss
        on the same reconstruction; no optimizer steps. Before `start_images` the discriminator does not run.

        Args:
            autoencoder: the model in training.
            images: (B, 3, H, W) in [-1, 1], float32.
            noise: standard normal numbers of the latents' shape (B, C, h, w), for the posterior's sample.
            teacher_features: (B, D, h', w') of the same images; needed if alignment is enabled.
            images_seen: images seen in training before this batch.
            compute_dtype: float32, or bfloat16 for autocast in the networks; losses and norms are float32.
            gradient_scale: factor of every gradient, 1/k to accumulate over k batches.
            average: mean of a tensor over processes. With it the adaptive weights are those of the whole
                batch rather than of this process's part. The gradients themselves stay local.

        Returns:
            Detached 0-dim tensors, unscaled, 0 where a term is off: `total`, `nll`, `pixel` and `perceptual`
            (means), `kl`, `adversarial`, `discriminator`, `logits_real`, `logits_fake`, `cosine`,
            `distance_matrix`, `alignment`, the weights applied `adversarial_weight` and `alignment_weight`,
            and `psnr` in dB (mean over images of the batch).

        Raises:
            UserError: on shapes that do not fit, a type that is not supported, missing teacher features, or
                alignment with a frozen encoder.
        """
        if images.dtype not in (torch.float32, torch.float64):
            raise UserError(f"images: type float32 is needed, not {images.dtype}")
        # An autocast of the caller's would also touch the backward passes, losses included.
        with torch.autocast(images.device.type, enabled=False):
            return self._accumulate(
                autoencoder,
                images,
                noise,
                teacher_features,
                self.adversarial_active(images_seen),
                _precision(images.device, compute_dtype),
                gradient_scale,
                average or (lambda x: x),
            )

    def _accumulate(
        self,
        autoencoder: AutoencoderKL,
        images: Tensor,
        noise: Tensor,
        teacher_features: Tensor | None,
        adversarial_active: bool,
        precision: Precision,
        scale: float,
        average: Average,
    ) -> dict[str, Tensor]:
        config = self.config
        with precision():
            posterior = autoencoder.encode(images)
        latents = posterior.sample(noise=noise)
        if self.alignment is not None:
            _needed(teacher_features)
            if not latents.requires_grad:
                raise UserError("alignment.enabled: the encoder is frozen, so its latents cannot be aligned")
        kl = kl_loss(posterior)
        latent_leaf = latents.detach().requires_grad_(latents.requires_grad)
        with precision():
            decoded = autoencoder.decode(latent_leaf)
        decoded = decoded.to(images.dtype)
        image_leaf = decoded.detach().requires_grad_()

        # Gradients at the reconstruction
        terms = self._reconstruction_terms(images, image_leaf, precision)
        (nll_grad,) = torch.autograd.grad(terms["nll"], image_leaf)
        image_grad = nll_grad
        adversarial_weight = images.new_zeros(())
        if adversarial_active:
            adversarial_terms, adversarial_grad = self._adversarial_step(images, image_leaf, precision, scale)
            terms |= adversarial_terms
            adversarial_weight = _term_weight(
                config.adversarial, decoded, autoencoder.last_decoder_layer, nll_grad, adversarial_grad, average
            )
            image_grad = nll_grad + adversarial_weight * adversarial_grad

        # Through the decoder: once, and for the reconstruction alone, without its parameters, if the
        # alignment must be weighed against that
        nll_latent_grad = None
        if adversarial_active and self.alignment is not None and config.alignment.adaptive:
            nll_latent_grad = _gradient(decoded, latent_leaf, nll_grad)
        torch.autograd.backward(decoded, image_grad * scale)
        latent_grad = latent_leaf.grad

        # Gradients at the latent
        alignment_weight = images.new_zeros(())
        if self.alignment is not None and latent_grad is not None:
            if nll_latent_grad is None:
                nll_latent_grad = latent_grad / scale
            parameters = self.projection_parameters()
            alignment_terms, alignment_grad, *parameter_grads = self._alignment_gradients(
                latents, teacher_features, parameters
            )
            terms |= alignment_terms
            alignment_weight = _term_weight(
                config.alignment, latents, autoencoder.last_encoder_layer, nll_latent_grad, alignment_grad, average
            )
            latent_grad = latent_grad + alignment_weight * scale * alignment_grad
            for parameter, gradient in zip(parameters, parameter_grads, strict=True):
                _add_gradient(parameter, alignment_weight * scale * gradient)

        # Through the encoder, once
        if latent_grad is not None:
            torch.autograd.backward([latents, kl], [latent_grad, torch.full_like(kl, config.kl.weight * scale)])

        terms["kl"] = kl
        terms["adversarial_weight"] = adversarial_weight
        terms["alignment_weight"] = alignment_weight
        return self._report(terms)

    @torch.no_grad()
    def evaluate(
        self,
        autoencoder: AutoencoderKL,
        images: Tensor,
        teacher_features: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        compute_dtype: torch.dtype = torch.float32,
    ) -> dict[str, Tensor]:
        """Validation terms without gradients: those of `accumulate_gradients` that need no discriminator.

        Args:
            autoencoder: the model.
            images: (B, 3, H, W) in [-1, 1].
            teacher_features: (B, D, h', w'); needed if alignment is enabled.
            noise: for the posterior's sample; without it the mean is decoded.
            compute_dtype: as there.

        Returns:
            `nll`, `pixel`, `perceptual`, `psnr`, `kl`, `cosine`, `distance_matrix`, `alignment`.
        """
        precision = _precision(images.device, compute_dtype)
        with precision():
            posterior = autoencoder.encode(images)
            latents = posterior.mode() if noise is None else posterior.sample(noise=noise)
            reconstruction = autoencoder.decode(latents).to(images.dtype)
        terms = self._reconstruction_terms(images, reconstruction, precision)
        terms["kl"] = kl_loss(posterior)
        if self.alignment is not None:
            terms |= self.alignment(latents, _needed(teacher_features))
        zero = images.new_zeros(())
        return {name: terms.get(name, zero) for name in _EVALUATED}

    def _reconstruction_terms(self, images: Tensor, reconstruction: Tensor, precision: Precision) -> dict[str, Tensor]:
        config = self.config
        error = pixel_error(images, reconstruction, config.pixel.kind)
        pixel = error.mean((1, 2, 3))
        per_element = config.pixel.weight * pixel
        terms = {"pixel": pixel.mean()}
        if self.perceptual is not None:
            with torch.no_grad(), precision():
                targets = self.perceptual.extract(images)
            with precision():
                features = self.perceptual.extract(reconstruction)
            perceptual = self.perceptual.distance(targets, features)
            per_element = per_element + config.perceptual.weight * perceptual
            terms["perceptual"] = perceptual.mean()
        # a sum over elements, a mean over images: LPIPS counts once per element
        terms["nll"] = error[0].numel() * per_element.mean()
        with torch.no_grad():
            squared = (images - reconstruction).square().mean((1, 2, 3))
            terms["psnr"] = (10.0 * torch.log10(4.0 / squared)).mean()
        return terms

    def _adversarial_step(
        self, images: Tensor, image_leaf: Tensor, precision: Precision, scale: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Fill the discriminator's gradients; return terms and the generator loss's gradient at the images.

        Both losses see the same logits of the reconstruction, so one forward pass serves both.
        """
        assert self.discriminator is not None
        with precision():
            logits_fake = self.discriminator(image_leaf)
            logits_real = self.discriminator(images)
        logits_fake, logits_real = logits_fake.to(images.dtype), logits_real.to(images.dtype)
        generator = generator_loss(logits_fake)
        gradient = _gradient(generator, image_leaf)
        loss = discriminator_hinge_loss(logits_real, logits_fake)
        torch.autograd.backward(loss * scale, inputs=self.discriminator_parameters())
        terms = {
            "adversarial": generator,
            "discriminator": loss,
            "logits_real": logits_real.mean(),
            "logits_fake": logits_fake.mean(),
        }
        return terms, gradient

    def _alignment_gradients(
        self, latents: Tensor, teacher_features: Tensor | None, parameters: Sequence[nn.Parameter]
    ) -> tuple[dict[str, Tensor], Tensor, *tuple[Tensor, ...]]:
        """Terms, and gradients of `alignment` at the latents and at the projection's parameters."""
        assert self.alignment is not None
        leaf = latents.detach().requires_grad_()
        terms = self.alignment(leaf, _needed(teacher_features))
        return terms, *torch.autograd.grad(terms["alignment"], [leaf, *parameters])

    def _report(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        zero = torch.zeros_like(terms["nll"])
        report = {name: terms.get(name, zero).detach() for name in _REPORTED}
        total = (
            report["nll"]
            + self.config.kl.weight * report["kl"]
            + report["adversarial_weight"] * report["adversarial"]
            + report["alignment_weight"] * report["alignment"]
        )
        return {"total": total, **report}


_EVALUATED = ("nll", "pixel", "perceptual", "psnr", "kl", "cosine", "distance_matrix", "alignment")
_REPORTED = (
    *_EVALUATED,
    "alignment_weight",
    "adversarial",
    "adversarial_weight",
    "discriminator",
    "logits_real",
    "logits_fake",
)


def _precision(device: torch.device, compute_dtype: torch.dtype) -> Precision:
    if compute_dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"compute_dtype: {compute_dtype} is neither float32 nor bfloat16")
    if compute_dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, compute_dtype)


def _needed(teacher_features: Tensor | None) -> Tensor:
    if teacher_features is None:
        raise UserError("alignment.enabled: the teacher's features of the images are missing")
    return teacher_features


def _term_weight(
    config: AdversarialConfig | AlignmentConfig,
    output: Tensor,
    last_layer: nn.Conv2d,
    reference_grad: Tensor,
    grad: Tensor,
    average: Average,
) -> Tensor:
    """A term's factor, 0-dim: its weight, times the adaptive one from both gradients at `output`, if asked for."""
    weight = output.new_full((), config.weight)
    if not config.adaptive:
        return weight
    reference = average(_gradient(output, last_layer.weight, reference_grad))
    own = average(_gradient(output, last_layer.weight, grad))
    return weight * adaptive_weight(reference, own, config.maximum)


def _gradient(output: Tensor, parameter: Tensor, output_grad: Tensor | None = None) -> Tensor:
    """d output / d input times `output_grad`, keeping the graph; work stops at `parameter`."""
    grads = None if output_grad is None else [output_grad]
    return torch.autograd.grad([output], [parameter], grads, retain_graph=True)[0]


def _add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _drop_perceptual(module: nn.Module, state: dict, prefix: str, local_metadata: dict) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}perceptual.")]:
        del state[name]


def _forgive_perceptual(module: nn.Module, incompatible: torch.nn.modules.module._IncompatibleKeys) -> None:
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if not name.startswith("perceptual.") and ".perceptual." not in name]
