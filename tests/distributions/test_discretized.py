"""The discretized logistic distribution: probabilities, tails and samples."""

import numpy as np
import pytest
import scipy.stats as st
import torch

from pyro_vae import distributions


@pytest.mark.parametrize("loc", [-3.0, 0.0, 0.501, 1.0, 40.0])
@pytest.mark.parametrize("scale", [1e-3, 0.05, 10.0])
def test_discretized_logistic_is_the_difference_of_distribution_functions(loc, scale):
    p = distributions.DiscretizedLogistic(
        torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    )
    levels = torch.arange(256, dtype=torch.float64) / 255
    probs = p.log_prob(levels).exp().numpy()
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 255, [np.inf]])
    # Each tail by the function that resolves it.
    by_cdf = np.diff(st.logistic.cdf(edges, loc, scale))
    by_sf = -np.diff(st.logistic.sf(edges, loc, scale))
    expected = np.where(edges[1:] < loc, by_cdf, by_sf)
    np.testing.assert_allclose(probs, expected, rtol=1e-9, atol=1e-300)
    assert probs.sum() == pytest.approx(1, abs=1e-12)
    mean = (probs * levels.numpy()).sum()
    assert p.mean.item() == pytest.approx(mean, abs=1e-12)
    variance = (probs * (levels.numpy() - mean) ** 2).sum()
    assert p.variance.item() == pytest.approx(variance, abs=1e-12)


def test_discretized_logistic_keeps_its_tails_in_float32():
    loc, scale = torch.tensor(-2.0), torch.tensor(0.002)
    levels = torch.arange(256) / 255
    loc.requires_grad_()
    log_probs = distributions.DiscretizedLogistic(loc, scale).log_prob(levels)
    exact = distributions.DiscretizedLogistic(loc.double(), scale.double())
    torch.testing.assert_close(
        log_probs, exact.log_prob(levels.double()).float(), rtol=1e-5, atol=1e-5
    )
    assert log_probs[100] < -1000  # where the difference of two sigmoids is 0
    (gradient,) = torch.autograd.grad(log_probs[100], loc)
    assert gradient.item() == pytest.approx(1 / 0.002, rel=1e-3)


def test_discretized_draws_follow_their_probabilities():
    torch.manual_seed(0)
    p = distributions.DiscretizedLogistic(torch.tensor(0.4), torch.tensor(0.3), num_levels=8)
    draws = p.sample((20_000,))
    assert p.support.check(draws).all()
    counts = torch.bincount((draws * 7).round().long(), minlength=8).numpy()
    probs = p.log_prob(torch.arange(8) / 7).exp().double().numpy()
    assert st.chisquare(counts, 20_000 * probs / probs.sum()).pvalue > 1e-4
