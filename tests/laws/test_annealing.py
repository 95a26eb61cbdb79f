"""E[w] = p(x) for annealed importance sampling, and E[1/w] = 1/p(x) for its reverse.

The models have one latent, and log p(x) is computed by quadrature in float64.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

# Mean of x given z, its standard deviation, and data.
MODELS = {
    "linear": (lambda z: z, 1.0, [-2.0, 0.0, 1.0]),
    "one mode": (torch.tanh, 0.5, [-0.5, 0.0, 1.5]),
    "two modes": (lambda z: z.square() - 1, 0.5, [-0.5, 0.5, 1.5]),
    "three modes": (lambda z: z**3 - z, 0.3, [-0.3, 0.0, 0.3]),
    "stiff": (lambda z: z, 0.1, [-1.0, 0.0, 1.5]),
    "stiff, two modes": (lambda z: z.abs(), 0.1, [0.2, 1.0, 1.5]),
}
COPIES = 700


def pair_of(mean, sd):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(mean(z), sd), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 1.0))

    return pv.Pair(model, guide)


def log_evidence(mean, sd, x):
    grid = torch.linspace(-9, 9, 6_001, dtype=torch.float64)
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(mean(grid), sd).log_prob(
        torch.as_tensor(x, dtype=torch.float64)[:, None]
    )
    return (joint.logsumexp(1) + math.log(grid[1] - grid[0])).numpy()


def check_mean_one(ratios, errors=4.0):
    error = ratios.std(ddof=1) / math.sqrt(len(ratios))
    assert abs(ratios.mean() - 1) < errors * error + 1e-6
    assert error < 0.2  # otherwise nothing is tested


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("num_temperatures", "num_leapfrog"), [(40, 1), (120, 4)])
@pytest.mark.parametrize("name", MODELS)
def test_weights_have_the_evidence_as_their_mean(name, num_leapfrog, num_temperatures):
    mean, sd, values = MODELS[name]
    x = torch.tensor(values, dtype=torch.float64)
    found = pv.ais(
        pair_of(mean, sd),
        x.repeat(COPIES),
        num_chains=4,
        num_temperatures=num_temperatures,
        num_leapfrog=num_leapfrog,
        seed=1,
        progress=False,
    )
    ratios = np.exp(found.lower.reshape(COPIES, len(values)) - log_evidence(mean, sd, x))
    for column in ratios.T:
        check_mean_one(column)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", MODELS)
def test_both_directions_on_simulated_data(name):
    mean, sd, _ = MODELS[name]
    x, bounds = pv.bidirectional(
        pair_of(mean, sd),
        torch.zeros(2, dtype=torch.float64),
        num_data=1000,
        num_chains=4,
        num_temperatures=60,
        num_leapfrog=4,
        seed=2,
    )
    exact = np.concatenate([log_evidence(mean, sd, part) for part in x.split(100)])
    near = x.abs().numpy() < 1  # far from the prior's mode, weights have heavy tails
    check_mean_one(np.exp(bounds.lower - exact)[near])
    check_mean_one(np.exp(exact - bounds.upper)[near])


PROBS = torch.tensor([0.2, 0.7, 0.4])
IGNORES_Z = {
    "no latent": lambda z: PROBS.expand(*z.shape[:-1], 3),
    "a step": lambda z: torch.where(z[..., :1] > 0, PROBS, PROBS),
}


@pytest.mark.parametrize("prior", ["StandardNormal", "Laplace", "StudentT"])
@pytest.mark.parametrize("kind", IGNORES_Z)
def test_a_likelihood_without_a_gradient_has_exact_bounds(prior, kind):
    """As of a decoder that ignores z, after the collapse of the posterior."""
    vae = pv.VAE(
        getattr(pv.priors, prior)(2),
        lambda z: dist.Bernoulli(IGNORES_Z[kind](z)).to_event(1),
        pv.guides.DiagonalNormal(pv.networks.MLP(3, [], 4)),
    )
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    bounds = pv.ais(vae, x, num_temperatures=3, num_chains=2, num_leapfrog=2)
    exact = dist.Bernoulli(PROBS).log_prob(x).sum(1)
    np.testing.assert_allclose(bounds.lower, exact.numpy(), atol=1e-5)
    simulated, both = pv.bidirectional(vae, x, num_data=2, num_temperatures=3, num_leapfrog=2)
    exact = dist.Bernoulli(PROBS).log_prob(simulated).sum(1).numpy()
    np.testing.assert_allclose([both.lower, both.upper], [exact, exact], atol=1e-5)
