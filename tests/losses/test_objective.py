"""The objective against a plain computation for every combination of terms; number of passes; precision."""

import copy
import dataclasses
import functools
import itertools

import pytest
import torch
from torch import Tensor

from plain.tokenizer_step import plain_step
from vavae.errors import UserError
from vavae.losses import (
    LPIPS,
    AdversarialConfig,
    AlignmentConfig,
    DiscriminatorConfig,
    KLConfig,
    ObjectiveConfig,
    PerceptualConfig,
    PixelConfig,
    TokenizerObjective,
)
from vavae.losses.dino_discriminator import DinoViT
from vavae.losses.pixel import pixel_error
from vavae.tokenizer import AutoencoderConfig, AutoencoderKL

SHAPE = AutoencoderConfig(4, 8, (1, 2), blocks_per_level=1, attention_levels=(1,))
TEACHER = 6
START = 1000
DISCRIMINATOR = DiscriminatorConfig(base_channels=4, layers=2)


@functools.cache
def _random_lpips(dtype: torch.dtype) -> LPIPS:
    torch.manual_seed(3)
    model = LPIPS("alexnet")
    for head in model.heads:
        head.weight.abs_()
    return model.to(dtype)


def _lpips(dtype: torch.dtype = torch.float64) -> LPIPS:
    """Return LPIPS with AlexNet, random weights, and positive heads like the learned ones."""
    return copy.deepcopy(_random_lpips(dtype))


def _config(**changes: object) -> ObjectiveConfig:
    base = ObjectiveConfig(
        kl=KLConfig(0.01),  # large enough to be seen
        adversarial=AdversarialConfig(start_images=START, discriminator=DISCRIMINATOR),
        alignment=AlignmentConfig(cos_margin=0.1, distance_margin=0.05),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def _build(config: ObjectiveConfig, dtype: torch.dtype = torch.float64) -> tuple[AutoencoderKL, TokenizerObjective]:
    lpips = _lpips(dtype)
    torch.manual_seed(3)
    autoencoder = AutoencoderKL(SHAPE)
    objective = TokenizerObjective(config, SHAPE.latent_channels, TEACHER, lpips)
    return autoencoder.to(dtype), objective.to(dtype)


def _batch(dtype: torch.dtype = torch.float64, batch: int = 2, size: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    side = size // SHAPE.factor
    return {
        "images": (torch.rand(batch, 3, size, size, generator=generator) * 2 - 1).to(dtype),
        "noise": torch.randn(batch, SHAPE.latent_channels, side, side, generator=generator).to(dtype),
        "teacher_features": torch.randn(batch, TEACHER, side, side, generator=generator).to(dtype),
    }


def _take_gradients(*modules: torch.nn.Module) -> dict[str, Tensor]:
    gradients = {}
    for i, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                gradients[f"{i}.{name}"] = parameter.grad
            parameter.grad = None
    return gradients


def _assert_equal_steps(config: ObjectiveConfig, images_seen: int, dtype: torch.dtype, tolerance: float) -> None:
    autoencoder, objective = _build(config, dtype)
    batch = _batch(dtype)
    actual = objective.accumulate_gradients(autoencoder, **batch, images_seen=images_seen)
    actual_gradients = _take_gradients(autoencoder, objective)
    active = objective.adversarial_active(images_seen)
    expected = plain_step(config, objective, autoencoder, *batch.values(), active)
    expected_gradients = _take_gradients(autoencoder, objective)
    for name, value in actual.items():
        if name == "psnr":
            continue
        reference = expected.get(name, torch.zeros((), dtype=dtype))
        torch.testing.assert_close(value.to(dtype), reference, rtol=tolerance, atol=tolerance, msg=name)
        assert not value.requires_grad
        assert value.ndim == 0
    assert actual_gradients.keys() == expected_gradients.keys()
    whole = torch.stack([gradient.norm() for gradient in expected_gradients.values()]).norm()
    for name, gradient in expected_gradients.items():
        # a bias before a norm of single channels has gradient 0, up to rounding
        error = (actual_gradients[name] - gradient).norm() / (gradient.norm() + 1e-2 * whole)
        assert error < tolerance, (name, error)


KINDS = ("off", "fixed", "adaptive")


@pytest.mark.parametrize(
    ("adversarial", "alignment", "images_seen"),
    [*itertools.product(KINDS, KINDS, [START]), *(("adaptive", kind, START - 1) for kind in KINDS)],
)
def test_equals_the_plain_computation(adversarial: str, alignment: str, images_seen: int) -> None:
    config = _config()
    config = dataclasses.replace(
        config,
        adversarial=dataclasses.replace(
            config.adversarial, enabled=adversarial != "off", adaptive=adversarial == "adaptive", weight=0.7
        ),
        alignment=dataclasses.replace(
            config.alignment,
            enabled=alignment != "off",
            adaptive=alignment == "adaptive",
            cos_weight=0.5,
            distance_weight=2.0,
        ),
    )
    _assert_equal_steps(config, images_seen, torch.float64, 1e-9)


def test_equals_the_plain_computation_in_float32() -> None:
    _assert_equal_steps(_config(), START, torch.float32, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"perceptual": PerceptualConfig(weight=0.0)},
        {"pixel": PixelConfig(weight=0.0)},
        {"kl": KLConfig(0.0)},
        {"pixel": PixelConfig(weight=3.0), "perceptual": PerceptualConfig(weight=0.2)},
        {"alignment": AlignmentConfig(cos_margin=0.1, distance_margin=0.05, projection="teacher_to_latent")},
        {"alignment": AlignmentConfig(train_projection=False)},
        {
            "alignment": AlignmentConfig(maximum=0.5),
            "adversarial": AdversarialConfig(start_images=0, maximum=0.5, discriminator=DISCRIMINATOR),
        },
    ],
)
def test_equals_plain_computation_with_changed_terms(changes: dict) -> None:
    _assert_equal_steps(_config(**changes), START, torch.float64, 1e-8)


def test_squared_pixel_error_by_definition() -> None:
    config = _config(
        pixel=PixelConfig(kind="l2"),
        perceptual=PerceptualConfig(weight=0.0),
        adversarial=AdversarialConfig(enabled=False),
        alignment=AlignmentConfig(enabled=False),
        kl=KLConfig(0.0),
    )
    autoencoder, objective = _build(config)
    batch = _batch()
    terms = objective.accumulate_gradients(autoencoder, **batch)
    gradients = _take_gradients(autoencoder)
    loss = (autoencoder(batch["images"], batch["noise"]) - batch["images"]).square().sum() / 2
    loss.backward()
    torch.testing.assert_close(terms["total"], loss.detach())
    expected = _take_gradients(autoencoder)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


class _Latents(torch.nn.Module):
    """A frozen encoder of two channels, and a layer that decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.last_decoder_layer = torch.nn.Linear(2, 3)

    def encode(self, images: Tensor) -> Tensor:
        return images[:, :2].detach()

    def decode(self, latents: Tensor) -> Tensor:
        return self.last_decoder_layer(latents.movedim(1, -1)).movedim(-1, 1)


def test_dino_discriminator_is_trained_on_images_of_clean_latents() -> None:
    torch.manual_seed(0)
    kind = AdversarialConfig(start_images=0, discriminator=DiscriminatorConfig(kind="dino"))
    config = ObjectiveConfig(
        perceptual=PerceptualConfig(weight=0.0), adversarial=kind, alignment=AlignmentConfig(enabled=False)
    )
    objective, autoencoder = TokenizerObjective(config, 2, dino=DinoViT(8, 1, 2, 56)).eval(), _Latents()
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    clean, noisy = (
        objective.accumulate_gradients(autoencoder, images, noise) for noise in (torch.zeros(1, 2, 8, 8), images[:, :2])
    )
    assert torch.equal(clean["discriminator"], noisy["discriminator"])
    assert not torch.equal(clean["adversarial"], noisy["adversarial"])


def test_adaptive_weight_of_a_mean_has_the_published_epsilon() -> None:
    adversarial = AdversarialConfig(start_images=0, discriminator=DISCRIMINATOR)
    weights = {}
    for reduction in ("sum", "mean"):
        config = _config(adversarial=adversarial, alignment=AlignmentConfig(enabled=False), reduction=reduction)
        autoencoder, objective = _build(config)
        weights[reduction] = objective.accumulate_gradients(autoencoder, **_batch())["adversarial_weight"].item()
    elements = 3 * 32 * 32
    # w_sum = elements · r / (g + 1e-4) and w_mean = r / (g + 1e-6), for one r and g
    ratio = weights["sum"] / elements / weights["mean"]
    autoencoder, objective = _build(_config(adversarial=adversarial, alignment=AlignmentConfig(enabled=False)))
    batch = _batch()
    decoded = autoencoder.decode(autoencoder.encode(batch["images"]).sample(noise=batch["noise"]))
    generator = -objective.discriminator(decoded).mean()
    norm = torch.autograd.grad(generator, autoencoder.last_decoder_layer.weight)[0].norm().item()
    assert ratio == pytest.approx((norm + 1e-6) / (norm + 1e-4), rel=1e-9)


def test_psnr_of_images_from_minus_one_to_one() -> None:
    autoencoder, objective = _build(_config())
    batch = _batch()
    terms = objective.accumulate_gradients(autoencoder, **batch)
    with torch.no_grad():
        squared = (autoencoder(batch["images"], batch["noise"]) - batch["images"]).square().mean((1, 2, 3))
    torch.testing.assert_close(terms["psnr"], (20 * torch.log10(2 / squared.sqrt())).mean())


def test_two_scaled_calls_add_up_to_the_mean() -> None:
    config = _config(
        adversarial=AdversarialConfig(enabled=False),
        alignment=AlignmentConfig(adaptive=False, cos_margin=0.1, distance_margin=0.05),
    )
    autoencoder, objective = _build(config)
    batch = _batch(batch=4)
    objective.accumulate_gradients(autoencoder, **batch)
    whole = _take_gradients(autoencoder, objective)
    for part in (slice(0, 2), slice(2, 4)):
        half = {name: value[part] for name, value in batch.items()}
        objective.accumulate_gradients(autoencoder, **half, gradient_scale=0.5)
    parts = _take_gradients(autoencoder, objective)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-8, atol=1e-8)


def test_gradient_scale_changes_gradients_only() -> None:
    autoencoder, objective = _build(_config())
    batch = _batch()
    for images_seen in (0, START):
        plain = objective.accumulate_gradients(autoencoder, **batch, images_seen=images_seen)
        plain_gradients = _take_gradients(autoencoder, objective)
        scaled = objective.accumulate_gradients(autoencoder, **batch, images_seen=images_seen, gradient_scale=0.25)
        scaled_gradients = _take_gradients(autoencoder, objective)
        for name, value in plain.items():
            torch.testing.assert_close(scaled[name], value)
        for name, gradient in plain_gradients.items():
            torch.testing.assert_close(scaled_gradients[name], 0.25 * gradient, rtol=1e-9, atol=1e-12)


def test_adaptive_weights_over_processes_equal_one_process() -> None:
    """Two processes that average gradients before the norm get the adaptive weights of one process."""
    config = _config(adversarial=dataclasses.replace(_config().adversarial, start_images=0))
    autoencoder, objective = _build(config)
    objective.eval()  # running statistics in the discriminator, so that the split of the batch does not matter there
    batch = _batch(batch=4)
    whole = objective.accumulate_gradients(autoencoder, **batch)
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    recorded: list[list[Tensor]] = [[], []]
    for half, record in zip(halves, recorded, strict=True):

        def remember(gradient: Tensor, record: list[Tensor] = record) -> Tensor:
            record.append(gradient)
            return gradient

        objective.accumulate_gradients(autoencoder, **half, average=remember)
    means = iter([(a + b) / 2 for a, b in zip(*recorded, strict=True)])
    terms = objective.accumulate_gradients(autoencoder, **halves[0], average=lambda gradient: next(means))
    for name in ("adversarial_weight", "alignment_weight"):
        torch.testing.assert_close(terms[name], whole[name])


class _Calls:
    """Count the calls of a module and the backward passes through its output."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.forward = self.backward = 0
        module.register_forward_hook(self._forward)

    def _forward(self, module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        self.forward += 1
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: Tensor) -> None:
        self.backward += 1


@pytest.mark.parametrize(
    ("images_seen", "adaptive", "decoder_passes"), [(0, True, 1), (START, False, 1), (START, True, 2)]
)
def test_number_of_passes(images_seen: int, adaptive: bool, decoder_passes: int) -> None:
    config = _config(alignment=AlignmentConfig(adaptive=adaptive))
    autoencoder, objective = _build(config)
    decoder, encoder = _Calls(autoencoder.decoder.conv_in), _Calls(autoencoder.encoder.conv_in)
    lpips = _Calls(objective.perceptual.features[0])
    discriminator = _Calls(objective.discriminator)
    objective.accumulate_gradients(autoencoder, **_batch(), images_seen=images_seen)
    assert (decoder.forward, decoder.backward) == (1, decoder_passes)
    assert (encoder.forward, encoder.backward) == (1, 1)
    assert (lpips.forward, lpips.backward) == (2, 1)  # the target's features need no gradient
    assert discriminator.forward == (0 if images_seen == 0 else 2)


def test_discriminator_is_unchanged_before_its_start() -> None:
    autoencoder, objective = _build(_config())
    before = {name: value.clone() for name, value in objective.discriminator.state_dict().items()}
    terms = objective.accumulate_gradients(autoencoder, **_batch(), images_seen=START - 1)
    assert all(parameter.grad is None for parameter in objective.discriminator_parameters())
    for name, value in objective.discriminator.state_dict().items():
        assert torch.equal(value, before[name])
    assert terms["adversarial"] == terms["discriminator"] == terms["adversarial_weight"] == 0


def test_coarser_teacher_grid_is_resampled() -> None:
    autoencoder, objective = _build(_config())
    batch = _batch()
    batch["teacher_features"] = torch.nn.functional.avg_pool2d(batch["teacher_features"], 2)
    terms = objective.accumulate_gradients(autoencoder, **batch)
    assert terms["alignment"] > 0


def test_frozen_encoder_trains_the_decoder_only() -> None:
    autoencoder, objective = _build(_config(alignment=AlignmentConfig(enabled=False)))
    autoencoder.encoder.requires_grad_(False)
    autoencoder.quant_conv.requires_grad_(False)
    objective.accumulate_gradients(autoencoder, **_batch(), images_seen=START)
    assert all(parameter.grad is None for parameter in autoencoder.encoder.parameters())
    assert all(parameter.grad is not None for parameter in autoencoder.decoder.parameters())
    autoencoder, objective = _build(_config())
    autoencoder.encoder.requires_grad_(False)
    autoencoder.quant_conv.requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        objective.accumulate_gradients(autoencoder, **_batch(), images_seen=START)
    assert _take_gradients(autoencoder, objective) == {}  # refused before anything was added


@pytest.mark.parametrize("caller_autocast", [False, True])
def test_bfloat16_is_close_and_has_float32_gradients(caller_autocast: bool) -> None:
    autoencoder, objective = _build(_config(), torch.float32)
    batch = _batch(torch.float32)
    expected = objective.accumulate_gradients(autoencoder, **batch, images_seen=START)
    expected_gradients = _take_gradients(autoencoder, objective)
    with torch.autocast("cpu", torch.bfloat16, enabled=caller_autocast):
        actual = objective.accumulate_gradients(autoencoder, **batch, images_seen=START, compute_dtype=torch.bfloat16)
    actual_gradients = _take_gradients(autoencoder, objective)
    for name in ("nll", "pixel", "perceptual", "kl", "alignment", "discriminator", "total", "alignment_weight"):
        torch.testing.assert_close(actual[name], expected[name], rtol=0.03, atol=1e-3)
        assert actual[name].dtype == torch.float32
    for name, gradient in actual_gradients.items():
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all(), name
    flat = [
        torch.cat([g[name].flatten() for name in expected_gradients if name.startswith("0")])
        for g in (expected_gradients, actual_gradients)
    ]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.98


def test_autocast_of_the_caller_has_no_effect() -> None:
    autoencoder, objective = _build(_config(), torch.float32)
    batch = _batch(torch.float32)
    expected = objective.accumulate_gradients(autoencoder, **batch)
    expected_gradients = _take_gradients(autoencoder, objective)
    with torch.autocast("cpu", torch.bfloat16):
        actual = objective.accumulate_gradients(autoencoder, **batch)
    assert torch.equal(actual["total"], expected["total"])
    for name, gradient in _take_gradients(autoencoder, objective).items():
        assert torch.equal(gradient, expected_gradients[name])


def test_evaluation_equals_training_terms() -> None:
    autoencoder, objective = _build(_config())
    batch = _batch()
    training = objective.accumulate_gradients(autoencoder, **batch)
    _take_gradients(autoencoder, objective)
    evaluation = objective.evaluate(autoencoder, **batch)
    for name, value in evaluation.items():
        torch.testing.assert_close(value, training[name])
    assert not any(parameter.grad is not None for parameter in autoencoder.parameters())
    mean = objective.evaluate(autoencoder, batch["images"], batch["teacher_features"])
    assert mean["kl"] == evaluation["kl"]
    assert mean["nll"] != evaluation["nll"]


def test_state_dict_excludes_lpips_and_loads_strictly() -> None:
    _, objective = _build(_config())
    state = objective.state_dict()
    assert {name.split(".")[0] for name in state} == {"discriminator", "alignment"}
    assert "alignment.linear_proj.weight" in state
    perceptual = {name: value.clone() for name, value in objective.perceptual.state_dict().items()}
    for value in state.values():
        value.add_(1)
    objective.load_state_dict(state)
    for name, value in objective.perceptual.state_dict().items():
        assert torch.equal(value, perceptual[name])
    with pytest.raises(RuntimeError, match="linear_proj"):
        objective.load_state_dict({name: value for name, value in state.items() if "linear" not in name})
    wrapped = torch.nn.ModuleDict({"objective": objective})
    assert not any("perceptual" in name for name in wrapped.state_dict())
    wrapped.load_state_dict(wrapped.state_dict())


def test_frozen_networks_are_named() -> None:
    dino = DinoViT(16, 2, 1, 56)
    kind = AdversarialConfig(discriminator=DiscriminatorConfig(kind="dino"))
    objective = TokenizerObjective(_config(adversarial=kind), 4, TEACHER, _lpips(), dino)
    assert objective.frozen == {"LPIPS": objective.perceptual, "DINO": dino}
    assert not TokenizerObjective(_config(perceptual=PerceptualConfig(0.0)), 4, TEACHER).frozen


def test_parameters_go_to_the_right_optimizer() -> None:
    _, objective = _build(_config())
    assert objective.projection_parameters() == [objective.alignment.linear_proj.weight]
    assert len(objective.discriminator_parameters()) == len(list(objective.discriminator.parameters()))
    assert not any(parameter.requires_grad for parameter in objective.perceptual.parameters())
    frozen = _build(_config(alignment=AlignmentConfig(train_projection=False)))[1]
    assert frozen.projection_parameters() == []


def test_bad_input_is_named() -> None:
    autoencoder, objective = _build(_config())
    batch = _batch()
    with pytest.raises(UserError, match=r"^teacher_features must be given"):
        objective.accumulate_gradients(autoencoder, batch["images"], batch["noise"])
    with pytest.raises(UserError, match=r"teacher features must have shape \(2, 6, h, w\)"):
        objective.accumulate_gradients(autoencoder, batch["images"], batch["noise"], batch["noise"])
    with pytest.raises(UserError, match="compute_dtype"):
        objective.accumulate_gradients(autoencoder, **batch, compute_dtype=torch.float16)
    with pytest.raises(UserError, match="images"):
        objective.accumulate_gradients(autoencoder, batch["images"].bfloat16(), batch["noise"])
    with pytest.raises(UserError, match="images"):
        objective.evaluate(autoencoder, batch["images"].byte())
    with pytest.raises(UserError, match=r"^images and reconstruction must have the same shape"):
        pixel_error(batch["images"], batch["images"][:1])
    with pytest.raises(UserError, match="without a teacher"):
        TokenizerObjective(_config(), 4, None, _lpips())
    with pytest.raises(UserError, match="got 0 for both"):
        ObjectiveConfig(pixel=PixelConfig(weight=0.0), perceptual=PerceptualConfig(weight=0.0))
    for config, name in ((PixelConfig, "pixel"), (PerceptualConfig, "perceptual"), (KLConfig, "kl")):
        with pytest.raises(UserError, match=f"{name}.weight"):
            config(weight=-1.0)
