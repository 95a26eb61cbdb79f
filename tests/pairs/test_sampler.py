"""Log densities of a pair's samples, per datum."""

from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.pairs.sampler import Sampler
from tests.support.linear_gaussian import linear_vae
from tests.support.pairs import EXACT_PAIRS


def test_a_sampler_refuses_a_global_latent():
    pair = EXACT_PAIRS["hierarchy"]()
    with pytest.raises(pv.PairError, match="a latent is outside the plate over the data"):
        Sampler(SimpleNamespace(model=pair.model, guide=pair.guide), *pair.args)


def test_data_are_scored_given_a_draw_of_the_global_latents():
    """x_n = w + z_n + noise, with the guide exact for z given w: log weights are log p(x_n|w)."""
    pair = EXACT_PAIRS["hierarchy"]()
    programs = SimpleNamespace(model=pair.model, guide=pair.guide)
    draws = Sampler(programs, *pair.args, given_globals=True).draw(*pair.args, 5)
    exact = dist.Normal(draws.latents["w"][:, None], 2**0.5).log_prob(*pair.args)
    torch.testing.assert_close(draws.log_weights, exact)


def test_data_without_latents_of_their_own_are_scored_given_the_global_ones():
    pair = EXACT_PAIRS["global"]()
    programs = SimpleNamespace(model=pair.model, guide=pair.guide)
    draws = Sampler(programs, *pair.args, given_globals=True).draw(*pair.args, 5)
    exact = dist.Normal(draws.latents["w"][:, None], 1.0).log_prob(*pair.args)
    torch.testing.assert_close(draws.log_weights, exact)


def test_given_latents_have_gradients_and_the_densities_of_their_draws():
    vae, x = linear_vae()
    sampler = Sampler(vae, x)
    draws = sampler.draw(x, 3)
    z = draws.latents["z"].requires_grad_()
    log_prior, log_likelihood = sampler.model_at(x, {"z": z})
    torch.testing.assert_close(log_prior, draws.log_prior, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_likelihood, draws.log_likelihood, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(log_prior.sum(), z)
    torch.testing.assert_close(gradient, -z, rtol=1e-12, atol=1e-12)
