"""`patience` counts the epochs after annealing, for every schedule of beta."""

import itertools
import math
import warnings

import pytest
import torch

import pyro_vae as pv

STEPS, EPOCHS = 4, 12  # steps of an epoch; epochs of a run
SCHEDULES = {
    "constant": lambda step: 1.0,
    "linear": pv.objectives.Linear(10),
    "linear to 4": pv.objectives.Linear(20, 0.5, 4.0),
    "down": pv.objectives.Linear(9, 2.0, 1.0),
    "whole run": pv.objectives.Linear(STEPS * EPOCHS),
    "cyclic": pv.objectives.Cyclic(16),
    "cyclic, one and a half": pv.objectives.Cyclic(32),
    "cyclic, plateau at the end": pv.objectives.Cyclic(24, ramp=0.25),
    "steps": lambda step: 1.0 if step >= 13 else 0.1,
    "sigmoid": lambda step: 1 / (1 + math.exp(-(step - 15) / 2)),
    "cosine": lambda step: 0.5 - 0.5 * math.cos(step / 3),
    "zero": lambda step: 0.0,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_last_change_of_beta(name):
    from pyro_vae.training.early_stopping import annealed_epochs

    schedule = SCHEDULES[name]
    objective = pv.objectives.Beta(schedule)
    for first, steps in itertools.product((0, 5), (1, STEPS, 7)):
        betas = [schedule(first + step) for step in range(steps * EPOCHS)]
        found = annealed_epochs([objective, objective.objective], first, steps, EPOCHS)
        constant = [abs(beta - betas[-1]) <= 0.01 * abs(betas[-1]) for beta in betas]
        assert all(constant[found * steps :])
        assert found == 0 or not all(constant[(found - 1) * steps :])


@pytest.mark.thinned(5)
@pytest.mark.parametrize("patience", [1, 2, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_early_stop_while_beta_changes(name, patience):
    """The learning rate is so high that many epochs do not improve."""
    schedule = SCHEDULES[name]
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(1),
        pv.likelihoods.Normal(pv.networks.MLP(1, [], 2)),
        pv.guides.DiagonalNormal(pv.networks.MLP(2, [], 2)),
    )
    betas = [schedule(step) for step in range(STEPS * EPOCHS)]
    changes = [step for step, beta in enumerate(betas) if abs(beta - betas[-1]) > 0.01 * betas[-1]]
    annealed = max(changes, default=-1) // STEPS + 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = torch.optim.Adam(vae.parameters(), lr=0.5)
        fit = pv.fit(
            vae,
            torch.randn(8 * STEPS, 2),
            validation=torch.randn(16, 2),
            objective=pv.objectives.Beta(schedule),
            batch_size=8,
            epochs=EPOCHS,
            patience=patience,
            optimizer=fast,
        )
    said = [str(w.message) for w in caught if "patience" in str(w.message)]
    assert bool(said) == (0 < EPOCHS - annealed < patience or annealed == EPOCHS)
    if fit.stopped == "early stopping":
        assert not said
        last = len(fit.history)
        scores = [entry["validation_elbo"] for entry in fit.history]
        assert last >= annealed + patience
        assert max(scores[annealed:]) > max(scores[last - patience :], default=-math.inf) or (
            last == annealed + patience
        )
    assert fit.best["validation_elbo"] == max(e["validation_elbo"] for e in fit.history)
