"""Masked latents: log p(x) is that of the other elements for any mask, or the pair is refused.

x_t ~ N(z_t, 1) for every element, with z_t ~ N(0, 1), so that a datum has the sum of log N(x_t; 0,
2) over the elements that are not masked. A cell is a mask, a way to write it, and a function.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vae as pv
from tests.laws.test_refined_pairs import X, pair_of

N, T = 6, 3
ROWS = 1.5 * torch.randn(N, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASKS = {
    "lengths": torch.arange(T) < torch.tensor([3, 2, 1, 3, 2, 1])[:, None],
    "gaps": torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0], [1, 0, 0]]) == 1,
    "whole data": (torch.arange(N) % 2 == 0)[:, None].expand(N, T),
    "all but one": torch.eye(N, T) == 1,
    "everything": torch.zeros(N, T) == 1,
    "nothing": torch.ones(N, T) == 1,
}


def plates(x):
    return pyro.plate("data", N if x is None else len(x), dim=-2), pyro.plate("t", T, dim=-1)


def poutine_mask(program):
    def run(x, mask):
        data, steps = plates(x)
        with data, steps, poutine.mask(mask=mask):
            program(x, lambda name, d, **obs: pyro.sample(name, d, **obs), mask)

    return run


def distribution_mask(program):
    def run(x, mask):
        data, steps = plates(x)
        with data, steps:
            program(x, lambda name, d, **obs: pyro.sample(name, d.mask(mask), **obs), mask)

    return run


def event(program):
    """Mask the entries of events."""

    def run(x, mask):
        with pyro.plate("data", len(x)):
            program(
                x, lambda name, d, **obs: pyro.sample(name, d.mask(mask).to_event(1), **obs), mask
            )

    return run


def sequential(program):
    def run(x, mask):
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(T)):
                with poutine.mask(mask=mask[:, t]):
                    program(
                        x[:, t],
                        lambda name, d, t=t, **obs: pyro.sample(f"{name}_{t}", d, **obs),
                        mask[:, t],
                    )

    return run


WAYS = [poutine_mask, distribution_mask, event, sequential]
GUIDES = {
    "Normal": lambda x, sample, mask: sample("z", dist.Normal(x / 2, 0.8)),
    "wrong": lambda x, sample, mask: sample("z", dist.Normal(x / 2 + 1, 0.3)),
    "Delta": lambda x, sample, mask: sample("z", dist.Delta(x / 2)),
}


def model(x, sample, mask):
    z = sample("z", dist.Normal(0 * x, 1.0))
    sample("x", dist.Normal(z, 1.0), obs=x)


def exact(mask):
    terms = dist.Normal(torch.zeros_like(ROWS), 2**0.5).log_prob(ROWS)
    return torch.where(mask, terms, 0.0).sum(1)


def resampled(pair, data):
    tree = pv.from_pyro_svi(
        pair.model, pair.guide, model_args=data, num_samples=100, posterior="resampled", seed=0
    )
    return pv.elpd_marginal(tree).elpd_i


FUNCTIONS = {
    "refine": lambda pair, data: pv.refine(pair, data, num_samples=3000).log_likelihood,
    "evaluate": lambda pair, data: (
        pv.evaluate(pair, data, num_samples=3000, proposal="refined").log_likelihood
    ),
    "tree": resampled,
}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mask", MASKS)
def test_refined_evidence_is_that_of_the_other_elements(mask, way, guide):
    pair, data = pv.Pair(way(model), way(GUIDES[guide])), (ROWS, MASKS[mask])
    functions = FUNCTIONS if way is poutine_mask else ["refine"]
    for name in functions:
        found = FUNCTIONS[name](pair, data)
        np.testing.assert_allclose(found, exact(MASKS[mask]), rtol=0, atol=0.08, err_msg=name)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("way", WAYS)
def test_guide_and_refined_proposal_agree(way):
    pair, mask = pv.Pair(way(model), way(GUIDES["Normal"])), MASKS["gaps"]
    scores = pv.evaluate(pair, (ROWS, mask), num_samples=3000)
    np.testing.assert_allclose(scores.log_likelihood, exact(mask), rtol=0, atol=0.08)
    bounds = pv.ais(pair, (ROWS, mask), num_chains=50, num_temperatures=100)
    np.testing.assert_allclose(bounds.lower, exact(mask), rtol=0, atol=0.15)


@pytest.mark.parametrize("way", [poutine_mask, event])
def test_mcmc_samples_masked_elements_from_their_prior(way):
    """Without a density, the chain would move away without limit."""
    pair, mask = pv.Pair(way(model), way(GUIDES["Normal"])), MASKS["gaps"]
    tree = pv.mcmc_draws(
        pair, (ROWS[:1], mask[:1]), num_samples=80, warmup_steps=40, num_chains=1, kernel="hmc"
    )
    z = np.concatenate(
        [value.to_numpy().reshape(80, -1) for value in tree["posterior"].values()], 1
    )
    np.testing.assert_allclose(z.mean(0), mask[0] * ROWS[0] / 2, rtol=0, atol=0.8)
    np.testing.assert_allclose(z.std(0), np.where(mask[0], 0.5**0.5, 1.0), rtol=0.5)


def test_a_chain_with_masked_steps():
    """z_t ~ N(z_{t-1}, 1): steps after the end depend on those before, and nothing on them."""

    def chain(sample_z):
        def run(x, mask):
            with pyro.plate("data", len(x)):
                z = 0.0 * x[:, 0]
                for t in range(T):
                    with poutine.mask(mask=mask[:, t]):
                        z = sample_z(x, t, z)

        return run

    def step(x, t, z):
        z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
        pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])
        return z

    pair = pv.Pair(
        chain(step), chain(lambda x, t, z: pyro.sample(f"z_{t}", dist.Normal(x[:, t] / 2, 0.8)))
    )
    mask = MASKS["lengths"]
    steps = torch.minimum(torch.arange(1, T + 1)[:, None], torch.arange(1, T + 1))
    total = (steps + torch.eye(T)).double()
    evidence = [
        dist.MultivariateNormal(torch.zeros(n).double(), total[:n, :n]).log_prob(x[:n])
        for x, n in zip(ROWS, mask.sum(1).tolist(), strict=True)
    ]
    found = pv.refine(pair, (ROWS, mask), num_samples=3000).log_likelihood
    np.testing.assert_allclose(found, torch.stack(evidence), rtol=0, atol=0.08)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_unobserved_elements_of_an_observed_mask(scale):
    """The latent `x_unobserved` is masked if x is observed."""
    observed = torch.tensor([True, False, True])

    def imputing(x, mask):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=mask)

    def guide(x, mask):
        z = pyro.sample("z", dist.Normal(x / 2 * mask, 1.0))
        with poutine.mask(mask=~mask):
            pyro.sample("x_unobserved", dist.Normal(z, scale))

    found = pv.refine(pair_of(imputing, guide), (X, observed), num_samples=3000).log_likelihood
    terms = dist.Normal(torch.zeros_like(X), 2**0.5).log_prob(X)
    np.testing.assert_allclose(found, torch.where(observed, terms, 0.0), rtol=0, atol=0.08)


def depending(x, sample, mask):
    """The observation is not masked, and depends on masked elements."""
    z = sample("z", dist.Normal(0 * x, 1.0))
    with poutine.mask(mask=True):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def by_a_factor(x, sample, mask):
    """The prior of z is a factor."""
    z = sample("z", dist.Normal(0 * x, 1.0))
    pyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(z))
    sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("program", [depending, by_a_factor])
@pytest.mark.parametrize("guide", ["Normal", "Delta"])
def test_densities_that_depend_on_masked_elements_are_refused(program, guide):
    pair = pv.Pair(distribution_mask(program), distribution_mask(GUIDES[guide]))
    data = (ROWS, MASKS["gaps"])
    runs = [
        lambda: pv.refine(pair, data, num_samples=100),
        lambda: pv.evaluate(pair, data, num_samples=100, proposal="refined"),
        lambda: resampled(pair, data),
        lambda: pv.ais(pair, data, num_chains=2, num_temperatures=2),
        lambda: pv.mcmc_draws(pair, data, num_samples=2, warmup_steps=2, num_chains=1),
    ]
    if guide == "Normal":
        runs.append(lambda: pv.evaluate(pair, data, num_samples=100))
    for run in runs:
        with pytest.raises(pv.PairError, match="depends on masked elements of latent 'z'"):
            run()
