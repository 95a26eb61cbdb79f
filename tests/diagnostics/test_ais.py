"""Annealed importance sampling brackets the exact evidence."""

import numpy as np

import pyro_vae as pv
from pyro_vae.diagnostics.ais import schedule
from tests.support.linear_gaussian import linear_vae
from tests.support.spoilt import Spoilt, log_evidence


def test_annealing_and_its_reverse_bracket_the_evidence():
    vae, x = linear_vae()
    simulated, bounds = pv.bidirectional(
        vae, x, num_data=100, num_chains=16, num_temperatures=200, num_leapfrog=5
    )
    exact = log_evidence(vae, simulated)
    below, above = exact - bounds.lower, bounds.upper - exact
    for side in (below, above):
        assert side.mean() > -5 * side.std() / len(side) ** 0.5
        assert side.mean() < 0.1
    assert 0.4 < bounds.acceptance.mean() < 0.95
    # On data from elsewhere, there is the lower bound only.
    bounds = pv.ais(vae, x[:20], num_chains=16, num_temperatures=100)
    assert np.isnan(bounds.upper).all()
    np.testing.assert_allclose(bounds.lower, log_evidence(vae, x[:20]), atol=0.7)


def test_annealing_owes_nothing_to_the_guide():
    vae, x = linear_vae()
    poor = vae.replace(guide=Spoilt(vae.guide.posterior, 0.1, 3.0))
    one, other = (pv.ais(pair, x[:5], num_temperatures=20) for pair in (vae, poor))
    np.testing.assert_array_equal(one.lower, other.lower)


def test_annealing_begins_at_the_prior_and_ends_at_the_posterior():
    betas = schedule(10)
    assert betas[0] == 0
    assert betas[-1] == 1
    assert (betas.diff() > 0).all()
