"""The whole tokenizer objective, with no more backward passes than necessary.

The published total is

    nll + w_kl · kl + w_adv · generator + w_align · alignment

where nll = (Σ pixel error + elements · LPIPS) / batch, and the adaptive weights compare gradients at the last
layers of decoder and encoder. A direct implementation takes one pass back to that layer per term: three through
LPIPS and two through the decoder. Here the graph is cut at the latent and at the reconstruction, where the gradient
of each term is known. A norm at a last layer then costs one convolution, and the gradients of all terms are added
before a single pass through decoder and encoder.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vavae.errors import UserError
from vavae.io.frozen import leave_out
from vavae.losses.adaptive import adaptive_weight
from vavae.losses.adversarial import AdversarialConfig, PatchDiscriminator, discriminator_hinge_loss, generator_loss
from vavae.losses.alignment import AlignmentConfig, AlignmentLoss
from vavae.losses.dino_discriminator import DinoDiscriminator, DinoViT, diff_augment, quantized
from vavae.losses.kl import KLConfig, kl_loss
from vavae.losses.perceptual import LPIPS, PerceptualConfig
from vavae.losses.pixel import PixelConfig, pixel_error
from vavae.tokenizer.gaussian import DiagonalGaussian

Average = Callable[[Tensor], Tensor]
Precision = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class ObjectiveConfig:
    """All terms of the tokenizer objective; the defaults are the published ones.

    Attributes:
        pixel: Absolute or squared error.
        perceptual: LPIPS.
        kl: KL divergence of the posterior to N(0, I).
        adversarial: Patch discriminator.
        alignment: Alignment with a teacher (the VF loss).
        reduction: Over the elements of an image, reconstruction is a `sum` (LDM, VA-VAE) or a `mean` (RAE, REPA-E); the
            weights of the other terms and the bounds of adaptive weights are relative to it.
    """

    pixel: PixelConfig = field(default_factory=PixelConfig)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    reduction: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        if self.pixel.weight == 0 and self.perceptual.weight == 0:
            raise UserError("pixel.weight or perceptual.weight must be above 0 to train reconstruction, got 0 for both")


class TokenizerObjective(nn.Module):
    """Loss terms of tokenizer training: LPIPS, discriminator, alignment, and how their gradients combine.

    The state dict contains discriminator and projection only; LPIPS and DINO are frozen and come from their assets.

    Args:
        config: The terms.
        latent_channels: Channels of the autoencoder's latent.
        teacher_channels: Channels of the teacher's features; needed if alignment is enabled.
        perceptual: LPIPS to use; None fetches the published weights.
        dino: Network of a DINO discriminator; None fetches the one in `config`.

    Attributes:
        perceptual: `LPIPS`, or None if its weight is 0.
        discriminator: `PatchDiscriminator` or `DinoDiscriminator`, or None if not enabled.
        alignment: `AlignmentLoss`, or None if not enabled.

    Raises:
        UserError: Alignment is enabled without `teacher_channels`.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        latent_channels: int,
        teacher_channels: int | None = None,
        perceptual: LPIPS | None = None,
        dino: DinoViT | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.perceptual: LPIPS | None = None
        if config.perceptual.weight > 0:
            self.perceptual = perceptual or LPIPS.pretrained(config.perceptual.network)
        self.discriminator: PatchDiscriminator | DinoDiscriminator | None = None
        if config.adversarial.enabled:
            shape = config.adversarial.discriminator
            if shape.kind == "patch":
                self.discriminator = PatchDiscriminator(shape)
            else:
                self.discriminator = DinoDiscriminator(dino or DinoViT.from_pretrained(shape.dino))
        self.alignment: AlignmentLoss | None = None
        if config.alignment.enabled:
            if teacher_channels is None:
                raise UserError("alignment.enabled must be false without a teacher, got true")
            self.alignment = AlignmentLoss(config.alignment, latent_channels, teacher_channels)
        leave_out(self, "perceptual", "discriminator.dino")

    @property
    def frozen(self) -> dict[str, nn.Module]:
        """Networks whose weights are never trained, by name."""
        found: dict[str, nn.Module] = {} if self.perceptual is None else {"LPIPS": self.perceptual}
        return found | ({"DINO": self.discriminator.dino} if isinstance(self.discriminator, DinoDiscriminator) else {})

    def projection_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters for the autoencoder's optimizer: the alignment's projection."""
        if self.alignment is None:
            return []
        return [parameter for parameter in self.alignment.parameters() if parameter.requires_grad]

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """Return the parameters for the discriminator's own optimizer; empty if it is not enabled."""
        if self.discriminator is None:
            return []
        return [parameter for parameter in self.discriminator.parameters() if parameter.requires_grad]

    def discriminator_active(self, images_seen: int) -> bool:
        """Return whether the discriminator trains, so that its optimizer must step."""
        return self.discriminator is not None and images_seen >= self.config.adversarial.first_images

    def adversarial_active(self, images_seen: int) -> bool:
        """Return whether the adversarial term has started."""
        return self.discriminator is not None and images_seen >= self.config.adversarial.start_images

    def accumulate_gradients(
        self,
        autoencoder: Any,
        images: Tensor,
        noise: Tensor,
        teacher_features: Tensor | None = None,
        images_seen: int = 0,
        *,
        latents: DiagonalGaussian | Tensor | None = None,
        latent_loss: Callable[[Tensor], Tensor] | None = None,
        augmentation: Tensor | None = None,
        compute_dtype: torch.dtype = torch.float32,
        gradient_scale: float = 1.0,
        average: Average | None = None,
    ) -> dict[str, Tensor]:
        """Add this batch's gradients to `.grad` of autoencoder, projection and discriminator.

        Autoencoder and projection get the gradient of the total, the discriminator gets the gradient of its hinge
        loss on the same reconstruction. No optimizer steps. Before `start_images`, or an earlier
        `discriminator_start_images`, the discriminator does not run.

        Args:
            autoencoder: The model in training: `encode` returns a posterior, or latents to which `noise` is added.
            images: (B, 3, H, W) in [-1, 1], float32.
            noise: (B, C, h, w) standard normal numbers for the posterior's sample, or the noise on latents.
            teacher_features: (B, D, h', w') of the same images; needed if alignment is enabled.
            images_seen: Images seen in training before this batch.
            latents: What `encode` would return for the images, for example cached; None encodes them.
            latent_loss: A further term of the total: latents that are decoded, (B, C, h, w) -> loss, 0-dim, weighted.
                Its gradient reaches the encoder only.
            augmentation: (3, B, 5) numbers in [0, 1) for `diff_augment`: of the reconstructions as the autoencoder's
                loss and as the discriminator's see them, and of the images; needed if `augment` is set.
            compute_dtype: float32, or bfloat16 for autocast in the networks; losses and norms are float32.
            gradient_scale: Factor of every gradient, 1/k to accumulate over k batches.
            average: Mean of a tensor over processes; None for one process. It makes the adaptive weights belong to
                the whole batch instead of this process's part. The gradients themselves stay local.

        Returns:
            Detached 0-dim tensors, unscaled, 0 where a term is off: `total`, `nll`, `pixel` and `perceptual`
            (means), `kl`, `adversarial`, `discriminator`, `logits_real`, `logits_fake`, `cosine`,
            `distance_matrix`, `alignment`, the applied weights `adversarial_weight` and `alignment_weight`, and
            `psnr` in dB (mean over the images).

        Raises:
            UserError: A shape or dtype does not fit, teacher features are missing, or the encoder is frozen although
                alignment is enabled.
        """
        _check_images(images)
        # The caller's autocast would also change the backward passes and the losses.
        with torch.autocast(images.device.type, enabled=False):
            return self._accumulate(
                autoencoder,
                images,
                noise,
                teacher_features,
                latents,
                latent_loss,
                images_seen,
                augmentation,
                _precision(images.device, compute_dtype),
                gradient_scale,
                average or (lambda x: x),
            )

    def _accumulate(
        self,
        autoencoder: Any,
        images: Tensor,
        noise: Tensor,
        teacher_features: Tensor | None,
        encoded: DiagonalGaussian | Tensor | None,
        latent_loss: Callable[[Tensor], Tensor] | None,
        images_seen: int,
        augmentation: Tensor | None,
        precision: Precision,
        scale: float,
        average: Average,
    ) -> dict[str, Tensor]:
        config = self.config
        eps = 1e-4 if config.reduction == "sum" else 1e-6  # as published for each

        # Encode; (B, 3, H, W) -> (B, C, h, w)
        if encoded is None:
            with precision():
                encoded = autoencoder.encode(images)
        latents, kl = _noised(encoded, noise)
        if self.alignment is not None:
            _needed(teacher_features)
            if not latents.requires_grad:
                raise UserError("alignment.enabled must be false for a frozen encoder, got true")

        # Decode from a leaf, so that the graph is cut at the latent; (B, C, h, w) -> (B, 3, H, W)
        latent_leaf = latents.detach().requires_grad_(latents.requires_grad)
        with precision():
            decoded = autoencoder.decode(latent_leaf)
        decoded = decoded.to(images.dtype)
        image_leaf = decoded.detach().requires_grad_()

        # Gradients of reconstruction and adversarial term at the decoded images, (B, 3, H, W)
        terms = self._reconstruction_terms(images, image_leaf, precision)
        (nll_grad,) = torch.autograd.grad(terms["nll"], image_leaf)
        image_grad = nll_grad
        adversarial_weight = images.new_zeros(())
        adversarial_active = self.adversarial_active(images_seen)
        if self.discriminator_active(images_seen):
            leaf, shown = image_leaf if adversarial_active else image_leaf.detach(), decoded.detach()
            if isinstance(self.discriminator, DinoDiscriminator) and isinstance(encoded, Tensor):
                with torch.no_grad(), precision():  # as published, it is trained on images without noise on the latents
                    shown = autoencoder.decode(encoded).to(images.dtype)
            found, adversarial_grad = self._adversarial_step(images, leaf, shown, augmentation, precision, scale)
            terms |= found
        if adversarial_active:
            adversarial_weight = _term_weight(
                config.adversarial, decoded, autoencoder.last_decoder_layer, nll_grad, adversarial_grad, average, eps
            )
            image_grad = nll_grad + adversarial_weight * adversarial_grad

        # Backward through the decoder. An adaptive alignment weight needs the gradient of the reconstruction alone at
        # the latent; with an adversarial term that takes a second pass, which skips the decoder's parameters.
        nll_latent_grad = None
        if adversarial_active and self.alignment is not None and config.alignment.adaptive:
            nll_latent_grad = _gradient(decoded, latent_leaf, nll_grad)
        torch.autograd.backward(decoded, image_grad * scale)
        latent_grad = latent_leaf.grad

        # Gradients of the alignment at the latent, (B, C, h, w), and at its projection
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
                config.alignment, latents, autoencoder.last_encoder_layer, nll_latent_grad, alignment_grad, average, eps
            )
            latent_grad = latent_grad + alignment_weight * scale * alignment_grad
            for parameter, gradient in zip(parameters, parameter_grads, strict=True):
                _add_gradient(parameter, alignment_weight * scale * gradient)

        # Gradient of the further term at the latent, (B, C, h, w); what the term consists of gets none
        if latent_loss is not None and latent_grad is not None:
            leaf = latents.detach().requires_grad_()
            terms["latent_loss"] = latent_loss(leaf)
            latent_grad = latent_grad + scale * torch.autograd.grad(terms["latent_loss"], leaf)[0]

        # Backward through the encoder
        if latent_grad is not None:
            torch.autograd.backward([latents, kl], [latent_grad, torch.full_like(kl, config.kl.weight * scale)])

        terms["kl"] = kl
        terms["adversarial_weight"] = adversarial_weight
        terms["alignment_weight"] = alignment_weight
        return self._report(terms)

    @torch.no_grad()
    def evaluate(
        self,
        autoencoder: Any,
        images: Tensor,
        teacher_features: Tensor | None = None,
        noise: Tensor | None = None,
        *,
        compute_dtype: torch.dtype = torch.float32,
    ) -> dict[str, Tensor]:
        """Return the terms of `accumulate_gradients` that need no discriminator, without gradients.

        Args:
            autoencoder: The model.
            images: (B, 3, H, W) in [-1, 1].
            teacher_features: (B, D, h', w'); needed if alignment is enabled.
            noise: (B, C, h, w) for the posterior's sample, or added to latents; None decodes the mean, or without.
            compute_dtype: float32, or bfloat16 for autocast in the networks.

        Returns:
            `nll`, `pixel`, `perceptual`, `psnr`, `kl`, `cosine`, `distance_matrix`, `alignment`: 0-dim each.

        Raises:
            UserError: A shape or dtype does not fit, or teacher features are missing.
        """
        _check_images(images)
        precision = _precision(images.device, compute_dtype)
        with precision():
            latents, kl = _noised(autoencoder.encode(images), noise)
            reconstruction = autoencoder.decode(latents).to(images.dtype)
        terms = self._reconstruction_terms(images, reconstruction, precision)
        terms["kl"] = kl
        if self.alignment is not None:
            terms |= self.alignment(latents, _needed(teacher_features))
        zero = images.new_zeros(())
        return {name: terms.get(name, zero) for name in EVALUATED_TERMS}

    def _reconstruction_terms(self, images: Tensor, reconstruction: Tensor, precision: Precision) -> dict[str, Tensor]:
        config = self.config
        error = pixel_error(images, reconstruction, config.pixel.kind)  # (B, 3, H, W)
        pixel = error.mean((1, 2, 3))  # (B,)
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
        # A sum over elements and a mean over images, so LPIPS counts once per element.
        terms["nll"] = (error[0].numel() if config.reduction == "sum" else 1) * per_element.mean()
        with torch.no_grad():
            squared = (images - reconstruction).square().mean((1, 2, 3))
            terms["psnr"] = (10.0 * torch.log10(4.0 / squared)).mean()
        return terms

    def _adversarial_step(
        self,
        images: Tensor,
        fake: Tensor,
        shown: Tensor,
        augmentation: Tensor | None,
        precision: Precision,
        scale: float,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Add the discriminator's gradients; return terms and the gradient of the generator loss at the images.

        `fake` is a leaf, or needs no gradient before the adversarial term has started; the gradient is then 0.
        The discriminator is trained on `shown`. A patch discriminator without augmentation has the same logits in both
        losses, so one pass over `fake` is enough. A DINO discriminator is trained on 8-bit images, so that it cannot
        tell them by their rounding.
        """
        config, discriminator = self.config.adversarial, self.discriminator
        assert discriminator is not None
        if config.augment and augmentation is None:
            raise UserError("augmentation must be given if adversarial.augment is true, got None")

        def logits(batch: Tensor, use: int) -> Tensor:
            seen = diff_augment(batch, augmentation[use]) if config.augment and augmentation is not None else batch
            with precision():
                return discriminator(seen).to(images.dtype)

        logits_fake, dino = logits(fake, 0), isinstance(discriminator, DinoDiscriminator)
        generator = generator_loss(logits_fake)
        gradient = _gradient(generator, fake) if fake.requires_grad else torch.zeros_like(fake)
        if dino or config.augment:
            logits_fake = logits(quantized(shown) if dino else shown, 1)
        logits_real = logits(images, 2)
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
        """Return the terms and the gradients of `alignment` at the latents and at the projection's parameters."""
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
            + terms.get("latent_loss", zero).detach()
        )
        return {"total": total, **report}


# The terms that `TokenizerObjective.evaluate` returns.
EVALUATED_TERMS = ("nll", "pixel", "perceptual", "psnr", "kl", "cosine", "distance_matrix", "alignment")
_REPORTED = (
    *(*EVALUATED_TERMS, "alignment_weight", "adversarial"),
    *("adversarial_weight", "discriminator", "logits_real", "logits_fake"),
)


def _check_images(images: Tensor) -> None:
    if images.dtype not in (torch.float32, torch.float64):
        raise UserError(f"images must be float32 in [-1, 1], got {images.dtype}")


def _noised(encoded: DiagonalGaussian | Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the latents that are decoded, (B, C, h, w), and the KL divergence of their posterior, 0 without one."""
    if isinstance(encoded, Tensor):
        return encoded if noise is None else encoded + noise, encoded.new_zeros(())
    return encoded.mode() if noise is None else encoded.sample(noise=noise), kl_loss(encoded)


def _precision(device: torch.device, compute_dtype: torch.dtype) -> Precision:
    if compute_dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"compute_dtype must be float32 or bfloat16, got {compute_dtype}")
    if compute_dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, compute_dtype)


def _needed(teacher_features: Tensor | None) -> Tensor:
    if teacher_features is None:
        raise UserError("teacher_features must be given if alignment.enabled is true, got None")
    return teacher_features


def _term_weight(
    config: AdversarialConfig | AlignmentConfig,
    output: Tensor,
    last_layer: nn.Conv2d | nn.Linear,
    reference_grad: Tensor,
    grad: Tensor,
    average: Average,
    eps: float,
) -> Tensor:
    """Return a term's factor, 0-dim: its weight, times the adaptive weight if enabled.

    `reference_grad` and `grad` are the gradients of reconstruction and term at `output`, the last layer's output.
    """
    weight = output.new_full((), config.weight)
    if not config.adaptive:
        return weight
    reference = average(_gradient(output, last_layer.weight, reference_grad))
    own = average(_gradient(output, last_layer.weight, grad))
    return weight * adaptive_weight(reference, own, config.maximum, eps)


def _gradient(output: Tensor, parameter: Tensor, output_grad: Tensor | None = None) -> Tensor:
    """Return the gradient of `output` with respect to `parameter` for `output_grad`; the graph is kept."""
    grads = None if output_grad is None else [output_grad]
    return torch.autograd.grad([output], [parameter], grads, retain_graph=True)[0]


def _add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
