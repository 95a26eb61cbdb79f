"""The linear-Gaussian VAE against closed forms, in float64."""

import math

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv
from pyro_vae.pairs.log_weights import elbo, importance_bound
from pyro_vae.pairs.sampler import Sampler
from tests.support.linear_gaussian import LinearDecoder, MeanFieldPosterior, linear_vae


def test_with_the_exact_posterior_every_log_weight_is_log_p():
    vae, x = linear_vae()
    weights = Sampler(vae, x).log_weights(x, 700).log_weights  # more than one chunk of draws
    exact = vae.model.likelihood.marginal().log_prob(x)
    assert weights.shape == (700, 50)
    torch.testing.assert_close(weights, exact.expand(700, 50), rtol=0, atol=1e-9)


def test_elbo_of_the_best_mean_field_guide():
    vae, x = linear_vae(MeanFieldPosterior)
    decoder = vae.model.likelihood
    precision = torch.linalg.inv(decoder.posterior_terms()[1])
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    exact = decoder.marginal().log_prob(x) - gap
    # TraceMeanField_ELBO has the KL in closed form, and the reconstruction is linear in z but for
    # its square: the average over draws is off by its Monte Carlo error alone.
    weights = Sampler(vae, x).log_weights(x, 20_000).log_weights
    error = weights.std(dim=0) / math.sqrt(len(weights))
    assert gap > 0.05
    assert ((elbo(weights) - exact).abs() < 5 * error).all()


def test_importance_sampling_reaches_log_p():
    vae, x = linear_vae(MeanFieldPosterior)
    scores = pv.evaluate(vae, x, num_samples=10_000, seed=1)
    exact = vae.model.likelihood.marginal().log_prob(x).detach().numpy()
    np.testing.assert_allclose(scores.log_likelihood, exact, atol=0.05)
    np.testing.assert_allclose(scores.elbo, scores.reconstruction - scores.kl, atol=1e-9)
    assert scores.log_likelihood.dtype == np.float64


def test_more_samples_never_lower_the_bound():
    """Jensen, on paired noise: the bound of 2K draws is at least the mean of its two halves."""
    vae, x = linear_vae(MeanFieldPosterior)
    weights = Sampler(vae, x).log_weights(x, 64).log_weights
    halves = (importance_bound(weights[:32]) + importance_bound(weights[32:])) / 2
    assert (importance_bound(weights) >= halves - 1e-12).all()
    assert (importance_bound(weights) > halves).any()


def test_trace_elbo_is_the_mean_log_weight():
    vae, x = linear_vae(MeanFieldPosterior)
    sampler = Sampler(vae, x)
    torch.manual_seed(3)
    weights = sampler.draw(x, 1).log_weights
    torch.manual_seed(3)
    loss = Trace_ELBO(1, vectorize_particles=True, max_plate_nesting=1).loss(
        vae.model, vae.guide, x
    )
    assert loss == pytest.approx(-weights.sum().item(), abs=1e-9)


def test_gradients_are_those_derived_by_hand():
    """d/dz log p(x,z) = W'(x - Wz - mu)/s2 - z, carried to every parameter through z = m + s e."""
    torch.manual_seed(4)
    kwargs = {"dtype": torch.float64}
    decoder = LinearDecoder(torch.randn(4, 2, **kwargs), torch.randn(4, **kwargs), 0.6)
    encoder = pv.networks.MLP(4, [], 4).double()
    vae = pv.VAE(pv.priors.StandardNormal(2).double(), decoder, pv.guides.DiagonalNormal(encoder))
    x = torch.randn(3, 4, **kwargs)
    torch.manual_seed(5)
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    torch.manual_seed(5)
    noise = torch.normal(torch.zeros(3, 2, **kwargs), torch.ones(3, 2, **kwargs))

    with torch.no_grad():
        q = vae.encode(x).base_dist
        z, s2 = q.loc + q.scale * noise, (2 * decoder.log_scale).exp()
        residual = x - z @ decoder.weight.T - decoder.mean
        dz = residual @ decoder.weight / s2 - z
        raw_scale = encoder(x)[:, 2:]
        # d log q(z)/d s = -1/s along z = m + s e; softplus' is the logistic function.
        draw = (dz * noise + 1 / q.scale) * raw_scale.sigmoid()
        outputs = torch.cat([dz, draw], dim=1)
        linear = encoder.layers[-1]
    expected = {
        decoder.weight: residual.T @ z / s2,
        decoder.mean: residual.sum(0) / s2,
        decoder.log_scale: (residual.square() / s2 - 1).sum(),
        linear.weight: outputs.T @ x,
        linear.bias: outputs.sum(0),
    }
    for parameter, gradient in expected.items():
        torch.testing.assert_close(-parameter.grad, gradient, rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_a_trained_linear_vae_reaches_the_maximum_and_never_passes_it(objective):
    """Tipping & Bishop (1999): maximum likelihood of pPCA in closed form; Lucas et al. (2019): a
    diagonal guide suffices, since W may be rotated until the posterior is diagonal."""
    num_data, dim, latent_dim = 400, 5, 2
    _, x = linear_vae(dim=dim, latent_dim=latent_dim)
    truth = LinearDecoder(
        torch.randn(dim, latent_dim, dtype=torch.float64),
        torch.zeros(dim, dtype=torch.float64),
        0.5,
    )
    x = truth.marginal().sample((num_data,))
    covariance = torch.cov(x.T, correction=0)
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(0)
    noise = eigenvalues[latent_dim:].mean()
    log_det = eigenvalues[:latent_dim].log().sum() + (dim - latent_dim) * noise.log()
    maximum = -0.5 * (dim * math.log(2 * math.pi) + log_det + dim).item()

    decoder = LinearDecoder(0.1 * torch.randn(dim, latent_dim, dtype=torch.float64), x.mean(0), 1.0)
    vae = pv.VAE(
        pv.priors.StandardNormal(latent_dim).double(),
        decoder,
        pv.guides.DiagonalNormal(pv.networks.MLP(dim, [], 2 * latent_dim).double()),
    )
    pv.fit(vae, x, epochs=250, batch_size=100, objective=objective, learning_rate=0.01)
    evidence = decoder.marginal().log_prob(x).mean().item()
    assert evidence <= maximum
    assert evidence > maximum - 0.05
    bound = pv.evaluate(vae, x, num_samples=200)
    assert bound.mean("elbo") > maximum - 0.05
    error = np.std(bound.elbo - decoder.marginal().log_prob(x).detach().numpy()) / math.sqrt(400)
    assert bound.mean("elbo") <= evidence + 5 * error


def test_the_bernoulli_density_is_pyro_s_also_far_out():
    logits = torch.linspace(-200, 200, 801, dtype=torch.float64)[:, None]
    ours = pv.likelihoods.Bernoulli(lambda z: z)(logits)
    for x in (torch.zeros(1), torch.ones(1)):
        theirs = torch.distributions.Bernoulli(logits=logits).log_prob(x.double())
        torch.testing.assert_close(ours.log_prob(x.double()), theirs[:, 0], rtol=0, atol=1e-12)
