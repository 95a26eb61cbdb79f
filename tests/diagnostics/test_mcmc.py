"""Chains draw from the exact posterior of the linear-Gaussian VAE, and show what a guide lacks."""

import functools

import arviz_plots
import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer import HMC
from torch import nn

import pyro_vae as pv
from pyro_vae.diagnostics.mcmc import KERNELS
from tests.support.linear_gaussian import linear_vae
from tests.support.pairs import EXACT_PAIRS
from tests.support.spoilt import spoilt


def standardized(z, vae, x):
    """Each statistic's distance to its exact value, in Monte Carlo standard errors (ESS)."""
    gain, covariance = (term.detach().numpy() for term in vae.model.likelihood.posterior_terms())
    mean = (x.numpy() - vae.model.likelihood.mean.detach().numpy()) @ gain.T
    centred = z - xr.DataArray(mean, dims=("data", "latent_dim"))
    other = centred.rename(latent_dim="other_dim")
    errors = {
        "mean": centred,
        "covariance": centred * other - xr.DataArray(covariance, dims=("latent_dim", "other_dim")),
    }
    return {
        name: error.mean(("chain", "draw")) / arviz_stats.mcse(error)
        for name, error in errors.items()
    }


@pytest.mark.parametrize("kernel", ["nuts", "hmc"])
def test_mean_and_covariance_are_those_of_the_exact_posterior(kernel):
    vae, x = linear_vae()
    tree = pv.mcmc_draws(
        vae, x[:2], num_samples=250, warmup_steps=200, num_chains=1, kernel=kernel, seed=1
    )
    for group in (tree, tree["encoder"]):
        z = group["posterior/z"]
        assert arviz_stats.ess(z).min() > 30
        for distance in standardized(z, vae, x[:2]).values():
            assert np.abs(distance).max() < 5
    assert tree["sample_stats/acceptance_rate"].min() > 0.7
    assert not tree["sample_stats/diverging"].any()


def on_a_line():
    """z ~ N(0, 1), x|z ~ N(z, 4), hence z|x ~ N(x/5, 4/5): the prior weighs more than x."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 2.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 5, 0.8**0.5))

    return pv.Pair(model, guide)


def test_prior_and_likelihood_weigh_what_they_should():
    x = torch.tensor([-10.0, 10.0], dtype=torch.float64)
    tree = pv.mcmc_draws(on_a_line(), x, num_samples=400, warmup_steps=100, num_chains=1)
    centred = tree["posterior/z"] - xr.DataArray(x.numpy() / 5, dims="data")
    for error in (centred, centred**2 - 0.8):
        mcse = arviz_stats.mcse(error)
        assert (np.abs(error.mean(("chain", "draw"))) < 5 * mcse).all()
        # Without the prior the mean is 8 off, with half of the likelihood 0.9.
        assert (mcse < 0.15).all()


def test_a_guide_too_narrow_is_as_much_narrower_than_the_chains():
    vae, x = spoilt(scale=0.4)
    tree = pv.mcmc_draws(vae, x[:1], num_samples=400, warmup_steps=100, num_chains=1, kernel="hmc")
    sds = [group["posterior/z"].std(("chain", "draw")) for group in (tree["encoder"], tree)]
    errors = [arviz_stats.mcse(g["posterior/z"], method="sd") for g in (tree["encoder"], tree)]
    ratio = sds[0] / sds[1]
    error = ratio * np.hypot(errors[0] / sds[0], errors[1] / sds[1])
    assert (np.abs(ratio - 0.4) < 5 * error).all()
    assert (error < 0.04).all()  # so that a guide of the right width would not pass


def few(pair, x, **settings):
    return pv.mcmc_draws(pair, x, **{"num_samples": 6, "warmup_steps": 4, **settings})


def test_the_tree_has_the_names_of_from_pyro_svi():
    vae, x = linear_vae()
    tree = few(vae, pv.data.Dataset(x[:3]), num_chains=2, seed=3)
    svi = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x[:3],), num_samples=12, seed=3)
    for name in ("posterior/z", "sample_stats/log_weight"):
        drawn, expected = tree[f"encoder/{name}"], svi[name]
        assert drawn.dims == expected.dims
        np.testing.assert_array_equal(drawn.to_numpy().reshape(expected.shape), expected)
    z, like = tree["posterior/z"], svi["posterior/z"]
    assert z.dims == like.dims
    assert z.shape == (2, 6, 3, 3)
    assert tree["encoder/posterior/z"].coords.equals(z.coords)
    for dim in ("data", "latent_dim"):
        xr.testing.assert_equal(z.coords[dim], like.coords[dim])
    assert tree["sample_stats/diverging"].dims == ("chain", "draw", "data")
    assert tree["sample_stats/step_size"].dims == ("chain", "data")
    # Each chain adapts to its datum alone.
    assert len(np.unique(tree["sample_stats/step_size"])) == 6
    plot = arviz_plots.plot_forest({"MCMC": tree, "encoder": tree["encoder"]})
    assert list(plot.viz.children)


def with_steps_of(size):
    """Pyro's HMC with one step of this size, which stays."""
    return functools.partial(
        HMC, step_size=size, num_steps=1, adapt_step_size=False, adapt_mass_matrix=False
    )


def test_each_draw_stands_in_its_place(monkeypatch):
    """Chains that do not move stay where the guide puts each latent."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
            with pyro.plate("time", x.shape[1], dim=-1):
                rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
                pyro.sample("x", dist.Exponential(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(-x[:, None], 1e-9).to_event(1))
            with pyro.plate("time", x.shape[1], dim=-1):
                pyro.sample("rate", dist.LogNormal(x.log(), 1e-9))

    monkeypatch.setitem(KERNELS, "nuts", with_steps_of(1e-9))
    x = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(2, 3)
    tree = few(pv.Pair(model, guide), x, num_chains=2)
    for name, dim, expected in (("z", "latent_dim", -x), ("rate", "time", x)):
        draws = tree[f"posterior/{name}"]
        np.testing.assert_allclose(draws, expected.expand(2, 6, 2, 3), atol=1e-6)
        assert draws.dims == ("chain", "draw", "data", dim)


def test_a_chain_is_the_same_with_others_beside_it():
    vae, x = linear_vae()
    alone, beside = few(vae, x[:1], num_chains=1), few(vae, x[:1], num_chains=2)
    for name in ("posterior/z", "sample_stats/diverging", "sample_stats/step_size"):
        first, second = beside[name][:1], beside[name][1:]
        np.testing.assert_array_equal(first, alone[name])
        assert name == "sample_stats/diverging" or not np.isin(second, first).any()
    assert not np.isin(few(vae, x[:1], kernel="hmc")["posterior/z"], beside["posterior/z"]).any()


def test_divergences_are_reported_at_their_draws(monkeypatch):
    monkeypatch.setitem(KERNELS, "nuts", with_steps_of(1e3))
    stats = few(on_a_line(), torch.ones(2, dtype=torch.float64))["sample_stats"]
    assert stats["diverging"].all()
    assert (stats["acceptance_rate"] == 0).all()
    assert (stats["step_size"] == 1e3).all()


def test_a_chain_leaves_everything_as_it_was():
    vae, x = linear_vae()
    modules = [vae.model, *vae.guide.modules()]
    vae.train()
    seen = []
    handle = vae.guide.register_forward_hook(lambda module, *_: seen.append(module.training))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    pyro.get_param_store().clear()
    one = few(vae, x[:1], num_chains=1)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    assert not list(pyro.get_param_store().keys())
    assert seen
    assert not any(seen)
    assert all(module.training for module in modules)
    handle.remove()
    assert all(parameter.grad is None for parameter in vae.parameters())
    xr.testing.assert_identical(one, few(vae, x[:1], num_chains=1))
    assert not one["posterior/z"].equals(few(vae, x[:1], num_chains=1, seed=1)["posterior/z"])


def binary(x):
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(nn.Linear(2, 5)),
        pv.guides.DiagonalNormal(nn.Linear(5, 4)),
    ), x


def of(kind):
    pair = EXACT_PAIRS[kind]()
    return pair, pair.args[0]


@pytest.mark.parametrize(
    ("given", "settings", "sentence"),
    [
        (lambda: of("discrete"), {}, "latent 'k' is discrete; Hamiltonian dynamics need"),
        (lambda: of("hierarchy"), {}, "a latent is outside the plate over the data"),
        (lambda: binary(torch.full((2, 5), 0.3)), {}, "outside the likelihood's support Boolean"),
        (linear_vae, {"num_samples": 0}, "num_samples must be a whole number from 1 to .*, got 0"),
        (linear_vae, {"kernel": "gibbs"}, "kernel must be 'nuts' or 'hmc', got 'gibbs'"),
    ],
)
def test_bad_input_gets_a_sentence(given, settings, sentence):
    pair, x = given()
    with pytest.raises(ValueError, match=sentence):
        few(pair, x, **settings)


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_a_chain_starts_where_the_density_is_positive(shift):
    x = torch.tensor([-1.0, 0.0, 1.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("near", torch.where((z - x).abs() < 0.5, 0.0, -torch.inf))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + shift, 2.0))

    draw = lambda: pv.mcmc_draws(  # noqa: E731
        pv.Pair(model, guide), x, num_samples=20, warmup_steps=10, num_chains=1
    )
    if shift:
        with pytest.raises(pv.PairError, match="not finite at 100 samples of the guide"):
            draw()
        return
    z = draw()["posterior/z"].to_numpy()
    assert (np.abs(z - x.numpy()) < 0.5).all()
