"""Coverage is nominal for the exact posterior, for every number of samples and every level."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import betabinom

import pyro_vae as pv
from pyro_vae.diagnostics.sbc import LEVELS

NUM_DRAWS = (1, 2, 3, 4, 7, 9, 10, 19, 20, 31, 63, 64, 99, 100, 199)
NUM_SIMULATIONS = 4000


def conjugate(spread):
    """z ~ N(1, 2), x ~ N(z, 1); the guide's standard deviation is `spread` times the exact one."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(1.0, 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((0.25 + x) / 1.25, spread * 0.8**0.5))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("num_draws", NUM_DRAWS)
@pytest.mark.parametrize("level", LEVELS)
def test_coverage_of_the_exact_posterior(num_draws, level):
    tree = pv.sbc(
        conjugate(1.0),
        torch.zeros(2),
        num_simulations=NUM_SIMULATIONS,
        num_draws=num_draws,
        seed=num_draws,
    )
    error = math.sqrt(level * (1 - level) / NUM_SIMULATIONS)
    assert float(tree["coverage/z"].sel(level=level)) == pytest.approx(level, abs=4.5 * error)


@pytest.mark.parametrize("num_draws", range(1, 130))
def test_uniform_ranks_give_each_level_exactly(num_draws):
    from pyro_vae.diagnostics.sbc import coverage

    ranks = np.arange(num_draws + 1)[:, None].repeat(2, 1)
    for level in np.linspace(0, 1, 101):
        np.testing.assert_allclose(coverage(ranks, num_draws, level), [level] * 2, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [0.5, 2.0])
def test_coverage_of_a_guide_that_is_too_narrow_or_too_wide(shape, level):
    """PIT values that follow Beta(a, a) give beta-binomial ranks: coverage is known for large L."""
    from pyro_vae.diagnostics.sbc import coverage

    num_draws = 999
    ranks = np.arange(num_draws + 1)
    weights = betabinom(num_draws, shape, shape).pmf(ranks)
    found = sum(w * coverage(ranks[i : i + 1], num_draws, level) for i, w in enumerate(weights))
    inside = torch.distributions.Beta(shape, shape)
    grid = torch.linspace((1 - level) / 2, (1 + level) / 2, 20_001, dtype=torch.float64)
    exact = torch.trapezoid(inside.log_prob(grid).exp(), grid).item()
    assert found == pytest.approx(exact, abs=2e-3)
    assert (found < level - 0.01) == (shape < 1)
