"""`check`: what does not fit is said in a sentence before a minute is spent."""

import math

import pytest
import torch

import pyro_vae as pv
from tests.test_vae import small_vae


def test_the_table_shows_both_programs():
    x = (torch.rand(8, 1, 4, 4) < 0.5).float()
    table = small_vae().check(x)
    assert table.model["z"].event_shape == table.guide["z"].event_shape == (3,)
    assert table.model["x"].batch_shape == (8,)
    assert "Boolean" in str(table)


def parts(**changes):
    return small_vae().replace(**changes)


ONES = torch.ones(8, 1, 4, 4)


@pytest.mark.parametrize(
    ("vae", "x", "sentence"),
    [
        (small_vae(), 0.5 * ONES, "binarize"),
        (small_vae(), 0.5 * ONES, "ContinuousBernoulli"),
        (small_vae(), 200.0 * ONES, "x / 255"),
        (small_vae(), -ONES, r"\[-1, -1\].*outside the likelihood's support Boolean"),
        (small_vae(), math.nan * ONES, "NaN"),
        (small_vae(), math.inf * ONES, "infinite"),
        (small_vae(), ONES.byte(), "dtype torch.uint8; floating point is expected"),
        (small_vae(), ONES[:0], "at least one datum"),
        (small_vae(), ONES[:, :, :3], r"the guide fails on x of shape \(8, 1, 3, 4\)"),
        (small_vae(), ONES.double(), "float64"),
        (small_vae(), "digits", "torch tensor, got str"),
        (
            parts(prior=pv.priors.StandardNormal(2)),
            ONES,
            r"'z' has event shape \(2,\) in the model's prior and \(3,\) in the guide",
        ),
        (
            parts(likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP(5, [], (1, 4, 4)))),
            ONES,
            r"the model fails.*\(\*batch, 5\), got \(8, 3\)",
        ),
        (
            parts(likelihood=pv.likelihoods.Bernoulli(pv.networks.MLP(3, [], (4, 4)))),
            ONES,
            r"has shape \(1, 4, 4\), but the likelihood describes one of shape \(4, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(vae, x, sentence):
    with pytest.raises(pv.PairError, match=sentence):
        vae.check(x)


def test_parts_refuse_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        pv.priors.StandardNormal(0)
    with pytest.raises(ValueError, match="sizes of at least 1"):
        pv.networks.MLP(3, [0], 4)
    with pytest.raises(ValueError, match="activation 'tan' is unknown"):
        pv.networks.MLP(3, [4], 4, activation="tan")
    with pytest.raises(ValueError, match=r"output is \(2 \* latent_dim,\)"):
        pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 5))
    with pytest.raises(ValueError, match="output_bias has shape"):
        pv.networks.MLP(3, [], (4, 4), output_bias=torch.zeros(3))
