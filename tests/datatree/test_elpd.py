"""The marginal elpd against exact answers of the linear-Gaussian VAE."""

import numpy as np
import pytest

import pyro_vae as pv
from tests.support.linear_gaussian import linear_vae
from tests.support.spoilt import log_evidence, mean_field, spoilt, tree_of


def test_elpd_of_the_exact_posterior_is_exact():
    vae, x = linear_vae()
    elpd = pv.elpd_marginal(tree_of(vae, x, 100))
    exact = log_evidence(vae, x)
    np.testing.assert_allclose(elpd.elpd_i, exact, atol=1e-9)
    assert elpd.elpd == pytest.approx(exact.sum(), abs=1e-8)
    assert elpd.se == pytest.approx(exact.std() * len(x) ** 0.5, rel=1e-9)
    assert not elpd.warning


def test_elpd_of_a_mean_field_is_within_a_hundredth_of_a_nat():
    vae, x = mean_field()
    elpd = pv.elpd_marginal(tree_of(vae, x, 10_000))
    assert elpd.elpd / len(x) == pytest.approx(log_evidence(vae, x).mean(), abs=0.01)


def test_elpd_says_what_it_lacks():
    vae, x = linear_vae()
    tree = pv.from_pyro_svi(
        vae.model, vae.guide, model_args=(x,), num_samples=2, groups=("posterior",)
    )
    with pytest.raises(ValueError, match="the tree has no log_weight"):
        pv.elpd_marginal(tree)
    for other in (vae, pv.evaluate(vae, x, num_samples=2), tree["posterior"].to_dataset(), None):
        with pytest.raises(pv.ArgumentError, match="expected a tree of from_pyro_svi, got"):
            pv.elpd_marginal(other)


def test_a_narrow_guide_shows_in_khat_and_a_right_one_does_not():
    vae, x = spoilt(scale=0.4)
    assert (pv.elpd_marginal(tree_of(vae, x)).pareto_k > 0.7).mean() > 0.5
    vae, x = linear_vae()
    assert (pv.elpd_marginal(tree_of(vae, x)).pareto_k < 0).all()
