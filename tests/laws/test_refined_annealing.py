"""AIS from refined proposals estimates p(x) without bias; refined bounds lie between AIS bounds."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae

COPIES = 25
STARTS = ("prior", "refined")


def bent(x):
    """A curved ridge: x ~ N(z_0^2 + z_1, 0.15)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0] ** 2 + z[..., 1], 0.15), obs=x)


def guide_of_bent(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


def evidence_of_bent(x):
    z = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    terms = dist.Normal(0.0, 1.0).log_prob(z)
    terms = terms + dist.Normal(z**2, math.sqrt(0.15**2 + 1)).log_prob(x[:, None])
    return terms.logsumexp(1) + math.log(16 / 100_000)


def assert_unbiased(lower, exact):
    """The mean of exp(bound) is p(x), within 4.5 standard errors over copies of each datum."""
    ratio = np.exp(lower - np.tile(exact, COPIES)).reshape(COPIES, -1)
    error = ratio.std(0, ddof=1) / math.sqrt(COPIES)
    assert (np.abs(ratio.mean(0) - 1) < 4.5 * error + 1e-4).all(), (ratio.mean(0), error)


@pytest.mark.parametrize("num_temperatures", [1, 4])
def test_the_bound_is_unbiased_on_a_curved_ridge(num_temperatures):
    x = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    exact = evidence_of_bent(x).numpy()
    pair = pv.Pair(bent, guide_of_bent)
    bounds = pv.ais(
        pair,
        x.repeat(COPIES),
        num_chains=50,
        num_temperatures=num_temperatures,
        num_leapfrog=3,
        start="refined",
    )
    assert bounds.start == "refined"
    assert_unbiased(bounds.lower, exact)


def test_a_few_temperatures_suffice_from_a_refined_proposal():
    torch.manual_seed(0)
    vae, x = linear_vae(MeanFieldPosterior, dim=9, latent_dim=7)
    exact = vae.model.likelihood.marginal().log_prob(x).detach().numpy()
    settings = {"num_chains": 10, "num_temperatures": 3, "num_leapfrog": 3}
    gap = {start: exact - pv.ais(vae, x, start=start, **settings).lower for start in STARTS}
    assert np.abs(gap["refined"]).mean() < 0.2
    assert np.abs(gap["prior"]).mean() > 5 * np.abs(gap["refined"]).mean()


def test_annealing_from_both_sides_brackets_the_refined_bound():
    torch.manual_seed(1)
    vae, x = linear_vae(MeanFieldPosterior)
    data, bounds = pv.bidirectional(vae, x, num_data=20, num_temperatures=60)
    refined = pv.refine(vae, data, num_samples=500)
    error = 4.5 * np.std(bounds.upper - bounds.lower) / math.sqrt(20)
    assert bounds.lower.mean() - error < refined.log_likelihood.mean() < bounds.upper.mean() + error
    assert 0 < (bounds.upper - bounds.lower).mean() < 1.5
