"""Samples and moments in float32 and float64 against closed forms, at extreme parameters."""

import math

import pytest
import torch

from pyro_vae import distributions

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-9}
SLOPES = [0.0, 1e-30, 1e-6, 1e-3, 0.03, 0.0999, 0.1001, 0.4, 3.0, 17.0, 1e4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", SLOPES + [-slope for slope in SLOPES[1:]])
def test_continuous_bernoulli_draws_invert_the_distribution_function(logit, dtype):
    logits = torch.full((2000,), logit, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    draws = distributions.ContinuousBernoulli(logits).rsample()
    torch.manual_seed(0)
    uniform = torch.rand(2000, dtype=dtype).double()
    # At slopes near 0 the closed form is 0/0. The reference is then that of a slope of 1e-4.
    slope = torch.tensor(max(abs(logit), 1e-4), dtype=torch.float64, requires_grad=True)
    distance = torch.log1p(uniform * torch.expm1(-slope)) / -slope
    exact = 1 - distance if logit >= 0 else distance
    error = 1e-4 if abs(logit) < 1e-4 else 0  # of the reference
    close = TOLERANCE[dtype]
    torch.testing.assert_close(draws.double(), exact.detach(), rtol=close, atol=close + error)
    (gradient,) = torch.autograd.grad(draws.sum(), logits)
    (right,) = torch.autograd.grad(exact.sum(), slope)
    right = math.copysign(1, logit) * right.item()
    assert gradient.sum().item() == pytest.approx(right, abs=2000 * (close + error))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", SLOPES)
def test_moments_of_the_continuous_bernoulli(logit, dtype):
    p = distributions.ContinuousBernoulli(torch.tensor(logit, dtype=dtype))
    if logit < 0.1:
        mean = 0.5 + logit / 12 - logit**3 / 720 + logit**5 / 30240
        variance = 1 / 12 - logit**2 / 240 + logit**4 / 6048
    else:
        mean = 1 + 1 / math.expm1(min(logit, 700)) - 1 / logit
        variance = logit**-2 - (2 * math.sinh(min(logit, 700) / 2)) ** -2
    assert p.mean.item() == pytest.approx(mean, rel=TOLERANCE[dtype])
    assert p.variance.item() == pytest.approx(variance, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_levels", [2, 16, 256])
def test_moments_of_the_discretized_logistic(num_levels, dtype):
    locs = torch.tensor([-40.0, -0.01, 0.0, 0.302, 0.5, 0.999, 1.0, 1.3, 40.0], dtype=dtype)
    scales = torch.tensor([1e-4, 1e-3, 0.01, 0.3, 10.0, 1e6], dtype=dtype).unsqueeze(-1)
    p = distributions.DiscretizedLogistic(locs, scales, num_levels)
    exact = distributions.DiscretizedLogistic(locs.double(), scales.double(), num_levels)
    levels = torch.arange(num_levels, dtype=torch.float64)
    values = (levels / (num_levels - 1))[:, None, None]
    probs = exact.log_prob(values).exp()
    mean = (probs * values).sum(0)
    # Var = sum over pairs i < j of p_i p_j (x_i - x_j)^2, which has no cancellation.
    squares = (values[:, 0, 0, None] - values[:, 0, 0]) ** 2
    variance = torch.einsum("iab,jab,ij->ab", probs, probs, squares) / 2
    torch.testing.assert_close(p.mean.double(), mean, rtol=TOLERANCE[dtype], atol=1e-12)
    torch.testing.assert_close(p.variance.double(), variance, rtol=TOLERANCE[dtype], atol=1e-38)
    assert (p.variance >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0.0, 5.0, 15.0, 40.0])
def test_the_variance_of_levels(gap, dtype):
    logits = torch.tensor([0.0, 0.0, gap], dtype=dtype)
    rest = 2 * math.exp(-gap) / (1 + 2 * math.exp(-gap))
    mean = 2 - 1.5 * rest
    right = (rest / 2) * ((0 - mean) ** 2 + (1 - mean) ** 2) + (1 - rest) * (1.5 * rest) ** 2
    p = distributions.CategoricalLevels(logits, spacing=0.3)
    assert p.variance.item() == pytest.approx(0.09 * right, rel=1e-3, abs=1e-13)
    assert p.variance >= 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate", [-50.0, 0.0, 20.0, 90.0])
def test_moments_do_not_change_a_zero_inflated_density(gate, dtype):
    r, log_mean, gates = (torch.tensor(number, dtype=dtype) for number in (1e6, 2.0, gate))
    p = distributions.ZeroInflatedNegativeBinomial(r, log_mean, gate_logits=gates)
    x = torch.tensor([0.0, 1.0, 9.0], dtype=dtype)
    before = p.log_prob(x)
    kept, m = 1 / (1 + math.exp(gate)), math.exp(2.0)
    variance = kept * (m + m**2 / 1e6 + (1 - kept) * m**2)
    assert p.mean.item() == pytest.approx(kept * m, rel=TOLERANCE[dtype])
    assert p.variance.item() == pytest.approx(variance, rel=TOLERANCE[dtype])
    p.sample()
    assert torch.equal(p.log_prob(x), before)
    assert torch.equal(p.expand((3,)).log_prob(x), before)
    assert before.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_certain_bits_have_probability_0_or_1(dtype):
    logits = torch.tensor([torch.inf, -torch.inf], dtype=dtype, requires_grad=True)
    p = distributions.FastBernoulli(logits=logits)
    for value, right in ((0.0, [-torch.inf, 0.0]), (1.0, [0.0, -torch.inf])):
        x = torch.full((2,), value, dtype=dtype)
        assert p.log_prob(x).tolist() == right
        assert p.expand((1, 2)).to_event(1).log_prob(x).item() == -torch.inf
    assert p.mean.tolist() == [1.0, 0.0]
    assert p.variance.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("concentration", [0.0, 1.0, 1e4, 1e8, 1e12])
def test_power_spherical_draws_have_the_spread_of_the_density(concentration, dtype):
    torch.manual_seed(0)
    loc = torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
    p = distributions.PowerSpherical(loc, torch.tensor(concentration, dtype=dtype))
    squared_sine = p.sample((20_000,))[:, 1:].double().square().sum(-1)
    a, b = concentration + 1, 1
    right = 4 * a * b / ((a + b) * (a + b + 1))
    error = (squared_sine.std() / 20_000**0.5).item()
    assert squared_sine.mean().item() == pytest.approx(right, abs=5 * error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.5])
def test_variances_that_cancel_or_overflow(scale, dtype):
    p = distributions.LogNormal(torch.tensor(0.5, dtype=dtype), torch.tensor(scale, dtype=dtype))
    right = math.expm1(scale**2) * math.exp(1 + scale**2)
    assert p.variance.item() == pytest.approx(right, rel=1e-5)
    big = torch.tensor(1e15, dtype=dtype)
    assert distributions.Beta(0 * big, big).variance.item() == pytest.approx(0.25e-15, rel=1e-5)
