"""The grid: every prior with every guide that fits it, with every likelihood.

A guide fits a prior if both have the same support. Each pair is trained for twenty steps, scored,
sampled, saved and loaded. A likelihood and a guide share only z, so most pairs are tested with one
likelihood, of a discrete or a continuous x in turn. Priors that fit few guides get both.
`pytest -m slow tests/laws/test_grid.py` runs the full product in some minutes.
"""

import collections
import functools
import itertools

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate

import pyro_vae as pv
from tests.support.catalogue import EVENT_SHAPE, GUIDES, LIKELIHOODS, PRIORS

SOME_LIKELIHOODS = ["Bernoulli", "Normal"]
STEPS = 20


def support(described):
    inner = described.support
    while hasattr(inner, "base_constraint"):
        inner = inner.base_constraint
    return str(inner), described.event_shape


def fitting_pairs():
    x = torch.rand(1, *EVENT_SHAPE)
    priors = {name: support(line.build()()) for name, line in PRIORS.items()}
    guides = {name: support(line.build()(x)) for name, line in GUIDES.items()}
    return [(p, g) for p in priors for g in guides if priors[p] == guides[g]]


def train(vae, x):
    """Return the mean loss of the first and of the last steps."""
    enumerable = vae.encode(x).has_enumerate_support
    objective = TraceEnum_ELBO(max_plate_nesting=1) if enumerable else Trace_ELBO()
    guide = config_enumerate(vae.guide) if enumerable else vae.guide
    optim = functools.partial(torch.optim.Adam, lr=0.03)
    svi = pv.SVI(vae.model, guide, optim, objective)
    losses = [svi.step(x) for _ in range(STEPS)]
    return np.mean(losses[:5]), np.mean(losses[-5:])


def grid():
    pairs = fitting_pairs()
    num_guides = collections.Counter(prior for prior, _ in pairs)
    everywhere = [
        (pair, likelihood)
        for i, pair in enumerate(pairs)
        for j, likelihood in enumerate(SOME_LIKELIHOODS)
        if num_guides[pair[0]] < 4 or i % 2 == j
    ]
    others = itertools.product([("StandardNormal", "DiagonalNormal")], LIKELIHOODS)
    fast = {(*pair, likelihood) for pair, likelihood in [*everywhere, *others]}
    for pair, likelihood in itertools.product(fitting_pairs(), LIKELIHOODS):
        entry = (*pair, likelihood)
        yield pytest.param(*entry, marks=() if entry in fast else pytest.mark.slow)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(("prior", "guide", "likelihood"), [*grid()])
def test_a_pair_trains_scores_draws_and_saves(prior, guide, likelihood, tmp_path):
    prior, guide = PRIORS[prior], GUIDES[guide]
    build_likelihood = LIKELIHOODS[likelihood].build
    latent_dim = prior.build()().event_shape[0]
    # Samples of a likelihood at one z, so that there is something to learn.
    x = build_likelihood(latent_dim)(torch.zeros(200, latent_dim)).sample()
    vae = pv.VAE(prior.build(), build_likelihood(latent_dim), guide.build())
    vae.check(x)
    first, last = train(vae, x)
    assert last < first
    scores = pv.evaluate(vae, x[:10], num_samples=20)
    assert np.isfinite(scores.elbo).all()
    assert np.isfinite(scores.log_likelihood).all()
    assert vae.sample(4).shape == vae.reconstruct(x[:4]).shape == (4, *EVENT_SHAPE)
    if prior.saves:
        vae.save(tmp_path / "model")
        loaded = pv.load(tmp_path / "model")
        again = pv.evaluate(loaded, x[:10], num_samples=20)
        np.testing.assert_allclose(again.elbo, scores.elbo, rtol=1e-4, atol=1e-4)
