"""Plots of images and of diagnostics contain the arrays that they are given."""

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae import plots


def test_plots_of_images():
    decoder, encoder = pv.networks.MLP(2, [8], (1, 6, 5)), pv.networks.MLP((1, 6, 5), [8], 4)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(decoder),
        pv.guides.DiagonalNormal(encoder),
    )
    x = (torch.rand(30, 1, 6, 5) < 0.5).float()
    tree = pv.from_pyro_svi(vae.model, vae.guide, model_args=(x,), num_samples=40)
    figure = plots.predictive(tree, [0, 7, 3], "posterior predictive")
    (axes,) = figure.axes
    # Five rows of three images in frames of one pixel.
    assert axes.images[0].get_array().shape == (5 * 8, 3 * 7)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["x", "mean"]
    picture = axes.images[0].get_array()
    np.testing.assert_array_equal(picture[1:7, 8:13], x[7, 0])
    figure = plots.khat(pv.elpd_marginal(tree), x, count=4)
    assert figure.axes[1].images[0].get_array().shape == (6, 4 * 5)
    latents = pv.collapse(vae, x)
    plots.kl_by_dimension(latents.kl, latents.active, "KL")
    plots.aggregate_posterior(latents.draws, "aggregate posterior")
    split = pv.gaps(vae, x[:5], num_steps=5, num_samples=30)
    bars = plots.gaps(split.approximation, split.amortization, "gaps").axes[0].containers
    tops = [bar.get_y() + bar.get_height() for bar in bars[1]]
    np.testing.assert_allclose(tops, np.sort(split.log_likelihood - split.elbo), rtol=1e-5)
