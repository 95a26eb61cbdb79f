"""Ranks of all latents together: nominal for exact posteriors, and rejected for wrong guides."""

import math

import arviz_plots
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.diagnostics.sbc import LEVELS, share_between

NUM_SIMULATIONS, WIDTH, NOISE = 1500, 4, 0.7
REJECTED = 1e-6


class Correlated:
    """z ~ N(0, I_2), x|z ~ N(W z, s^2 I), with an exact posterior that is correlated."""

    def __init__(self, guide="exact"):
        generator = torch.Generator().manual_seed(2)
        self.weight = torch.randn(WIDTH, 1, generator=generator).double().repeat(1, 2)
        self.weight = self.weight + 0.1 * torch.randn(WIDTH, 2, generator=generator).double()
        precision = torch.eye(2).double() + self.weight.T @ self.weight / NOISE**2
        self.covariance, self.kind = precision.inverse(), guide

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, NOISE).to_event(1), obs=x)

    def guide(self, x):
        covariance, mean = self.covariance, x @ self.weight @ self.covariance / NOISE**2
        if self.kind == "too narrow":
            covariance = 0.7**2 * covariance
        if self.kind == "too wide":
            covariance = 1.4**2 * covariance
        if self.kind == "shifted":
            mean = mean + 0.5 * covariance.diagonal().sqrt()
        if self.kind == "uncorrelated":
            covariance = covariance.diagonal().diag()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(mean, covariance))


def tree_of(guide, num_simulations=NUM_SIMULATIONS, **settings):
    x = torch.zeros(2, WIDTH).double()
    return pv.sbc(Correlated(guide), x, num_simulations=num_simulations, seed=5, **settings)


def assert_nominal(tree):
    num_simulations = tree["joint_sbc"].sizes["draw"]
    for name in ("density", "tarp"):
        assert float(tree[f"joint_uniformity/{name}"]) > 1e-3
        for level in LEVELS:
            found = float(tree[f"joint_coverage/{name}"].sel(level=level))
            error = math.sqrt(level * (1 - level) / num_simulations)
            assert found == pytest.approx(level, abs=4.5 * error)


@pytest.mark.parametrize("num_draws", [9, 63, 100])
def test_coverage_of_the_exact_posterior_is_nominal(num_draws):
    tree = tree_of("exact", num_draws=num_draws)
    assert_nominal(tree)
    assert tree["joint_sbc/density"].shape == (1, NUM_SIMULATIONS)
    arviz_plots.plot_ecdf_pit(tree, group="joint_sbc")


@pytest.mark.parametrize("guide", ["too narrow", "too wide", "shifted", "uncorrelated"])
def test_wrong_guides_are_rejected(guide):
    tree = tree_of(guide)
    joint = tree["joint_uniformity"].to_dataset()
    assert min(float(joint[name]) for name in joint) < REJECTED
    coverage = float(tree["joint_coverage/density"].sel(level=0.9))
    if guide.startswith("too"):
        assert coverage < 0.8 if guide == "too narrow" else coverage > 0.95
    # The marginals of the guide without correlations are exact: only the joint ranks show it.
    marginal = float(tree["uniformity/z"].min())
    assert marginal > 1e-3 if guide == "uncorrelated" else marginal < REJECTED


def test_the_refined_posterior_of_a_wrong_guide_is_calibrated():
    wrong = tree_of("too narrow", 300, num_draws=31)
    refined = tree_of("too narrow", 300, num_draws=31, posterior="resampled")
    assert_nominal(refined)
    assert float(refined["uniformity/z"].min()) > 1e-3
    assert float(wrong["joint_uniformity/density"]) < 1e-4
    assert (refined.attrs["posterior"], refined.attrs["proposal"]) == ("resampled", "refined")
    assert wrong.attrs["proposal"] == "guide"
    assert (refined["evidence/khat"] < 0.6).all()
    assert refined["evidence/log_likelihood"].shape == (300,)


@pytest.mark.parametrize("num_draws", [1, 2, 9, 63])
def test_uniform_ranks_give_any_share_exactly(num_draws):
    ranks = np.arange(num_draws + 1)
    for start, end in [(0, 0.5), (0.3, 1.0), (0.05, 0.95), (0.2, 0.2)]:
        assert share_between(ranks, num_draws, start, end) == pytest.approx(end - start)


def test_a_guide_without_a_density_at_given_values_has_no_density_ranks():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x / 2, 0.5**0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u))

    tree = pv.sbc(pv.Pair(model, guide), torch.zeros(2), num_simulations=200)
    assert set(tree["joint_sbc"].data_vars) == {"tarp"}
    assert float(tree["joint_uniformity/tarp"]) > 1e-3
