"""Collapsed latents are distinguished from used ones."""

import numpy as np
import pyro.distributions as dist
import torch

import pyro_vae as pv
from tests.support.linear_gaussian import linear_vae
from tests.support.spoilt import Deaf


def test_collapse_is_told_from_use():
    vae, x = linear_vae()
    used = pv.collapse(vae, x)
    assert used.active.all()
    assert not used.collapsed
    q = vae.guide.posterior(x)
    exact = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).mean(0).detach().numpy()
    # The moments are of 100 draws for each of 50 data, the KL's sd below 1 nat.
    np.testing.assert_allclose(used.kl, exact, atol=5 / (50 * 100) ** 0.5)
    deaf = pv.VAE(vae.model.prior, Deaf(), vae.guide.posterior)
    assert "the decoder ignores z" in pv.collapse(deaf, x).verdict
    prior = vae.replace(guide=lambda x: dist.Normal(torch.zeros(len(x), 3).double(), 1).to_event(1))
    idle = pv.collapse(prior, x)
    assert idle.collapsed
    assert "no latent depends on x" in idle.verdict
    assert np.abs(idle.kl).max() < 0.01
