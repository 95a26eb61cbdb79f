"""The continuous Bernoulli distribution and `log_sigmoid`, in float32 and float64."""

import math

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.integrate import quad
from torch import nn

from pyro_vae import distributions


def test_log_sigmoid_has_the_value_and_gradient_of_torchs():
    logits = torch.tensor([0.0, 1e-3, -1e-3, 2, -2, 17, -17, 90, -90, 1e30, -1e30, torch.inf])
    logits.requires_grad_()
    ours, theirs = distributions.log_sigmoid(logits), nn.functional.logsigmoid(logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    gradients = [torch.autograd.grad(value.sum(), logits)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


@pytest.mark.parametrize("eta", [-40.0, -3.0, -0.1, -0.09, -1e-4, 0.0, 1e-3, 0.09, 2.0, 40.0])
def test_continuous_bernoulli_against_quadrature(eta):
    p = distributions.ContinuousBernoulli(torch.tensor(eta, dtype=torch.float64))

    def integrate(power: int) -> float:
        # In units of the density at its mode, so that nothing overflows.
        shift = max(eta, 0)
        return quad(lambda x: x**power * math.exp(eta * x - shift), 0, 1, epsabs=1e-13)[0]

    normalizer = math.log(integrate(0)) + max(eta, 0)
    x = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(x), eta * x - normalizer, rtol=0, atol=1e-9)
    mean = integrate(1) / integrate(0)
    assert p.mean.item() == pytest.approx(mean, abs=1e-9)
    assert p.variance.item() == pytest.approx(integrate(2) / integrate(0) - mean**2, abs=1e-9)


@pytest.mark.parametrize("eta", [-1e4, -30.0, -0.1, 0.0, 1e-6, 0.1, 17.0, 300.0])
def test_continuous_bernoulli_in_float32_has_the_value_and_gradient_of_float64(eta):
    x = torch.tensor([0.0, 0.25, 1.0])
    results = []
    for dtype in (torch.float32, torch.float64):
        logits = torch.full((3,), eta, dtype=dtype, requires_grad=True)
        log_prob = distributions.ContinuousBernoulli(logits).log_prob(x.to(dtype))
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        results.append((log_prob.detach().double(), gradient.double()))
    torch.testing.assert_close(*(log_prob for log_prob, _ in results), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=1e-5, atol=1e-6)
    # The score of an exponential family: x - E[x].
    mean = distributions.ContinuousBernoulli(torch.tensor(eta, dtype=torch.float64)).mean
    torch.testing.assert_close(results[1][1], x.double() - mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [-200.0, -2.0, 0.0, 0.05, 5.0])
def test_continuous_bernoulli_draws_follow_its_density(eta):
    torch.manual_seed(0)
    draws = distributions.ContinuousBernoulli(torch.tensor(eta)).sample((20_000,)).numpy()

    def cdf(x: np.ndarray) -> np.ndarray:
        return x if eta == 0 else np.expm1(eta * x) / np.expm1(eta)

    assert st.kstest(draws.astype(np.float64), cdf).pvalue > 1e-4
