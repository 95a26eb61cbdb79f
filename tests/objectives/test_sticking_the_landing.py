"""`StickingTheLanding` at the exact posterior."""

import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae.objectives import StickingTheLanding
from tests.support.linear_gaussian import linear_vae
from tests.support.objectives import KWARGS, gradients


def test_sticking_the_landing_has_no_gradient_at_the_exact_posterior():
    """The gradient of every sample is zero. That of Trace_ELBO is noise with mean zero."""
    vae, x = linear_vae(dim=4, latent_dim=2)
    guide = nn.Linear(4, 2, **KWARGS)
    gain, covariance = vae.model.likelihood.posterior_terms()
    with torch.no_grad():
        guide.weight.copy_(gain)
        guide.bias.copy_(-gain @ vae.model.likelihood.mean)
    root = nn.Parameter(torch.linalg.cholesky(covariance).detach())
    posterior = lambda x: dist.MultivariateNormal(guide(x), scale_tril=root)  # noqa: E731
    exact = vae.replace(guide=posterior)
    parameters = [*guide.parameters(), root]
    still = gradients(StickingTheLanding(), exact, x, 20, parameters)
    noisy = gradients(Trace_ELBO(), exact, x, 20, parameters)
    assert still.var(dim=0).max() < 1e-10
    assert still.abs().max() < 1e-9
    assert noisy.var(dim=0).max() > 1.0
