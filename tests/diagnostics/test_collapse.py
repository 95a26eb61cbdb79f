"""Collapsed latents are distinguished from used ones."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from tests.support.linear_gaussian import linear_vae
from tests.support.spoilt import Deaf


def test_collapse_is_told_from_use():
    vae, x = linear_vae()
    used = pv.collapse(vae, x)
    assert used.active.all()
    assert not used.collapsed
    q = vae.guide.posterior(x)
    exact = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).mean(0).detach().numpy()
    # The moments are of 100 draws for each of 50 data, the KL's sd below 1 nat.
    np.testing.assert_allclose(used.kl, exact, atol=5 / (50 * 100) ** 0.5)
    deaf = pv.VAE(vae.model.prior, Deaf(), vae.guide.posterior)
    assert "the decoder ignores z" in pv.collapse(deaf, x).verdict
    prior = vae.replace(guide=lambda x: dist.Normal(torch.zeros(len(x), 3).double(), 1).to_event(1))
    idle = pv.collapse(prior, x)
    assert idle.collapsed
    assert "no latent depends on x" in idle.verdict
    assert np.abs(idle.kl).max() < 0.01


@pytest.mark.parametrize("unit", [1e-3, 0.05, 1.0, 100.0])
@pytest.mark.parametrize("used", [True, False])
def test_the_use_of_a_latent_does_not_depend_on_its_unit(used, unit):
    """z ~ N(0, unit^2), x|z ~ N(z, unit^2); a guide that ignores x is the prior."""
    x = unit * 2**0.5 * torch.randn(100, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0 * x, unit))
            pyro.sample("x", dist.Normal(z, unit), obs=x)

    def guide(x):
        loc, scale = (x / 2, 0.5**0.5 * unit) if used else (0 * x, unit)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    found = pv.collapse(pv.Pair(model, guide), x)
    assert bool(found.active[0]) == used
    assert found.collapsed == (not used)
    np.testing.assert_allclose(found.mean_variance, 0.5 if used else 0.0, atol=0.15)


def test_shares_on_a_simplex_can_be_active():
    """Dirichlet shares of topics: the variance of a share is below 1/4, and of a rare one tiny."""
    alpha, total = torch.tensor([0.8, 1.5, 30.0]), 100.0
    x = torch.tensor([[20.0, 20, 60], [2, 2, 96], [1, 9, 90], [9, 1, 90]]).repeat(10, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Poisson(total * z).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(alpha + x))

    found = pv.collapse(pv.Pair(model, guide), x)
    assert found.active.all(), found.verdict


PROBS = torch.tensor([0.5, 0.3, 0.2])


def bernoulli_kl(q, p):
    # One-hot codes of a datum may be certain, with a divergence of 0 log 0 = 0 in the other value.
    return torch.xlogy(q, q / p) + torch.xlogy(1 - q, (1 - q) / (1 - p))


def of_logits(x):
    return 4 * torch.stack([x, 0 * x, -9 * x], -1)


# kind: (prior, guide of x, KL of each entry from both)
DISCRETE = {
    "one-hot": (
        dist.OneHotCategorical(PROBS),
        lambda x: dist.OneHotCategorical(logits=of_logits(x)),
        lambda q: bernoulli_kl(q.probs, PROBS),
    ),
    "labels": (
        dist.Categorical(PROBS),
        lambda x: dist.Categorical(logits=of_logits(x)),
        lambda q: torch.xlogy(q.probs, q.probs / PROBS).sum(-1),
    ),
    "certain": (
        dist.Bernoulli(0.3),
        lambda x: dist.Bernoulli((x > 0.5).float()),
        lambda q: bernoulli_kl(q.probs, torch.tensor(0.3)),
    ),
    "vector": (
        dist.Bernoulli(PROBS).to_event(1),
        lambda x: dist.Bernoulli(torch.stack([x, 1 - x, x], -1)).to_event(1),
        lambda q: bernoulli_kl(q.base_dist.probs, PROBS),
    ),
    "counts": (
        dist.Poisson(0.5),
        lambda x: dist.Poisson(0.2 + x),
        lambda q: torch.distributions.kl_divergence(q, dist.Poisson(torch.tensor(0.5))),
    ),
}


@pytest.mark.parametrize("kind", DISCRETE)
def test_the_kl_of_discrete_latents(kind):
    prior, posterior, kl = DISCRETE[kind]
    x = torch.rand(60, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior).float()
            pyro.sample("x", dist.Normal(z.reshape(len(x), -1).sum(1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    with warnings.catch_warnings():
        # A guide of probability zero is refused by the scores; its KL is still defined.
        warnings.simplefilter("error")
        found = pv.collapse(pv.Pair(model, guide), x, num_samples=500)
    exact = kl(posterior(x)).mean(0)
    np.testing.assert_allclose(found.kl, np.atleast_1d(exact.numpy()), atol=0.03)
