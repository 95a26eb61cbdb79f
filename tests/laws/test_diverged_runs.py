"""A run that diverged ends with a warning, by the rule in the docstring of `fit`."""

import math
import warnings

import pytest
import torch
from torch import nn

import pyro_vae as pv

RATES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e3)
LIKELIHOODS = {
    "Bernoulli": lambda: pv.likelihoods.Bernoulli(pv.networks.MLP(2, [8], 5)),
    "Normal": lambda: pv.likelihoods.Normal(pv.networks.MLP(2, [8], 5)),
    "Poisson": lambda: pv.likelihoods.Poisson(pv.networks.MLP(2, [8], 5)),
}


def train(kind, rate, validation=False, objective=None, scale=1.0):
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        LIKELIHOODS[kind](),
        pv.guides.DiagonalNormal(pv.networks.MLP(5, [8], 4)),
    )
    nn.init.constant_(next(vae.parameters()), 0.1)
    x = scale * (torch.rand(64, 5) < 0.4).float()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = torch.optim.Adam(vae.parameters(), lr=rate)
        fit = pv.fit(
            vae, x, validation=x[:32] if validation else None, epochs=4, batch_size=16,
            optimizer=optimizer, objective=objective,
        )  # fmt: skip
    return fit, [str(w.message) for w in caught if "training diverged" in str(w.message)]


@pytest.mark.thinned(5)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_the_rule(kind, rate):
    for validation in (False, True):
        try:
            fit, said = train(kind, rate, validation)
        except pv.TrainingError:  # not finite: reported as such
            continue
        values = [entry["train_elbo"] for entry in fit.history]
        peak, last = max(values), fit.best["train_elbo"]
        if last < peak - max(1.0, abs(peak)):
            assert said
        if rate <= 0.1:
            assert not said
        if rate == 1e3 and not validation:
            assert said
            assert "lower learning rate" in said[0]


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1e-2])
@pytest.mark.parametrize("beta", [4.0, 100.0, "linear", "cyclic", "down"])
def test_annealing_is_not_divergence(rate, beta):
    schedules = {
        "linear": pv.objectives.Linear(8, 0.0, 50.0),
        "cyclic": pv.objectives.Cyclic(8, stop=50.0),
        "down": pv.objectives.Linear(8, 50.0, 1.0),
    }
    objective = pv.objectives.Beta(schedules.get(beta, beta))
    fit, said = train("Bernoulli", rate, objective=objective)
    assert math.isfinite(fit.best["train_objective"])
    assert not said
