"""For every part and objective, the graph gives the loss and gradients that Pyro gives.

Each part is in at least one pair, and each objective is tested with default parts; in float64, on
the same random numbers. The steps are plain gradient steps, because Adam amplifies rounding errors.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate

import pyro_vae as pv
from pyro_vae.objectives.annealing import Beta, Linear
from pyro_vae.objectives.free_bits import FreeBits
from pyro_vae.objectives.importance_weighted import ImportanceWeighted
from pyro_vae.objectives.sticking_the_landing import StickingTheLanding
from tests.laws.test_grid import fitting_pairs
from tests.support.catalogue import GUIDES, LIKELIHOODS, PRIORS

pytestmark = pytest.mark.usefixtures("graphs_in_double")
OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO,
    "Trace_ELBO, 3 particles": lambda: Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "ImportanceWeighted": lambda: ImportanceWeighted(3, max_plate_nesting=1),
    "ImportanceWeighted, doubly reparameterized": lambda: ImportanceWeighted(
        3, doubly_reparameterized=True, max_plate_nesting=1
    ),
    "StickingTheLanding": StickingTheLanding,
    "FreeBits": lambda: FreeBits(0.5),
    "Beta": lambda: Beta(Linear(4)),
    "Beta by name": lambda: Beta({"z": Linear(4)}),
}


def cases():
    """Every prior, guide and likelihood at least once. A third of them are fast."""
    pairs = fitting_pairs()[::-1]
    chosen: dict[tuple[str, str], None] = {}
    for needed in (2, 1):  # first the pairs of which neither part has been chosen
        for prior, guide in pairs:
            priors, guides = zip(*chosen, strict=True) if chosen else ((), ())
            if (prior not in priors) + (guide not in guides) >= needed:
                chosen[prior, guide] = None
    for (prior, guide), likelihood in zip_cycled(list(chosen), list(LIKELIHOODS)):
        yield prior, guide, likelihood, "Trace_ELBO"


def defaults():
    """Every objective with default parts."""
    for objective in OBJECTIVES:
        yield "StandardNormal", "DiagonalNormal", "Bernoulli", objective


def zip_cycled(*lists):
    length = max(map(len, lists))
    return zip(*(itertools.islice(itertools.cycle(x), length) for x in lists), strict=True)


def train(case, compile):
    prior, guide, likelihood, objective = case
    torch.manual_seed(0)
    prior, guide = PRIORS[prior].build(), GUIDES[guide].build()
    latent_dim = prior().event_shape[0]
    build = LIKELIHOODS[likelihood].build
    x = build(latent_dim)(torch.zeros(6, latent_dim)).sample()
    vae = pv.VAE(prior, build(latent_dim), guide).double()
    bound, program = OBJECTIVES[objective](), vae.guide
    if vae.encode(x).has_enumerate_support:
        bound, program = TraceEnum_ELBO(max_plate_nesting=1), config_enumerate(vae.guide)
    optim = functools.partial(torch.optim.SGD, lr=0.01)
    svi = pv.SVI(vae.model, program, optim, bound, compile=compile)
    losses = [svi.step(x) for _ in range(4)]
    return svi, losses, [p.detach() for p in vae.parameters()]


@pytest.mark.thinned(9)
@pytest.mark.parametrize(("prior", "guide", "likelihood", "objective"), [*defaults(), *cases()])
def test_the_graph_equals_the_eager_step(prior, guide, likelihood, objective):
    case = prior, guide, likelihood, objective
    ours, eager = train(case, True), train(case, False)
    assert ours[0].num_compiled_steps == 2
    np.testing.assert_allclose(ours[1], eager[1], rtol=1e-9)
    for actual, expected in zip(ours[2], eager[2], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
