"""Every guide that Pyro generates has the exact posterior and evidence, or is refused."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide

import pyro_vae as pv

N = 12
X = torch.randn(N, generator=torch.Generator().manual_seed(0)) + 1
EVIDENCE = dist.MultivariateNormal(torch.zeros(N), torch.eye(N) + 1).log_prob(X).item()
MEAN, SD = X.sum().item() / (N + 1), (N + 1) ** -0.5
WIDE = 0.7  # standard deviation of the untrained guides


def model(x):
    """Return one global mean: q(w) = N(sum(x) / (N + 1), 1 / (N + 1))."""
    w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def listed(model, part):
    guide = autoguide.AutoGuideList(model)
    guide.append(part(poutine.block(model, hide=["x"])))
    return guide


def scaled(kind):
    return functools.partial(kind, init_scale=WIDE)


class Twice(autoguide.AutoNormalMessenger):
    """A messenger with a posterior of its own."""

    def get_posterior(self, name, prior):
        loc = pyro.param("twice.loc", torch.zeros(()))
        log_scale = pyro.param("twice.log_scale", torch.tensor(math.log(WIDE)))
        return dist.Normal(loc, log_scale.exp())


GUIDES = {
    "AutoNormal": scaled(autoguide.AutoNormal),
    "AutoDiagonalNormal": scaled(autoguide.AutoDiagonalNormal),
    "AutoMultivariateNormal": scaled(autoguide.AutoMultivariateNormal),
    "AutoLowRankMultivariateNormal": scaled(autoguide.AutoLowRankMultivariateNormal),
    "AutoStructured": functools.partial(autoguide.AutoStructured, init_scale=WIDE),
    "AutoNormalMessenger": scaled(autoguide.AutoNormalMessenger),
    "AutoHierarchicalNormalMessenger": scaled(autoguide.AutoHierarchicalNormalMessenger),
    "AutoRegressiveMessenger": scaled(autoguide.AutoRegressiveMessenger),
    "a messenger of one's own": Twice,
    "a messenger inside a handler": lambda m: poutine.infer_config(
        autoguide.AutoNormalMessenger(m, init_scale=WIDE), config_fn=lambda _: {}
    ),
    "AutoGuideList of AutoNormal": lambda m: listed(m, scaled(autoguide.AutoNormal)),
}


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        pyro.set_rng_seed(0)
        yield


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind", GUIDES)
def test_the_weights_of_an_untrained_guide_estimate_the_evidence(kind):
    guide = GUIDES[kind](model)
    tree = pv.from_pyro_svi(model, guide, model_args=(X,), num_samples=1000, seed=0)
    weights = np.exp(tree["sample_stats/log_weight"].to_numpy()[0].astype(float) - EVIDENCE)
    assert abs(weights.mean() - 1) < 5 * weights.std() / len(weights) ** 0.5


@pytest.mark.thinned(3, start=1)
@pytest.mark.parametrize("kind", GUIDES)
def test_fit_finds_the_posterior(kind):
    guide = GUIDES[kind](model)
    pv.fit(pv.Pair(model, guide), X, epochs=60, batch_size=5, learning_rate=0.05)
    tree = pv.from_pyro_svi(
        model, guide, model_args=(X,), num_samples=300, groups=["posterior"], seed=0
    )
    w = tree["posterior/w"].to_numpy().astype(float)
    assert w.mean() == pytest.approx(MEAN, abs=0.2)
    assert w.std() == pytest.approx(SD, rel=0.5)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("objective", [None, pv.objectives.StickingTheLanding(2)])
@pytest.mark.parametrize("kind", GUIDES)
def test_svi_and_fit_have_the_elbo_of_the_weights(kind, objective):
    guide = GUIDES[kind](model)
    tree = pv.from_pyro_svi(model, guide, model_args=(X,), num_samples=500, seed=0)
    weights = tree["sample_stats/log_weight"].to_numpy()[0].astype(float)
    frozen = functools.partial(torch.optim.SGD, lr=0.0)
    svi = pv.SVI(model, guide, frozen, objective or pyro.infer.Trace_ELBO(2))
    guide(X)  # the first call creates its parameters
    losses = np.array([svi.evaluate_loss(X) for _ in range(60)])
    fit = pv.fit(pv.Pair(model, guide), X, epochs=60, batch_size=N, optimizer=frozen,
                 objective=objective)  # fmt: skip
    trained = N * np.array([entry[next(k for k in entry if "train" in k)] for entry in fit.history])
    error = weights.std() / 500**0.5 + weights.std() / 60**0.5
    assert abs(weights.mean() + losses.mean()) < 5 * error
    assert abs(weights.mean() - trained.mean()) < 5 * error
    assert trained.mean() < EVIDENCE


@pytest.mark.parametrize("kind", GUIDES)
def test_scores_per_datum_are_refused(kind):
    with pytest.raises(pv.PairError, match="outside the plate over the data"):
        pv.evaluate(pv.Pair(model, GUIDES[kind](model)), X, num_samples=2)


def test_a_messenger_in_a_list_is_refused():
    guide = autoguide.AutoGuideList(model)
    guide.append(autoguide.AutoNormalMessenger(model))
    with pytest.raises(pv.PairError, match="the guide observes 'x'"):
        pv.check(pv.Pair(model, guide), X)


# -- parameters and latents of the data's size -----------------------------------------------------


def local_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def own_guide(model):
    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return guide


LOCAL = [
    autoguide.AutoNormal,
    autoguide.AutoDiagonalNormal,
    autoguide.AutoMultivariateNormal,
    autoguide.AutoDelta,
    autoguide.AutoNormalMessenger,
    autoguide.AutoRegressiveMessenger,
    own_guide,
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("called_on", [0, 1])
@pytest.mark.parametrize("num_data", [5, 8, 9, 30])
@pytest.mark.parametrize("kind", LOCAL)
def test_parameters_of_the_data_s_size_are_refused(kind, num_data, called_on):
    x, guide = torch.randn(num_data), kind(local_model)
    if called_on:
        guide(x)
    pair = pv.Pair(local_model, guide)
    with pytest.raises(pv.PairError, match=r"rows of|all .* data, but not on a few"):
        pv.fit(pair, x, epochs=1, batch_size=num_data)
    with pytest.raises(pv.PairError, match=r"rows of|all .* data, but not on a few"):
        pv.evaluate(pair, x, num_samples=2)
    guide(x)  # still has the shapes of all data
    tree = pv.from_pyro_svi(
        local_model, guide, model_args=(x,), num_samples=3, groups=["posterior"]
    )
    assert tree["posterior/z"].shape == (1, 3, num_data)


def test_an_amortized_messenger_is_fitted():
    guide = autoguide.AutoNormalMessenger(local_model, amortized_plates=("data",))
    pv.fit(pv.Pair(local_model, guide), X, epochs=2, batch_size=5)
    assert pv.evaluate(pv.Pair(local_model, guide), X, num_samples=2).num_data == N


@pytest.mark.parametrize("guide", [autoguide.AutoNormal, autoguide.AutoNormalMessenger])
def test_groups_counted_in_a_batch_are_refused(guide):
    def grouped(x, group):
        with pyro.plate("groups", int(group.max()) + 1):
            w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w[group], 1.0), obs=x)

    group = torch.arange(30) // 6
    with pytest.raises(pv.PairError, match=r"(w|locs|scales)' has shape .* depends on the rows"):
        pv.fit(pv.Pair(grouped, guide(grouped)), (torch.randn(30), group), epochs=1)
