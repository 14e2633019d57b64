"""The posterior against torch.distributions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from vavae.errors import UserError
from vavae.tokenizer import DiagonalGaussian


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 4.0))
def test_kl_equals_torch_distributions(seed: int, scale: float) -> None:
    moments = scale * torch.randn(3, 8, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    posterior = DiagonalGaussian(moments)
    mean, logvar = moments.split(4, dim=1)
    expected = kl_divergence(
        Independent(Normal(mean, (0.5 * logvar).exp()), 3),
        Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 3),
    )
    torch.testing.assert_close(posterior.kl(), expected, rtol=1e-10, atol=1e-10)
    assert (posterior.kl() >= 0).all()


def test_kl_of_the_standard_normal_is_zero() -> None:
    assert torch.equal(DiagonalGaussian(torch.zeros(2, 6, 3, 3)).kl(), torch.zeros(2))


def test_moments_are_means_then_clamped_log_variances() -> None:
    moments = torch.tensor([1.0, 2.0, -100.0, 100.0]).view(1, 4, 1, 1)
    posterior = DiagonalGaussian(moments)
    assert posterior.mean.flatten().tolist() == [1.0, 2.0]
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]
    torch.testing.assert_close(posterior.std.square(), posterior.var)
    assert torch.equal(posterior.mode(), posterior.mean)


def test_samples_have_mean_and_std_of_the_posterior() -> None:
    moments = torch.tensor([3.0, -1.0, 0.4, -2.0]).view(1, 4, 1, 1).expand(200_000, -1, -1, -1)
    samples = DiagonalGaussian(moments).sample(torch.Generator().manual_seed(0)).flatten(1)
    torch.testing.assert_close(samples.mean(0), torch.tensor([3.0, -1.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([0.2, -1.0]).exp(), rtol=0.01, atol=0)


def test_sample_is_a_function_of_noise_or_generator() -> None:
    posterior = DiagonalGaussian(torch.randn(2, 4, 3, 3))
    noise = torch.randn(2, 2, 3, 3)
    torch.testing.assert_close(posterior.sample(noise=noise), posterior.mean + posterior.std * noise)
    first, second = (posterior.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(UserError, match="noise"):
        posterior.sample(noise=torch.randn(1, 2, 3, 3))


def test_half_precision_moments_are_widened() -> None:
    posterior = DiagonalGaussian(torch.randn(2, 4, 3, 3, dtype=torch.bfloat16))
    assert posterior.mean.dtype == posterior.kl().dtype == posterior.sample().dtype == torch.float32


def test_odd_number_of_channels_is_refused() -> None:
    with pytest.raises(UserError, match="even"):
        DiagonalGaussian(torch.zeros(1, 3, 2, 2))
