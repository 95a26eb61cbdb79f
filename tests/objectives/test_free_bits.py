"""`FreeBits` against a calculation by hand."""

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.objectives import Beta, FreeBits, per_datum
from tests.support.linear_gaussian import linear_vae
from tests.support.objectives import KWARGS, imperfect_vae


def test_free_bits_by_hand():
    vae, x = imperfect_vae(40)
    model, guide = per_datum(vae.model, 400), per_datum(vae.guide, 400)
    torch.manual_seed(3)
    elbo = -Trace_ELBO().loss(model, guide, x)
    torch.manual_seed(3)
    with torch.no_grad():
        q = vae.encode(x).base_dist
        z = torch.normal(q.loc, q.scale)
        prior = dist.Normal(torch.zeros(2, **KWARGS), 1.0)
        kl = (q.log_prob(z) - prior.log_prob(z)).mean(0)  # per dimension, over the minibatch
    between, above = kl.mean().item(), 2 * kl.sum().item()
    assert kl.min() < between < kl.max()
    for groups, threshold, raised in [
        ("dimensions", between, kl.clamp(min=between).sum() - kl.sum()),
        ("sites", above, above - kl.sum()),
    ]:
        objective = FreeBits(threshold, groups=groups)
        torch.manual_seed(3)
        assert -objective.loss(model, guide, x) == pytest.approx(elbo - raised.item(), abs=1e-9)
        # Without scaling per datum, the threshold applies to each of the 40 data.
        torch.manual_seed(3)
        summed = -objective.loss(vae.model, vae.guide, x)
        assert summed == pytest.approx(40 * (elbo - raised.item()), abs=1e-9)


def test_free_bits_press_no_latent_below_the_threshold():
    """Below the threshold, the gradient is that of the reconstruction alone."""
    vae, x = imperfect_vae(40)
    weight = vae.guide.posterior.encoder.layers[-1].weight
    found = []
    for objective in (FreeBits(1e3), Beta(0.0)):
        torch.manual_seed(1)
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        found += torch.autograd.grad(loss, [weight])
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
    assert found[0].abs().max() > 0


def test_dimensions_that_are_not_independent_are_refused():
    vae, data = linear_vae()
    with pytest.raises(pv.PairError, match="not independent under its MultivariateNormal"):
        FreeBits(0.1, groups="dimensions").loss(vae.model, vae.guide, data)
