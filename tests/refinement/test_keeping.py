"""A fit is kept if it is nearer to p(z|x) than the first proposal; a narrow one is not."""

import itertools

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.refinement.importance import is_closer
from pyro_vae.refinement.proposal import Proposal, degrees_of_freedom

COPIES, DRAWS = 60, 200
SURE = 2.0  # nats; smaller differences are within the error of few draws in 20 dimensions
FIRST = [(0.0, 1.1), (0.0, 2.0), (0.7, 0.8)]  # shift of each latent and scale
FITS = list(itertools.product([0.0, 0.5, 2.0], [0.02, 0.1, 0.3, 0.6, 1.0, 3.0]))


def proposal(dim, shift, scale):
    loc = torch.full((COPIES, 1, dim), shift / dim**0.5, dtype=torch.float64)
    scale_tril = scale * torch.eye(dim, dtype=torch.float64).expand(COPIES, 1, dim, dim)
    return Proposal(torch.zeros(COPIES, 1).double(), loc, scale_tril, degrees_of_freedom(dim))


def standard_normal(dim):
    return dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1)


def two_modes(dim):
    """Normal distributions at -3 and 3 in the first latent."""
    loc = torch.zeros(2, dim).double()
    loc[:, 0] = torch.tensor([-3.0, 3.0])
    component = dist.Normal(loc, 1.0).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), component)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("posterior", [standard_normal, two_modes])
@pytest.mark.parametrize("dim", [1, 4, 20])
@pytest.mark.parametrize("first", FIRST)
def test_a_fit_is_kept_if_its_divergence_is_smaller(posterior, dim, first):
    torch.manual_seed(0)
    target, before = posterior(dim), proposal(dim, *first)
    exact = target.sample((20_000, 1))
    wrong = []
    for shift, scale in FITS:
        fit = proposal(dim, shift, scale)
        densities = (r[:1].distribution.log_prob(exact) for r in (fit, before))
        gain = torch.sub(*densities).mean()
        states = torch.cat([r.distribution.sample((DRAWS,)) for r in (before, fit)])
        kept = is_closer(fit, before, states, target.log_prob(states)).double().mean()
        if abs(gain) > SURE and abs(kept - (gain > 0).double()) > 0.1:
            wrong.append(f"shift {shift}, scale {scale}: gain {gain:.2f} nats, kept {kept:.0%}")
    assert not wrong
