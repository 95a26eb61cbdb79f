"""Posteriors with kinks: the Hessian at the mode says nothing about their width."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv


class Kinked:
    """z ~ N(0, 1) and x ~ Laplace(z, scale) in every dimension, with the prior as guide.

    The log density is linear on both sides of x, so that its Hessian is that of the prior, whose
    width is up to 50 times that of the posterior.
    """

    def __init__(self, dim, scale):
        self.dim, self.scale = dim, scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dim), 1.0).to_event(1))
            pyro.sample("x", dist.Laplace(z, self.scale).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(self.dim), 1.0).to_event(1))

    def evidence(self, x):
        """Return log p(x) by quadrature in each dimension."""
        zero = torch.zeros((), dtype=torch.float64)
        away = torch.linspace(-40, 40, 20_001, dtype=torch.float64) * self.scale
        density = dist.Laplace(zero, self.scale).log_prob(away)
        prior = dist.Normal(zero, 1.0).log_prob(x.double()[..., None] + away)
        return ((density + prior).logsumexp(-1) + (away[1] - away[0]).log()).sum(-1).numpy()


@pytest.mark.parametrize(("dim", "scale"), [(5, 0.05), (10, 0.05), (20, 0.2), (20, 0.02)])
def test_posteriors_far_narrower_than_their_hessian_says_are_found(dim, scale):
    pair, x = Kinked(dim, scale), torch.randn(12, dim)
    posterior = pv.refine(pair, x)
    error = np.abs(posterior.log_likelihood - pair.evidence(x))
    assert (error < 5 / posterior.ess**0.5).all()
    assert np.median(error) < 0.3
    assert (posterior.khat < 1.0).all()  # the weights have a mean; with the Hessian alone 4 to 40
