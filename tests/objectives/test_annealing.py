"""`Beta` and its schedules."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae.arguments import ArgumentError
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


class TwoLatents(torch.nn.Module):
    """Two independent latents of which x is the sum."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            zs = [pyro.sample(name, dist.Normal(torch.zeros_like(x), 1.0)) for name in ("a", "b")]
            pyro.sample("x", dist.Normal(sum(zs), 1.0), obs=x)

    def guide(self, x):
        pyro.module("two", self)
        with pyro.plate("data", len(x)):
            for name, loc in zip(("a", "b"), self.loc, strict=True):
                pyro.sample(name, dist.Normal(loc + x, 0.5))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("betas", [{"a": 3.0}, {"b": 0.25}, {"b": 0.5, "a": 2.0}])
def test_betas_of_single_latents_weigh_their_kl(elbo, betas):
    pair, x = TwoLatents(), torch.linspace(-1, 1, 5, dtype=torch.float64)
    locs = {"a": pair.loc[0] + x, "b": pair.loc[1] + x}
    scales = {name: torch.full_like(x, 0.5).log() for name in locs}
    found, expected = [], 0.0
    for name, loc in locs.items():
        kl = 0.5 * (loc**2 + 0.25 - 1 - 2 * scales[name])
        noise_free = kl if elbo is TraceMeanField_ELBO else None
        if noise_free is None:  # the same noise gives log q - log p of each latent
            torch.manual_seed(0)
            trace = pyro.poutine.trace(pair.guide).get_trace(x)
            z = trace.nodes[name]["value"]
            kl = dist.Normal(loc, 0.5).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        expected += (betas.get(name, 1.0) - 1) * kl.sum().item()
    for beta in (1.0, betas):
        torch.manual_seed(0)
        found.append(Beta(beta, elbo()).loss(pair.model, pair.guide, x))
    assert found[1] - found[0] == pytest.approx(expected, abs=1e-9)


def test_a_schedule_for_each_latent():
    pair, x = TwoLatents(), torch.zeros(3, dtype=torch.float64)
    objective, seen = Beta({"b": Linear(4), "a": 2.0}), []
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    for _ in range(3):
        svi.step(x)
        seen.append((objective.beta.tolist(), objective.is_bound))
    assert seen == [([0, 2], False), ([0.25, 2], False), ([0.5, 2], False)]
    assert Beta({"a": 1.0, "b": 2.0}).is_bound


@pytest.mark.parametrize(
    ("betas", "sentence"),
    [
        ({}, "empty"),
        ({"c": 1.0}, "'c', which is no latent"),
        ({"a": 1.0, "x": 0.5}, "'x', which is no latent"),
        ({"a": -1.0}, "at least 0.* got -1.0"),
        ({"a": 1.0, "b": "much"}, "got 'much'"),
        ({1: 1.0}, "got 1"),
    ],
)
def test_betas_need_names_of_latents(betas, sentence):
    pair, x = TwoLatents(), torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=sentence):
        Beta(betas).loss(pair.model, pair.guide, x)


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
