"""Priors with components: what they learn, and their exact density."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

import pyro_vae as pv
from pyro_vae.networks import MLP
from tests.priors.test_simple import vae_of


def test_a_mixture_recovers_planted_clusters():
    means = torch.tensor([[4.0, 0.0], [-3.0, 3.0], [-2.0, -4.0]])
    labels = torch.arange(600) % 3
    x = means[labels] + 0.5 * torch.randn(600, 2)
    decoder = MLP(2, [], 2)
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.eye(2))
    decoder.requires_grad_(False)
    prior = pv.priors.MixtureOfGaussians(2, 3, locs=x[:3] + torch.randn(3, 2))
    encoder = MLP(2, [], 4)
    vae = pv.VAE(
        prior, pv.likelihoods.Normal(decoder, scale=0.1), pv.guides.DiagonalNormal(encoder)
    )
    pv.fit(vae, x, epochs=60, batch_size=100, learning_rate=0.03)
    described = vae.model.prior()
    locs = described.component_distribution.mean.detach()
    nearest = torch.cdist(means, locs).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    empirical = torch.stack([x[labels == k].mean(0) for k in range(3)])
    torch.testing.assert_close(locs[nearest], empirical, rtol=0, atol=0.1)
    scales = described.component_distribution.stddev.detach()
    torch.testing.assert_close(scales, torch.full((3, 2), 0.5), rtol=0, atol=0.1)
    torch.testing.assert_close(
        described.mixture_distribution.probs.detach(), torch.full((3,), 1 / 3), rtol=0, atol=0.05
    )


def test_a_mixtures_density_is_the_sum_over_its_components_to_rounding():
    # Components far out and a hundred times narrower than they are far: float32 products of their
    # squares would be off by several nats.
    prior = pv.priors.MixtureOfGaussians(3, 4, locs=torch.tensor(3.0) * torch.randn(4, 3))
    with torch.no_grad():
        prior.raw_scales.copy_(torch.linspace(-4.6, 0.5, 12).reshape(4, 3))
        prior.logits.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
    described = prior()
    z = described.sample((5, 6))

    def by_hand(z, locs, scales, weights):
        each = dist.Normal(locs, scales).log_prob(z.unsqueeze(-2)).sum(-1)
        return (each + weights).logsumexp(-1)

    exact = copy.deepcopy(prior).double()
    scales = softplus(exact.raw_scales) + 1e-6
    expected = by_hand(z.double(), exact.locs, scales, exact.logits.log_softmax(-1))
    torch.testing.assert_close(described.log_prob(z), expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact().log_prob(z.double()), expected, rtol=1e-9, atol=1e-9)
    in_a_plate = exact().expand((6,))
    assert in_a_plate.batch_shape == (6,)
    torch.testing.assert_close(in_a_plate.log_prob(z.double()), expected, rtol=1e-9, atol=1e-9)
    parameters = list(exact.parameters())
    mine = torch.autograd.grad(exact().log_prob(z.double()).sum(), parameters)
    torch.testing.assert_close(mine, torch.autograd.grad(expected.sum(), parameters))


def test_a_mixture_of_a_users_own_normals_is_scored_by_them():
    class Sharper(dist.Normal):
        def log_prob(self, value):
            return 2 * super().log_prob(value)

    components = Sharper(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1)
    prior = pv.priors.VampPrior(lambda u: components, 3, 2)()
    z = torch.randn(5, 2)
    expected = 2 * dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(prior.log_prob(z), expected)


class TestVampPrior:
    def test_its_density_is_the_mean_of_the_guides(self):
        guide = pv.guides.FullNormal(MLP(2, [4], 5)).double()
        data = torch.rand(6, 2, dtype=torch.float64)
        prior = pv.priors.VampPrior(guide, 6, 2, pseudo_inputs=data).double()
        torch.testing.assert_close(prior.pseudo_inputs, data.clamp(0.01, 0.99))
        z = torch.randn(50, 2, dtype=torch.float64)
        each = torch.stack([guide(u).log_prob(z) for u in data.clamp(0.01, 0.99)])
        torch.testing.assert_close(prior().log_prob(z), each.logsumexp(0) - math.log(6))

    def test_it_trains_saves_and_loads_with_the_models_own_guide(self, tmp_path):
        x = torch.rand(200, 2)
        vae = vae_of(pv.priors.StandardNormal(2))
        vae = vae.replace(prior=pv.priors.VampPrior(vae.parts["guide"], 5, 2, pseudo_inputs=x[:5]))
        start = vae.model.prior.pseudo_inputs.clone()
        fit = pv.fit(vae, x, epochs=5, batch_size=50, learning_rate=0.01)
        assert fit.history[-1]["train_elbo"] > fit.history[0]["train_elbo"]
        moved = vae.model.prior.pseudo_inputs
        assert (moved != start).all()
        assert ((moved >= 0) & (moved <= 1)).all()
        vae.save(tmp_path / "model")
        loaded = pv.load(tmp_path / "model")
        assert loaded.model.prior.guide is loaded.guide.posterior
        assert len(list(loaded.parameters())) == len(list(vae.parameters()))
        z = torch.randn(9, 2)
        torch.testing.assert_close(loaded.model.prior().log_prob(z), vae.model.prior().log_prob(z))

    def test_pseudo_inputs_stay_in_the_bounds_that_are_given(self):
        guide = pv.guides.DiagonalNormal(MLP(2, [], 4))
        data = torch.tensor([[-3.0, 5.0], [0.0, 1.0]])
        with pytest.raises(ValueError, match=r"values in \[-3, 5\].*bounds \(0.0, 1.0\)"):
            pv.priors.VampPrior(guide, 2, 2, pseudo_inputs=data)
        free = pv.priors.VampPrior(guide, 2, 2, bounds=None, pseudo_inputs=data)
        torch.testing.assert_close(free.pseudo_inputs.detach(), data)
        wide = pv.priors.VampPrior(guide, 2, 2, bounds=(-4, 6), pseudo_inputs=data)
        torch.testing.assert_close(wide.pseudo_inputs.detach(), data)
        with pytest.raises(ValueError, match=r"shape \(3, 2\), got \(2, 2\)"):
            pv.priors.VampPrior(guide, 3, 2, pseudo_inputs=data)
