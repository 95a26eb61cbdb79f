"""The power spherical distribution: moments and gradients of its samples."""

import math

import pytest
import torch

from pyro_vae.distributions.spherical import PowerSpherical


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("concentration", [0.0, 1.0, 100.0, 1e5])
def test_power_spherical_draws_have_the_mean_and_a_gradient(concentration, dtype):
    loc = torch.tensor([0.6, 0.0, -0.8], dtype=dtype)
    kappa = torch.tensor(concentration, dtype=dtype, requires_grad=True)
    described = PowerSpherical(loc, kappa)
    draws = described.rsample((4000,))
    error = draws.detach().std(0) / math.sqrt(4000) + 1e-6
    assert ((draws.mean(0) - described.mean).abs() < 5 * error).all()
    (gradient,) = torch.autograd.grad(
        (draws @ loc).mean() + described.log_prob(draws).mean(), kappa
    )
    assert gradient.isfinite()
