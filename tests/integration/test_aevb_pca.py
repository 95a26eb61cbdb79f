"""Section 4 of the paper: the linear VAE is principal component analysis."""

import math
from functools import partial

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from sklearn import decomposition

import pyro_vae as pv
from tests.support.linear_gaussian import ExactPosterior, LinearDecoder, linear_vae


def spread_data(num_data=400, dim=6):
    """Data with well separated variances along random directions."""
    directions = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    deviations = torch.tensor([3.0, 2.0, 1.2, 0.5, 0.5, 0.5], dtype=torch.float64)
    return torch.randn(num_data, dim, dtype=torch.float64) * deviations @ directions.T + 1


def test_maximum_likelihood_of_the_linear_model_is_pca(script):
    """The closed form is a stationary point of the exact evidence, and it spans PCA's subspace."""
    pca, x = script("pca"), spread_data()
    weight, noise = pca.maximum_likelihood(x, 3)
    decoder = LinearDecoder(weight, x.mean(0), noise.sqrt().item())
    evidence = decoder.marginal().log_prob(x).mean()
    for gradient in torch.autograd.grad(evidence, list(decoder.parameters())):
        assert gradient.abs().max() < 1e-9
    sklearn_pca = decomposition.PCA(3).fit(x.numpy())
    components = torch.tensor(sklearn_pca.components_.T)
    assert pca.angles(weight, components).max() < 1e-4
    assert pca.angles(weight, components[:, [0, 1]] + 0.1).max() > 1
    assert noise.item() == pytest.approx(sklearn_pca.noise_variance_ * 399 / 400, rel=1e-9)


def test_reconstructions_become_pca_s_projections_without_noise(script):
    """Section 4: s2 -> 0. The way there is s2: E[x|z=E[z|x]] = U (1 - s2/L) U'(x - mu) + mu."""
    pca, x = script("pca"), spread_data()
    directions, variances = pca.principal_components(x, 3)
    scores = (x - x.mean(0)) @ directions
    for s2 in (1e-1, 1e-4, 1e-8):
        weight = directions * (variances[:3] - s2).sqrt()
        decoder = LinearDecoder(weight, x.mean(0), math.sqrt(s2))
        vae, _ = linear_vae(dim=6)
        vae = vae.replace(likelihood=decoder, guide=ExactPosterior(decoder))
        shrunk = scores * (1 - s2 / variances[:3]) @ directions.T + x.mean(0)
        torch.testing.assert_close(vae.reconstruct(x), shrunk, rtol=0, atol=1e-6)
    projected = scores @ directions.T + x.mean(0)
    torch.testing.assert_close(vae.reconstruct(x), projected, rtol=0, atol=1e-6)


def test_a_trained_linear_vae_finds_the_principal_components(script):
    """The columns themselves, not the subspace alone: a diagonal guide fixes the rotation."""
    pca, x = script("pca"), spread_data()
    vae = pca.linear_vae(x, 3)
    optim = partial(torch.optim.Adam, lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR
    pv.fit(vae, x, epochs=200, batch_size=100, optimizer=optim, schedule=schedule,
           objective=TraceMeanField_ELBO())  # fmt: skip
    exact, _ = pca.maximum_likelihood(x, 3)
    learned = pca.decoder_matrix(vae)
    assert pca.angles(learned, exact).max() < 2
    cosines = torch.nn.functional.cosine_similarity(learned, exact, dim=0).abs()
    assert cosines.min() > 0.99
    torch.testing.assert_close(learned.norm(dim=0), exact.norm(dim=0), rtol=0.05, atol=0)
