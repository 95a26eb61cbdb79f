"""k-hat over a grid of weight distributions: its class is known, no warning or error escapes."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_stats.base import array_stats

import pyro_vae as pv
from pyro_vae.pairs import log_weights
from pyro_vae.pairs.khat import khat_threshold, pareto_khat, smoothed_log_weights

SIZES = (1, 2, 29, 30, 31, 99, 224, 225, 226, 1000, 5000)
SCALES = (0, 1e-12, 1e-9, 1e-3, 0.1, 1, 3, 10, 100, 200, 300, 700, 1e3, 1e4, 1e5, 1e6)
COLUMNS = 8


def strict(log_weights):
    """Return k-hat with every warning of NumPy as an error."""
    with np.errstate(all="raise"):
        return pareto_khat(np.asarray(log_weights))


def largest_share(log_weights):
    weights = np.exp(np.maximum(log_weights - log_weights.max(axis=0), -700))
    return weights.max(axis=0) / weights.sum(axis=0)


@pytest.mark.parametrize("offset", [0.0, -1e3, 1e5])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
def test_normal_log_weights_of_any_spread(size, scale, offset):
    lw = np.random.default_rng(1).normal(size=(size, COLUMNS)) * scale + offset
    khat = strict(lw)
    assert khat.shape == (COLUMNS,)
    if size < 30:
        assert np.isnan(khat).all()
        return
    assert not np.isnan(khat).any()
    limit = khat_threshold(size)
    assert (khat[largest_share(lw) > 0.5] > limit).all()
    if scale <= 1e-9:
        assert (khat == -np.inf).all()
    if 0.1 <= scale <= 200 and abs(offset) < 1e5:  # rounding in float32 is 0.1 nats at 1e5
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(khat, array_stats.psislw(-lw, axis=0)[1])
    if scale >= 10:
        assert (khat > limit).all()
    if scale >= 1e4:
        assert (khat == np.inf).all()


@pytest.mark.parametrize("scale", [0.3, 1, 3, 10, 30, 100, 1e3, 1e6])
@pytest.mark.parametrize("size", [30, 100, 226, 1000, 5000])
def test_rounded_log_weights_have_ties(size, scale):
    lw = np.round(np.random.default_rng(2).normal(size=(size, COLUMNS)) * scale)
    khat = strict(lw)
    limit = khat_threshold(size)
    assert not np.isnan(khat).any()
    assert (khat[largest_share(lw) > 0.5] > limit).all()
    if scale >= 10:
        assert (khat > limit).all()
    if scale <= 1 and size >= 1000:
        assert (khat < limit).all()


@pytest.mark.parametrize("height", [1e-7, 1e-4, 0.1, 1, 3, 12, 30, 100, 600, 800, 1e4, 1e6])
@pytest.mark.parametrize("share", ["one", 0.003, 0.05, 0.3, 0.97])
@pytest.mark.parametrize("size", [30, 100, 226, 1000, 5000])
def test_two_values_of_weights(size, share, height):
    """The effective sample size of the sample is exact: it decides if the estimate is reliable."""
    high = 1 if share == "one" else max(1, round(share * size))
    lw = np.zeros((size, 1))
    lw[:high] = height
    low = (size - high) * np.exp(-height)
    effective = (high + low) ** 2 / (high + (size - high) * np.exp(-2 * height))
    khat = strict(lw)[0]
    limit = khat_threshold(size)
    assert not np.isnan(khat)
    if effective < 2:
        assert khat > limit
    if effective > 0.999 * size or high > size / 4:  # equal weights; a tail of equal weights
        assert khat < limit


@pytest.mark.parametrize("value", [0.0, -1.5, 1e3, -1e6, 1e300, -1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", SIZES)
def test_constant_log_weights(size, dtype, value):
    lw = np.full((size, 2), np.clip(value, -1e30, 1e30) if dtype == np.float32 else value, dtype)
    expected = -np.inf if size >= 30 else np.nan
    np.testing.assert_array_equal(strict(lw), [expected] * 2)


@pytest.mark.parametrize("level", [-3.0, -100.0, -1e3, -1e4, -7e5])
@pytest.mark.parametrize("size", [30, 100, 226, 1000, 5000])
def test_weights_that_are_equal_up_to_rounding_in_float32(size, level):
    rng = np.random.default_rng(3)
    exact = np.full((size, COLUMNS), level)
    terms = rng.normal(size=exact.shape) * abs(level) / 3
    lw = (exact - terms).astype(np.float32) + terms.astype(np.float32)
    assert (strict(lw) == -np.inf).all()


@pytest.mark.parametrize(
    ("bad", "count"),
    [*itertools.product([np.nan, np.inf], [1, 7, 100]), (-np.inf, 100)],
)
def test_weights_that_are_not_finite(count, bad):
    lw = np.random.default_rng(4).normal(size=(100, 3))
    lw[:count, 1] = bad
    khat = strict(lw)
    assert np.isnan(khat[1])
    np.testing.assert_array_equal(khat[[0, 2]], strict(lw[:, [0, 2]]))


@pytest.mark.parametrize("scale", [0, 0.3, 1, 3, 30])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("size", [30, 100, 226, 1000])
def test_a_weight_of_zero_is_the_smallest_weight(size, share, scale):
    """Its log is -inf. It counts as a sample, and smoothing leaves it at zero."""
    rng = np.random.default_rng(6)
    lw = rng.normal(size=(size, COLUMNS)) * scale
    zero = rng.permuted(
        np.tile(np.arange(size) < max(1, int(share * size)), (COLUMNS, 1)), axis=1
    ).T
    tiny, lw = np.where(zero, -1e5, lw), np.where(zero, -np.inf, lw)  # exp(-1e5) is 0 in float64
    khat = strict(lw)
    np.testing.assert_array_equal(khat, strict(tiny))
    smoothed = smoothed_log_weights(lw)
    np.testing.assert_array_equal(np.isneginf(smoothed), zero)
    np.testing.assert_array_equal(np.exp(smoothed), np.exp(smoothed_log_weights(tiny)))
    np.testing.assert_allclose(np.exp(smoothed).sum(0), 1, rtol=1e-12)
    in_torch = log_weights.pareto_khat(torch.from_numpy(lw))
    np.testing.assert_array_equal(in_torch.numpy(), khat)
    assert (np.isfinite(khat) | (khat == np.inf) | (khat == -np.inf)).all()
    if (~zero).sum(0).max() == 1:
        assert (khat == np.inf).all()


def test_the_score_of_a_tree_counts_weights_of_zero():
    lw = np.random.default_rng(7).normal(size=(1, 400, 3))
    lw[:, :100] = -np.inf
    stats = xr.Dataset({"log_weight": (("chain", "draw", "data"), lw)})
    elpd = pv.elpd_marginal(xr.DataTree.from_dict({"sample_stats": stats}))
    np.testing.assert_array_equal(elpd.pareto_k, log_weights.pareto_khat(torch.tensor(lw[0])))
    np.testing.assert_allclose(elpd.elpd_i, np.log(np.exp(lw[0]).mean(0)), rtol=1e-12)
    assert not elpd.warning


def test_extreme_finite_weights():
    lw = np.zeros((100, 3))
    lw[0] = [1.7e308, -1.7e308, 1e308]
    lw[1] = [-1.7e308, 0, 1e308]
    assert (strict(lw)[[0, 2]] == np.inf).all()
    assert strict(lw)[1] == -np.inf
    assert strict(np.zeros((100, 0))).shape == (0,)


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.3, 0.7, 1.0, 2.0, 5.0])
def test_generalized_pareto_weights_have_their_shape(k):
    uniform = np.random.default_rng(5).random((5000, 50))
    excess = -np.log(uniform) if k == 0 else (uniform**-k - 1) / k
    khat = strict(np.log(excess + 1e-3))
    tail = 3 * 5000**0.5
    prior = (tail * k + 5) / (tail + 10)  # 10 samples' worth of k = 0.5
    error = 1.25 * max(1 + k, 0.5) / (tail * 50) ** 0.5  # of the median over 50 columns
    assert np.median(khat) == pytest.approx(prior, abs=5 * error + 0.02)  # and a bias


def conjugate(scale):
    """A conjugate normal pair; the guide's standard deviation is `scale` times the exact one."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale * 0.5**0.5))

    return pv.Pair(model, guide)


@pytest.mark.parametrize("num_samples", [30, 100, 300])
@pytest.mark.parametrize(("scale", "reliable"), [(1.0, True), (1e3, False), (1e5, False)])
def test_scores_and_cards_report_it(scale, reliable, num_samples):
    pair, x = conjugate(scale), torch.linspace(-2, 2, 8)
    scores = pv.evaluate(pair, x, num_samples=num_samples).khat
    card = pv.diagnose(pair, x, num_samples=num_samples, num_simulations=0, num_gap_data=0)
    tree = pv.from_pyro_svi(
        pair.model,
        pair.guide,
        model_args=(x,),
        num_samples=num_samples,
        groups=("posterior", "sample_stats"),
    )
    elpd = pv.elpd_marginal(tree)
    limit = khat_threshold(num_samples)
    for khat in (scores, card.per_datum["khat"].to_numpy(), elpd.pareto_k.to_numpy()):
        assert (khat == -np.inf).all() if reliable else (khat > limit).all()
