"""`Beta` and its schedules."""

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.objectives import (
    Beta,
    Cyclic,
    FreeBits,
    ImportanceWeighted,
    Linear,
    StickingTheLanding,
)
from tests.support.objectives import evaluated, gradients, imperfect_vae


@pytest.mark.parametrize(
    "inner",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        StickingTheLanding(3),
        ImportanceWeighted(3, doubly_reparameterized=True),
        FreeBits(0.2),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_beta_of_one_changes_nothing(inner):
    vae, x = imperfect_vae()
    inner.loss(vae.model, vae.guide, x)  # the first run also samples to find the plate nesting
    parameters = list(vae.parameters())
    found = []
    for objective in (inner, Beta(1.0, inner)):
        torch.manual_seed(2)
        found.append((evaluated(objective, vae, x), gradients(objective, vae, x, 1, parameters)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_beta_weighs_the_kl_alone():
    vae, x = imperfect_vae()
    kl = torch.distributions.kl_divergence(vae.encode(x), vae.model.prior().expand([len(x)])).sum()
    at_zero, at_three = (
        evaluated(Beta(beta, TraceMeanField_ELBO()), vae, x) for beta in (0.0, 3.0)
    )
    assert at_three - at_zero == pytest.approx(3 * kl.item(), abs=1e-9)


def test_schedules_by_hand():
    assert [Linear(4, start=0.2)(step) for step in (0, 1, 4, 9)] == pytest.approx([0.2, 0.4, 1, 1])
    assert [Cyclic(10)(step) for step in (0, 1, 5, 9, 10, 11)] == pytest.approx(
        [0, 0.2, 1, 1, 0, 0.2]
    )
    assert Cyclic(10, ramp=0.25, stop=4.0)(1) == pytest.approx(1.6)


def test_beta_follows_its_schedule_in_place_and_scoring_does_not_advance_it():
    vae, x = imperfect_vae()
    objective = Beta(Linear(2))
    tensor, seen = objective.beta, []
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    for _ in range(4):
        svi.step(x)
        svi.evaluate_loss(x)
        seen.append(objective.beta.item())
    assert seen == [0, 0.5, 1, 1]
    assert objective.beta is tensor
