"""Functional transforms of torch, and export, of every likelihood with Pyro's validation on."""

import pyro
import pytest
import torch
from torch import nn
from torch.func import hessian, jacrev, vmap

from tests.support.catalogue import LIKELIHOODS

LATENT_DIM = 2

# `hessian` imports a module of torch that uses torch's own deprecated decorator.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")


@pytest.fixture(params=LIKELIHOODS)
def scored(request):
    """Return a likelihood, latents z and a datum x for each."""
    torch.manual_seed(0)
    likelihood = LIKELIHOODS[request.param].build(LATENT_DIM).double()
    z = torch.randn(3, LATENT_DIM, dtype=torch.float64)
    return likelihood, z, likelihood(z).sample()


def test_a_density_can_be_mapped_and_differentiated(scored):
    likelihood, latents, data = scored

    def log_prob(z, x):
        return likelihood(z).log_prob(x)

    with pyro.validation_enabled():
        for name, transform in {"value": lambda f: f, "jacrev": jacrev, "hessian": hessian}.items():
            mapped = vmap(transform(log_prob))(latents, data)
            for z, x, found in zip(latents, data, mapped, strict=True):
                if name == "hessian":
                    right = torch.autograd.functional.hessian(lambda z, x=x: log_prob(z, x), z)
                elif name == "jacrev":
                    right = torch.autograd.functional.jacobian(lambda z, x=x: log_prob(z, x), z)
                else:
                    right = log_prob(z, x)
                torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9, msg=name)


class Score(nn.Module):
    """The log density of a likelihood, and its mean."""

    def __init__(self, likelihood):
        super().__init__()
        self.likelihood = likelihood

    def forward(self, z, x):
        described = self.likelihood(z)
        return described.log_prob(x), described.mean


@pytest.mark.thinned(3)
def test_a_density_can_be_exported(scored):
    likelihood, z, x = scored
    score = Score(likelihood)
    with pyro.validation_enabled():
        exported = torch.export.export(score, (z, x)).module()
        torch.testing.assert_close(exported(z, x), score(z, x))
        assert likelihood(z)._validate_args  # only the exported program does not check its data
