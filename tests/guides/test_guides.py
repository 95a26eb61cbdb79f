"""Guides: exact posteriors, the density of flows, errors."""

import functools

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.networks import MLP
from pyro_vae.pairs.sampler import Sampler
from tests.support.linear_gaussian import linear_vae


def inverse_softplus(values):
    return values.expm1().log()


def test_the_full_normal_guide_can_be_the_exact_posterior():
    vae, x = linear_vae()
    decoder = vae.model.likelihood
    encoder = MLP(6, [], pv.guides.FullNormal.num_outputs(3)).double()
    gain, covariance = decoder.posterior_terms()
    triangle = torch.linalg.cholesky(covariance)
    rows, columns = torch.tril_indices(3, 3, offset=-1)
    with torch.no_grad():
        linear = encoder.layers[-1]
        linear.weight.zero_()
        linear.weight[:3] = gain
        diagonal = inverse_softplus(triangle.diagonal() - pv.guides.MIN_SCALE)
        below = 3 * triangle[rows, columns]
        linear.bias.copy_(torch.cat([-gain @ decoder.mean, diagonal, below]))
    exact = vae.replace(guide=pv.guides.FullNormal(encoder))
    weights = Sampler(exact, x).log_weights(x, 20).log_weights
    evidence = decoder.marginal().log_prob(x)
    torch.testing.assert_close(weights, evidence.expand(20, 50), rtol=0, atol=1e-9)


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    ("build", "share_of_gap", "tolerance"),
    [
        (lambda: pv.guides.DiagonalNormal(MLP(6, [], 6)), 1, 0.02),
        (lambda: pv.guides.FullNormal(MLP(6, [], 9)), 0, 0.01),
        (lambda: pv.guides.LowRankNormal(MLP(6, [], 12), rank=2), 0, 0.03),
        (lambda: pv.guides.Flow(MLP(6, [], 8), 3), 0, 0.02),
    ],
    ids=["diagonal", "full", "low rank", "flow"],
)
def test_guides_with_covariance_close_the_gap_of_a_linear_model(build, share_of_gap, tolerance):
    """A diagonal guide stays 1/2 (sum log L_ii - log det L) below, L the posterior precision."""
    vae, _ = linear_vae()
    x = vae.sample(500)
    decoder = vae.model.likelihood
    decoder.requires_grad_(False)
    vae = vae.replace(guide=build().double())
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    pv.fit(
        vae,
        x,
        epochs=100,
        batch_size=100,
        num_particles=10,
        learning_rate=0.01,
        schedule=lambda optimizer, steps: schedule(optimizer, total_steps=steps),
    )
    evidence = decoder.marginal().log_prob(x).mean().item()
    precision = torch.linalg.inv(decoder.posterior_terms()[1])
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert gap > 0.1
    scores = pv.evaluate(vae, x, num_samples=500)
    assert evidence - scores.mean("elbo") == pytest.approx(share_of_gap * gap, abs=tolerance)


class TestFlow:
    @pytest.fixture
    def guide(self):
        guide = pv.guides.Flow(MLP(2, [5], 9), latent_dim=3, num_transforms=3).double()
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return guide

    def test_what_it_draws_it_scores_without_an_inverse(self, guide, monkeypatch):
        x = torch.randn(4, 2, dtype=torch.float64)
        described = guide(x)
        draws = described.rsample((10,))
        inverted = described.log_prob(draws.clone())

        described = guide(x)
        draws = described.rsample((10,))
        calls = []
        for network in guide.networks:
            network.register_forward_hook(lambda *args: calls.append(1))
        own = described.log_prob(draws)
        assert not calls
        torch.testing.assert_close(own, described.log_prob(draws.clone()))
        assert calls
        assert inverted.shape == (10, 4)

    def test_its_density_is_that_of_the_noise_over_the_jacobian(self, guide):
        described = guide(torch.randn(2, dtype=torch.float64))

        def transform(noise):
            for step in described.transforms:
                noise = step(noise)
            return noise

        noise = described.base_dist.sample()
        jacobian = torch.autograd.functional.jacobian(transform, noise)
        expected = described.base_dist.log_prob(noise) - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(described.log_prob(transform(noise)), expected)

    def test_it_depends_on_x_beyond_loc_and_scale(self, guide):
        """Standardized by the base's loc and scale, draws of two x differ by the context alone."""
        one, other = (guide(torch.full((2,), v, dtype=torch.float64)) for v in (-1.0, 1.0))
        noise = torch.randn(3, dtype=torch.float64)
        assert not torch.allclose(one.transforms[0](noise), other.transforms[0](noise))

    def test_it_needs_a_context(self):
        with pytest.raises(ValueError, match=r"more than 2 \* latent_dim = 6 outputs.*got 6"):
            pv.guides.Flow(MLP(2, [], 6), 3)
        with pytest.raises(ValueError, match=r"latent_dim must be a whole number .*, got 1"):
            pv.guides.Flow(MLP(2, [], 6), 1)


def test_covariances_are_those_of_their_factors():
    x = torch.randn(5, 4, dtype=torch.float64)
    low_rank = pv.guides.LowRankNormal(MLP(4, [], 12).double(), rank=2)
    described = low_rank(x)
    factor, diagonal = described.cov_factor, described.cov_diag
    assert factor.shape == (5, 3, 2)
    expected = factor @ factor.mT + diagonal.diag_embed()
    torch.testing.assert_close(described.covariance_matrix, expected)
    full = pv.guides.FullNormal(MLP(4, [], 9).double())(x)
    outputs = pv.guides.FullNormal.num_outputs(3)
    assert outputs == 9
    assert (full.scale_tril.triu(1) == 0).all()
    assert (full.scale_tril.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("name", ["full", "low rank"])
def test_what_couples_latents_starts_small(name):
    # Without that, 40 latents of MNIST train to 20 nats below a diagonal guide in five epochs.
    outputs = torch.randn(500, 1000, dtype=torch.float64)
    guide = {
        "full": pv.guides.FullNormal(lambda x: x[:, : pv.guides.FullNormal.num_outputs(40)]),
        "low rank": pv.guides.LowRankNormal(lambda x: x[:, : 40 * 7], rank=5),
    }[name]
    outputs[:, 40:80] = -30.0  # scales of next to nothing
    coupling = guide(outputs).covariance_matrix.diagonal(dim1=-2, dim2=-1)
    assert coupling.mean() < 0.02


def test_an_encoder_of_zeros_still_points_somewhere():
    encoder = MLP(2, [], 4)
    nn.init.zeros_(encoder.layers[-1].weight)
    guide = pv.guides.PowerSpherical(encoder)
    draws = guide(torch.zeros(3, 2)).rsample()
    draws.sum().backward()
    assert encoder.layers[-1].bias.grad.isfinite().all()


@pytest.mark.parametrize(
    ("build", "size", "needed"),
    [
        (pv.guides.DiagonalNormal, 5, r"2 \* latent_dim"),
        (pv.guides.Laplace, 5, r"2 \* latent_dim"),
        (pv.guides.FullNormal, 6, r"latent_dim \* \(latent_dim - 1\) / 2"),
        (lambda encoder: pv.guides.LowRankNormal(encoder, 2), 6, r"2 \+ rank = 4"),
        (pv.guides.LogisticNormal, 3, r"2 \* \(latent_dim - 1\)"),
    ],
)
def test_an_encoder_of_another_size_is_refused(build, size, needed):
    with pytest.raises(ValueError, match=rf"{needed}.*got \({size},\)"):
        build(MLP(2, [], size))
