"""All objectives: the ELBO as a special case, training, refusals."""

import functools
import math

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv
from pyro_vae.objectives import (
    Beta,
    Cyclic,
    FreeBits,
    ImportanceWeighted,
    StickingTheLanding,
)
from tests.support.linear_gaussian import linear_vae
from tests.support.objectives import KWARGS, evaluated, imperfect_vae


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeighted(1),
        ImportanceWeighted(1, doubly_reparameterized=True),
        StickingTheLanding(),
        FreeBits(0.0),
        FreeBits(0.0, groups="dimensions"),
        Beta(1.0),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_each_objective_has_the_elbo_as_its_special_case(objective):
    vae, x = imperfect_vae()
    expected = evaluated(Trace_ELBO(), vae, x)
    assert evaluated(objective, vae, x) == pytest.approx(expected, abs=1e-9)
    torch.manual_seed(0)
    assert objective.differentiable_loss(vae.model, vae.guide, x).item() == pytest.approx(
        expected, abs=1e-9
    )


@pytest.mark.parametrize("vectorize_particles", [True, False])
def test_particles_at_once_or_one_by_one(vectorize_particles):
    vae, x = linear_vae()  # the guide is exact: all samples have the same weight
    for kind in (ImportanceWeighted, StickingTheLanding, functools.partial(FreeBits, 0.0)):
        objective = kind(num_particles=5, vectorize_particles=vectorize_particles)
        exact = vae.model.likelihood.marginal().log_prob(x).sum().item()
        assert evaluated(objective, vae, x) == pytest.approx(-exact, abs=1e-9)


def test_trace_mean_field_elbo_is_trace_elbo_in_the_mean():
    vae, x = imperfect_vae()
    values = {
        kind: torch.tensor([evaluated(kind(), vae, x, seed) for seed in range(400)], **KWARGS)
        for kind in (Trace_ELBO, TraceMeanField_ELBO)
    }
    a, b = values.values()
    difference = a - b
    assert difference.mean().abs() < 5 * difference.std() / math.sqrt(400)
    assert b.std() < a.std()


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeighted(5),
        ImportanceWeighted(5, doubly_reparameterized=True),
        StickingTheLanding(),
        Beta(Cyclic(20)),
        FreeBits(0.1, groups="dimensions"),
    ],
    ids=["iwae", "dreg", "stl", "beta", "free bits"],
)
def test_each_objective_trains(objective):
    """On the linear-Gaussian pair, stock SVI raises the ELBO by more than a nat."""
    torch.manual_seed(6)
    vae, x = imperfect_vae(50)
    before = pv.evaluate(vae, x, num_samples=200).mean("elbo")
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 2e-2}), objective)
    for _ in range(150):
        svi.step(x)
    assert pv.evaluate(vae, x, num_samples=200).mean("elbo") > before + 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: ImportanceWeighted(0),
            "num_particles must be a whole number of at least 1, got 0",
        ),
        (lambda: StickingTheLanding(1.5), "num_particles must be a whole number"),
        (lambda: Beta(-1.0), "beta must be a finite number of at least 0 .*got -1.0"),
        (lambda: FreeBits(-0.1), "free_nats must be a finite number of at least 0, got -0.1"),
        (lambda: FreeBits(0.1, groups="pixels"), "groups must be 'sites' or 'dimensions'"),
    ],
)
def test_bad_settings_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
