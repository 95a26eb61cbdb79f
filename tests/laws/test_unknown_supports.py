"""Distributions without a support, as the flows of zuko, work as priors, guides and likelihoods."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import nn
from torch.distributions import Distribution, Normal

import pyro_vae as pv
from pyro_vae.pairs.supports import support_of


class Shifted(Distribution):
    """N(loc, 1), as a package without supports defines it."""

    has_rsample = True

    def __init__(self, loc):
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        self.loc = loc

    def expand(self, batch_shape):
        return Shifted(self.loc.expand(*batch_shape, *self.event_shape))

    def rsample(self, shape=()):
        return self.loc + torch.randn(*shape, *self.loc.shape)

    def sample(self, shape=()):
        return self.rsample(shape).detach()

    def log_prob(self, value):
        return Normal(self.loc, 1.0).log_prob(value).sum(-1)


class Module(nn.Module):
    """A module that returns a distribution with a shift."""

    def __init__(self, make, width=2):
        super().__init__()
        self.make, self.loc = make, nn.Parameter(torch.zeros(width))

    def forward(self, x=None):
        return self.make(self.loc if x is None else self.loc + 0 * x)


def pyro_normal(loc):
    return dist.Normal(loc, 1.0).to_event(1)


KINDS = {"bare": Shifted, "wrapped": lambda loc: ZukoToPyro(Shifted(loc)), "pyro": pyro_normal}


@pytest.mark.parametrize(("prior", "guide"), list(itertools.product(KINDS, KINDS)))
def test_scores_do_not_depend_on_a_declared_support(prior, guide):
    torch.manual_seed(0)
    x = torch.randn(20, 2)
    vae = pv.VAE(Module(KINDS[prior]), Module(pyro_normal), Module(KINDS[guide]))
    pv.check(vae, x[:4])
    pv.fit(vae, x, epochs=1, progress=False)
    vae.load_state_dict({name: torch.zeros_like(value) for name, value in vae.state_dict().items()})
    scores = pv.evaluate(vae, x, num_samples=20, progress=False)  # the latents are ignored
    exact = Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(torch.from_numpy(scores.log_likelihood), exact, rtol=0, atol=1e-4)
    assert torch.isfinite(torch.from_numpy(pv.ais(vae, x[:3], num_temperatures=3).lower)).all()
    assert vae.encode(x).sample().shape == (20, 2)
    assert str(support_of(vae.encode(x))).startswith("Independent")


def test_a_flow_of_zuko_is_a_prior_and_a_guide():
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    x = torch.rand(20, 2).round()
    flow = zuko.flows.NSF(2, transforms=1, hidden_features=(8,))
    guide = zuko.flows.MAF(2, context=2, transforms=1, hidden_features=(8,))
    vae = pv.VAE(flow, pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 2)), guide)
    pv.fit(vae, x, epochs=1, progress=False)
    assert math.isfinite(pv.evaluate(vae, x, num_samples=30, progress=False).mean("elbo"))


def test_an_observation_without_a_support_is_not_checked():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ZukoToPyro(Shifted(torch.zeros(2))), obs=x)

    x = 100 * torch.randn(9, 2)
    scores = pv.evaluate(pv.Pair(model, lambda x: None), x, num_samples=2, progress=False)
    assert len(scores.elbo) == 9
