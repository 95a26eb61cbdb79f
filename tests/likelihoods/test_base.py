"""Likelihoods against exact densities. The decoder is the identity: z holds its outputs."""

import math

import numpy as np
import pytest
import scipy.stats as st
import torch
from torch import nn
from torch.nn.functional import softplus

from pyro_vae import likelihoods
from pyro_vae.distributions.parameters import MIN_LIKELIHOOD_SCALE
from pyro_vae.networks import MLP
from tests.support.decoders import identity, outputs, sigmoid, spread

LOC = [0.3, -1.2]


RAW = [0.5, -2.0]


SCALES = np.array([spread(raw) for raw in RAW])


REAL = [1.7, -0.4]


RATES = [0.2, 0.9]


COUNTS = [0.0, 7.0]


MEANS = np.exp(LOC)


SHAPES = np.array([sigmoid(loc) for loc in LOC])


@pytest.mark.parametrize(
    ("likelihood", "z", "x", "expected"),
    [
        (
            likelihoods.Bernoulli(identity),
            outputs(LOC),
            [0.0, 1.0],
            st.bernoulli.logpmf([0, 1], SHAPES),
        ),
        (
            likelihoods.Normal(identity, scale=0.7),
            outputs(LOC),
            REAL,
            st.norm.logpdf(REAL, LOC, 0.7),
        ),
        (
            likelihoods.Normal(identity, scale="decoder"),
            outputs(LOC, RAW),
            REAL,
            st.norm.logpdf(REAL, LOC, SCALES),
        ),
        (
            likelihoods.Normal(identity, scale=0.7, sigmoid_mean=True),
            outputs(LOC),
            REAL,
            st.norm.logpdf(REAL, SHAPES, 0.7),
        ),
        (
            likelihoods.Laplace(identity, scale="decoder"),
            outputs(LOC, RAW),
            REAL,
            st.laplace.logpdf(REAL, LOC, SCALES),
        ),
        (
            likelihoods.StudentT(identity, scale="decoder", df="decoder"),
            outputs(LOC, RAW, [0.0, 1.0]),
            REAL,
            st.t.logpdf(REAL, [spread(0, 1), spread(1, 1)], LOC, SCALES),
        ),
        (
            likelihoods.StudentT(identity, scale=2.0, df=4),
            outputs(LOC),
            REAL,
            st.t.logpdf(REAL, 4, LOC, 2.0),
        ),
        (
            likelihoods.LogNormal(identity, scale=0.5),
            outputs(LOC),
            [0.1, 3.0],
            st.lognorm.logpdf([0.1, 3.0], 0.5, scale=MEANS),
        ),
        (
            likelihoods.Beta(identity, concentration=5.0),
            outputs(LOC),
            RATES,
            st.beta.logpdf(RATES, 5 * SHAPES, 5 * (1 - SHAPES)),
        ),
        (
            likelihoods.Poisson(identity),
            outputs(LOC),
            COUNTS,
            st.poisson.logpmf(COUNTS, MEANS),
        ),
        (
            likelihoods.NegativeBinomial(identity, inverse_dispersion=2.5),
            outputs(LOC),
            COUNTS,
            st.nbinom.logpmf(COUNTS, 2.5, 2.5 / (2.5 + MEANS)),
        ),
        (
            likelihoods.ZeroInflatedNegativeBinomial(identity, inverse_dispersion=2.5),
            outputs(LOC, [0.4, 0.4]),
            COUNTS,
            np.log(
                sigmoid(0.4) * np.array([1, 0])
                + sigmoid(-0.4) * st.nbinom.pmf(COUNTS, 2.5, 2.5 / (2.5 + MEANS))
            ),
        ),
        (
            likelihoods.Categorical(identity, num_levels=3, spacing=1),
            outputs([1.0, 2.0], [0.0, 1.0], [-1.0, 0.5]),
            [2.0, 0.0],
            np.log([np.exp(-1) / np.exp([1, 0, -1]).sum(), np.exp(2) / np.exp([2, 1, 0.5]).sum()]),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_density_is_the_textbooks(likelihood, z, x, expected):
    p = likelihood(z)
    assert p.batch_shape == (1,)
    assert p.event_shape == (2,)
    log_prob = p.log_prob(torch.tensor([x], dtype=torch.float64))
    assert log_prob.item() == pytest.approx(expected.sum(), abs=1e-9)


def test_outputs_are_stacked_along_the_first_dimension_of_the_event():
    decoder = MLP(2, [], (2 * 3, 4, 5))
    p = likelihoods.Normal(decoder, scale="decoder")(torch.zeros(7, 2))
    given = decoder(torch.zeros(7, 2))
    assert p.batch_shape == (7,)
    assert p.event_shape == (3, 4, 5)
    torch.testing.assert_close(p.base_dist.loc, given[:, :3])
    torch.testing.assert_close(p.base_dist.scale, softplus(given[:, 3:]) + MIN_LIKELIHOOD_SCALE)


def test_learned_spreads_have_the_shape_that_their_name_says():
    shared = likelihoods.StudentT(MLP(2, [], (1, 3, 4)), scale="learned", df="entrywise")
    shapes = {name: tuple(p.shape) for name, p in shared.named_parameters() if "raw" in name}
    assert shapes == {"scale.raw": (), "df.raw": (1, 3, 4)}
    both = likelihoods.StudentT(MLP(2, [], (2, 3, 4)), scale="decoder", df="entrywise")
    assert both.df.raw.shape == (1, 3, 4)  # the shape of x, not of the decoder's outputs


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: likelihoods.Normal(MLP(2, [], (1, 3, 3)), scale="decoder"),
            r"Normal takes 2 outputs.*\(2 \* event_shape\[0\].*got \(1, 3, 3\)",
        ),
        (
            lambda: likelihoods.Normal(identity, scale="decoder")(torch.zeros(4, 3)),
            r"Normal takes 2 outputs.*got \(3,\)",
        ),
        (lambda: likelihoods.Normal(identity, scale=-1.0), r"scale must be .*got -1\.0"),
        (lambda: likelihoods.Normal(identity, scale="pixel"), r"'learned'.*got 'pixel'"),
        (lambda: likelihoods.Normal(identity, scale=math.nan), r"positive number.*got nan"),
        (lambda: likelihoods.Normal(identity, scale="entrywise"), "has no out_shape"),
        (lambda: likelihoods.Categorical(identity, num_levels=1), "at least 2, got 1"),
        (lambda: likelihoods.DiscretizedLogistic(identity, num_levels=0), "at least 2, got 0"),
        (lambda: likelihoods.DiscretizedLogisticMixture(identity, 0), "num_components.*got 0"),
        (lambda: likelihoods.Poisson(identity, library_size=0), "library_size.*got 0"),
        (
            lambda: likelihoods.Poisson(MLP(2, [], (1, 2, 2)), library_size=9)(torch.zeros(4, 2)),
            r"vectors of counts, got a decoder for the shape \(1, 2, 2\)",
        ),
        (lambda: likelihoods.Columns([]), "at least one likelihood"),
        (
            lambda: likelihoods.Columns([likelihoods.Bernoulli(MLP(2, [], (1, 2, 2)))])(
                torch.zeros(4, 2)
            ),
            r"vectors of columns, got a Bernoulli of event_shape \(1, 2, 2\)",
        ),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("likelihood", "bad"),
    [
        (likelihoods.Beta(identity), 0.0),
        (likelihoods.Beta(identity), 1.0),
        (likelihoods.LogNormal(identity), 0.0),
        (likelihoods.Poisson(identity), 1.5),
        (likelihoods.Categorical(identity, 2, 1), 0.5),
        (likelihoods.DiscretizedLogistic(identity, 0.1), 1 / 256),
        (likelihoods.ContinuousBernoulli(identity), 1.01),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_values_off_the_support_are_found(likelihood, bad):
    width = 2 if isinstance(likelihood, likelihoods.Categorical) else 1
    assert not likelihood(torch.zeros(1, width)).support.check(torch.tensor([[bad]])).any()
