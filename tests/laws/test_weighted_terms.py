"""Weights of terms train, and no score or sample depends on them. Scales of plates are no weights.

z ~ N(0, 1), x ~ N(z, 1): log p(x), the posterior N(x/2, 1/2) and any ELBO are known exactly.
"""

import contextlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

import pyro_vae as pv

X = torch.tensor([-1.0, 0.3, 1.2, 2.5], dtype=torch.float64)
N = len(X)
EXACT = dist.Normal(torch.zeros(()).double(), 2**0.5).log_prob(X)


def no_weight():
    return contextlib.nullcontext()


def weight(value):
    return lambda: poutine.scale(scale=value)


# Weights of z in the model, z in the guide, and x.
WEIGHTS = {
    "KL": (weight(0.1), weight(0.1), no_weight),
    "KL by a tensor": (weight(torch.tensor(4.0)), weight(torch.tensor(4.0)), no_weight),
    "prior alone": (weight(0.1), no_weight, no_weight),
    "guide alone": (no_weight, weight(3.0), no_weight),
    "likelihood": (no_weight, no_weight, weight(10.0)),
    "all": (weight(0.5), weight(0.5), weight(0.5)),
}
PLATES = {
    "plain": lambda x: pyro.plate("data", len(x)),
    "outside": lambda x: pyro.plate("data", len(x), dim=-1),
    "subsampled": lambda x: pyro.plate("data", 4 * N, subsample_size=len(x)),
}


def pair_of(weights, plate):
    of_prior, of_guide, of_data = weights

    def model(x):
        with plate(x):
            with of_prior():
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.deterministic("double", 2 * z)
            with of_data():
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with plate(x), of_guide():
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    return pv.Pair(model, guide)


def history_of(pair, objective):
    still = lambda parameters: torch.optim.SGD(parameters, lr=0.0)  # noqa: E731
    x = X.float() if isinstance(objective, TraceEnum_ELBO) else X  # Pyro contracts in float32
    return pv.fit(pair, x, epochs=2, objective=objective, optimizer=still).history


OBJECTIVES = [
    Trace_ELBO(),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
    TraceEnum_ELBO(),
    pv.objectives.StickingTheLanding(),
    pv.objectives.ImportanceWeighted(1),
]


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_the_curve_of_weighted_terms_is_not_called_an_elbo(objective, weights):
    for entry in history_of(pair_of(weights, PLATES["plain"]), objective):
        assert "train_elbo" not in entry
        assert "train_objective" in entry


@pytest.mark.parametrize("plate", PLATES.values(), ids=PLATES)
@pytest.mark.parametrize("objective", OBJECTIVES[:3], ids=lambda o: type(o).__name__)
def test_the_curve_of_plates_is_the_elbo(objective, plate):
    pair = pair_of((no_weight,) * 3, plate)
    assert pv.check(pair, X).weighted == ()
    for entry in history_of(pair, objective):
        if objective is OBJECTIVES[0]:  # the mean-field KL is not of the samples of log p(x|z)
            assert entry["train_elbo"] == pytest.approx(EXACT.mean().item(), abs=1e-6)
        assert "train_objective" not in entry


@pytest.mark.thinned(3)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_scores_do_not_depend_on_weights(weights):
    pair = pair_of(weights, PLATES["plain"])
    assert pv.check(pair, X).weighted
    np.testing.assert_allclose(pv.evaluate(pair, X, num_samples=2).elbo, EXACT, atol=1e-6)
    np.testing.assert_allclose(pv.ais(pair, X, num_temperatures=200).lower, EXACT, atol=0.3)
    refined = pv.refine(pair, X, num_samples=200)
    np.testing.assert_allclose(refined.log_likelihood, EXACT, atol=0.05)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("kernel", ["nuts", "hmc"])
@pytest.mark.parametrize("weights", [WEIGHTS["KL"], WEIGHTS["likelihood"], WEIGHTS["all"]])
def test_chains_sample_the_posterior_of_the_model_without_weights(weights, kernel):
    pair, count = pair_of(weights, PLATES["plain"]), 1000
    tree = pv.mcmc_draws(
        pair, X[:2], num_samples=count, warmup_steps=200, num_chains=1, kernel=kernel
    )
    z = tree["posterior/z"].to_numpy()[0]
    # The effective sample size of these chains is above a fifth of their length.
    error = 5 * 0.5**0.5 / (count / 5) ** 0.5
    np.testing.assert_allclose(z.mean(0), X[:2] / 2, atol=error)
    np.testing.assert_allclose(z.std(0), 0.5**0.5, atol=error / 2**0.5)


def test_chains_return_computed_values():
    def model(x):
        shift = pyro.deterministic("shift", torch.ones(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            pyro.deterministic("square", z.square(), event_dim=1)
            pyro.deterministic("total", z.sum(-1) + shift, event_dim=0)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = x[:, None].expand(-1, 2) / 3
            pyro.sample("z", dist.Normal(loc, 0.6).to_event(1))

    tree = pv.mcmc_draws(pv.Pair(model, guide), X[:3], num_samples=5, warmup_steps=5)
    for group in (tree["posterior"], tree["encoder/posterior"]):
        z = group["z"].to_numpy()
        assert group["square"].shape == z.shape
        np.testing.assert_allclose(group["square"], z**2)
        np.testing.assert_allclose(group["total"], z.sum(-1) + 1)
        assert (group["shift"] == 1).all()
