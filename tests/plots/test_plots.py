"""Plots of images and of diagnostics contain the arrays that they are given."""

import numpy as np
import pandas as pd
import torch

import pyro_vae as pv
from pyro_vae import plots
from pyro_vae.plots.images import title_of
from pyro_vae.reporting import images


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


def test_pairs_of_originals_and_reconstructions_are_separated_and_named():
    figure = plots.reconstructions(np.zeros((6, 4, 4)), np.zeros((6, 4, 4)), "pairs", columns=3)
    (axes,) = figure.axes
    picture = axes.images[0].get_array()
    white = np.flatnonzero((picture == 1).all(axis=1))
    assert picture.shape == (2 * 2 * 6 + 2, 3 * 6)
    assert white.tolist() == [12, 13]  # between the pairs
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "E[x|z]"] * 2


def test_a_manifold_shows_where_each_latent_rises():
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [], (1, 4, 4))),
        pv.guides.DiagonalNormal(pv.networks.MLP((1, 4, 4), [], 4)),
    )
    with torch.no_grad():  # z[0] brightens the image to the right of the figure, z[1] to the top
        vae.model.likelihood.decoder.layers[0].weight.copy_(
            torch.tensor([[1.0, 3.0]]).expand(16, 2)
        )
        axes = images._manifold(vae, "toy").axes[0]
    picture = axes.images[0].get_array()
    inner = picture.reshape(20, 6, 20, 6)[:, 2, :, 2]
    assert (np.diff(inner, axis=1) > 0).all()
    assert (np.diff(inner, axis=0) < 0).all()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "z[1]")
    across = [float(label.get_text()) for label in axes.get_xticklabels()]
    up = [float(label.get_text()) for label in axes.get_yticklabels()]
    assert across == sorted(across)
    assert up == sorted(up, reverse=True)  # the first row is the top
    assert len(across) == len(up) == 6


def test_traversals_show_values_and_both_kls():
    decoder, encoder = pv.networks.MLP(3, [4], (1, 4, 4)), pv.networks.MLP((1, 4, 4), [4], 6)
    vae = pv.VAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.Bernoulli(decoder),
        pv.guides.DiagonalNormal(encoder),
    )
    means, scales = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.ones(2, 3)
    with torch.no_grad():
        axes = images._traversals(vae, "toy", means, scales).axes[0]
    # KL of N(m, 1) to N(0, 1) is m^2 / 2.
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["z[0]: 1.0; 2.0", "z[1]: 0.2; 0.0", "z[2]: 0.0; 0.0"]
    values = [float(label.get_text()) for label in axes.get_xticklabels()]
    np.testing.assert_allclose(values, np.linspace(-2.5, 2.5, 11))
    assert "nats" in axes.get_ylabel()


def test_a_learning_curve_shows_every_epoch_and_enlarges_the_end():
    elbo = [-1000.0, -300.0, -110.0, -105.0, -102.0, -101.0, -100.5]
    history = [{"epoch": i + 1, "train_elbo": value} for i, value in enumerate(elbo)]
    axes = plots.learning_curve(history, "toy").axes[0]
    low, high = axes.get_ylim()
    assert low < -1000
    assert high > -100.5
    (inset,) = axes.child_axes
    assert inset.get_ylim()[0] > -200
    assert not plots.learning_curve(history[2:], "toy").axes[0].child_axes


def test_the_prior_is_a_circle_on_the_map():
    figure = plots.latent_map(np.eye(2), None, "toy", ("z[0]", "z[1]"), prior_centre=(0.5, -1.0))
    circles = figure.axes[0].patches
    assert [circle.radius for circle in circles] == [1, 2]
    assert {circle.center for circle in circles} == {(0.5, -1.0)}


def test_no_title_says_that_nothing_was_binarized():
    assert title_of("wine", "none", 3) == "wine, seed 3"
    assert title_of("$x", "dynamic", 0) == r"\$x, dynamic binarization, seed 0"


def test_a_frame_has_as_many_panels_as_columns():
    columns = {name: np.linspace(0.0, 1.0, 500) for name in "abc"}
    figures = [plots.marginals(x, x, "toy") for x in (columns, pd.DataFrame(columns))]
    sizes = [tuple(figure.get_size_inches()) for figure in figures]
    assert sizes[0] == sizes[1]
    assert [axes.get_title() for axes in figures[1].axes] == ["a", "b", "c"]
