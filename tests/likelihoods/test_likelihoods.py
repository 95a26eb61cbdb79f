"""Likelihoods against exact densities. The decoder is the identity: z holds its outputs."""

import math

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.integrate import quad
from torch import Tensor, nn
from torch.nn.functional import softplus

import pyro_vae as pv
from pyro_vae import distributions, likelihoods
from pyro_vae.distributions.parameters import MIN_LIKELIHOOD_SCALE as MIN_SCALE
from pyro_vae.networks import MLP


def identity(z: Tensor) -> Tensor:
    return z


def outputs(*rows: list[float]) -> Tensor:
    """Stack outputs as the decoder would, one row after the other, for one datum."""
    return torch.tensor(rows, dtype=torch.float64).flatten()[None]


def spread(raw: float, minimum: float = MIN_SCALE) -> float:
    return math.log1p(math.exp(raw)) + minimum


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


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


def test_log_sigmoid_has_the_value_and_gradient_of_torchs():
    logits = torch.tensor([0.0, 1e-3, -1e-3, 2, -2, 17, -17, 90, -90, 1e30, -1e30, torch.inf])
    logits.requires_grad_()
    ours, theirs = distributions.log_sigmoid(logits), nn.functional.logsigmoid(logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    gradients = [torch.autograd.grad(value.sum(), logits)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loc", [-3.0, 0.0, 0.501, 1.0, 40.0])
@pytest.mark.parametrize("scale", [1e-3, 0.05, 10.0])
def test_discretized_logistic_is_the_difference_of_distribution_functions(loc, scale):
    p = distributions.DiscretizedLogistic(
        torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64)
    )
    levels = torch.arange(256, dtype=torch.float64) / 255
    probs = p.log_prob(levels).exp().numpy()
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 255, [np.inf]])
    # Each tail by the function that resolves it.
    by_cdf = np.diff(st.logistic.cdf(edges, loc, scale))
    by_sf = -np.diff(st.logistic.sf(edges, loc, scale))
    expected = np.where(edges[1:] < loc, by_cdf, by_sf)
    np.testing.assert_allclose(probs, expected, rtol=1e-9, atol=1e-300)
    assert probs.sum() == pytest.approx(1, abs=1e-12)
    mean = (probs * levels.numpy()).sum()
    assert p.mean.item() == pytest.approx(mean, abs=1e-12)
    variance = (probs * (levels.numpy() - mean) ** 2).sum()
    assert p.variance.item() == pytest.approx(variance, abs=1e-12)


def test_discretized_logistic_keeps_its_tails_in_float32():
    loc, scale = torch.tensor(-2.0), torch.tensor(0.002)
    levels = torch.arange(256) / 255
    loc.requires_grad_()
    log_probs = distributions.DiscretizedLogistic(loc, scale).log_prob(levels)
    exact = distributions.DiscretizedLogistic(loc.double(), scale.double())
    torch.testing.assert_close(
        log_probs, exact.log_prob(levels.double()).float(), rtol=1e-5, atol=1e-5
    )
    assert log_probs[100] < -1000  # where the difference of two sigmoids is 0
    (gradient,) = torch.autograd.grad(log_probs[100], loc)
    assert gradient.item() == pytest.approx(1 / 0.002, rel=1e-3)


def test_mixture_is_the_weighted_sum_of_its_components():
    z = outputs(*[[value] for value in [0.3, -1.0, 0.2, -0.4, -3.0, -5.0]])  # logits, shifts, raw
    mixture = likelihoods.DiscretizedLogisticMixture(identity, num_components=2)(z)
    levels = (torch.arange(256, dtype=torch.float64) / 255)[:, None]
    weights = torch.tensor([0.3, -1.0], dtype=torch.float64).softmax(0)
    components = [
        distributions.DiscretizedLogistic(
            torch.tensor(centre + shift, dtype=torch.float64),
            torch.tensor(spread(raw), dtype=torch.float64),
        )
        for centre, shift, raw in [(0.25, 0.2, -3.0), (0.75, -0.4, -5.0)]
    ]
    expected = sum(w * c.log_prob(levels).exp() for w, c in zip(weights, components, strict=True))
    probs = mixture.log_prob(levels).exp()
    torch.testing.assert_close(probs, expected[:, 0], rtol=1e-9, atol=1e-12)
    assert probs.sum().item() == pytest.approx(1, abs=1e-12)
    assert mixture.mean.item() == pytest.approx((probs * levels[:, 0]).sum().item(), abs=1e-9)


@pytest.mark.parametrize("eta", [-40.0, -3.0, -0.1, -0.09, -1e-4, 0.0, 1e-3, 0.09, 2.0, 40.0])
def test_continuous_bernoulli_against_quadrature(eta):
    p = distributions.ContinuousBernoulli(torch.tensor(eta, dtype=torch.float64))

    def integrate(power: int) -> float:
        # In units of the density at its mode, so that nothing overflows.
        shift = max(eta, 0)
        return quad(lambda x: x**power * math.exp(eta * x - shift), 0, 1, epsabs=1e-13)[0]

    normalizer = math.log(integrate(0)) + max(eta, 0)
    x = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(x), eta * x - normalizer, rtol=0, atol=1e-9)
    mean = integrate(1) / integrate(0)
    assert p.mean.item() == pytest.approx(mean, abs=1e-9)
    assert p.variance.item() == pytest.approx(integrate(2) / integrate(0) - mean**2, abs=1e-9)


@pytest.mark.parametrize("eta", [-1e4, -30.0, -0.1, 0.0, 1e-6, 0.1, 17.0, 300.0])
def test_continuous_bernoulli_in_float32_has_the_value_and_gradient_of_float64(eta):
    x = torch.tensor([0.0, 0.25, 1.0])
    results = []
    for dtype in (torch.float32, torch.float64):
        logits = torch.full((3,), eta, dtype=dtype, requires_grad=True)
        log_prob = distributions.ContinuousBernoulli(logits).log_prob(x.to(dtype))
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        results.append((log_prob.detach().double(), gradient.double()))
    torch.testing.assert_close(*(log_prob for log_prob, _ in results), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*(gradient for _, gradient in results), rtol=1e-5, atol=1e-6)
    # The score of an exponential family: x - E[x].
    mean = distributions.ContinuousBernoulli(torch.tensor(eta, dtype=torch.float64)).mean
    torch.testing.assert_close(results[1][1], x.double() - mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [-200.0, -2.0, 0.0, 0.05, 5.0])
def test_continuous_bernoulli_draws_follow_its_density(eta):
    torch.manual_seed(0)
    draws = distributions.ContinuousBernoulli(torch.tensor(eta)).sample((20_000,)).numpy()

    def cdf(x: np.ndarray) -> np.ndarray:
        return x if eta == 0 else np.expm1(eta * x) / np.expm1(eta)

    assert st.kstest(draws.astype(np.float64), cdf).pvalue > 1e-4


def test_discretized_draws_follow_their_probabilities():
    torch.manual_seed(0)
    p = distributions.DiscretizedLogistic(torch.tensor(0.4), torch.tensor(0.3), num_levels=8)
    draws = p.sample((20_000,))
    assert p.support.check(draws).all()
    counts = torch.bincount((draws * 7).round().long(), minlength=8).numpy()
    probs = p.log_prob(torch.arange(8) / 7).exp().double().numpy()
    assert st.chisquare(counts, 20_000 * probs / probs.sum()).pvalue > 1e-4


def test_categorical_levels_sum_to_one_and_have_the_moments_of_their_values():
    torch.manual_seed(0)
    likelihood = likelihoods.Categorical(identity)
    p = likelihood(torch.randn(3, 256 * 2, dtype=torch.float64))
    levels = torch.arange(256, dtype=torch.float64) / 255
    entries = p.base_dist.log_prob(levels.reshape(-1, 1, 1)).exp()
    torch.testing.assert_close(entries.sum(0), torch.ones(3, 2).double(), rtol=0, atol=1e-12)
    mean = (entries * levels.reshape(-1, 1, 1)).sum(0)
    torch.testing.assert_close(p.mean, mean)
    square = (entries * levels.reshape(-1, 1, 1) ** 2).sum(0)
    torch.testing.assert_close(p.variance, square - mean**2)
    assert p.support.check(p.sample((5,))).all()
    assert not p.support.check(torch.full((3, 2), 0.5)).any()


@pytest.mark.parametrize("r", [0.7, "learned", "entrywise", "decoder"])
def test_counts_given_their_total_are_shares_of_it(r):
    decoder = MLP(2, [], 6 if r == "decoder" else 3).double()
    likelihood = likelihoods.NegativeBinomial(decoder, r, library_size=100.0).double()
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0, 0, 0], [5, 0, 2], [100, 3, 0], [1, 1, 1]], dtype=torch.float64)
    given = decoder(z).detach()
    shares = given[:, :3].softmax(-1).numpy()
    means = np.maximum(x.numpy().sum(-1, keepdims=True), 1) * shares
    if r == "decoder":
        r = (softplus(given[:, 3:]) + 1e-3).numpy()
    elif r in ("learned", "entrywise"):
        r = 1 + 1e-3
    p = likelihood(z)
    expected = st.nbinom.logpmf(x.numpy(), r, r / (r + means)).sum(-1)
    np.testing.assert_allclose(p.log_prob(x).detach().numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(p.mean.detach().numpy(), 100 * shares, rtol=1e-9)
    assert p.expand((7, 4)).log_prob(x).shape == (7, 4)


def test_outputs_are_stacked_along_the_first_dimension_of_the_event():
    decoder = MLP(2, [], (2 * 3, 4, 5))
    p = likelihoods.Normal(decoder, scale="decoder")(torch.zeros(7, 2))
    given = decoder(torch.zeros(7, 2))
    assert p.batch_shape == (7,)
    assert p.event_shape == (3, 4, 5)
    torch.testing.assert_close(p.base_dist.loc, given[:, :3])
    torch.testing.assert_close(p.base_dist.scale, softplus(given[:, 3:]) + MIN_SCALE)


def test_learned_spreads_have_the_shape_that_their_name_says():
    shared = likelihoods.StudentT(MLP(2, [], (1, 3, 4)), scale="learned", df="entrywise")
    shapes = {name: tuple(p.shape) for name, p in shared.named_parameters() if "raw" in name}
    assert shapes == {"scale.raw": (), "df.raw": (1, 3, 4)}
    both = likelihoods.StudentT(MLP(2, [], (2, 3, 4)), scale="decoder", df="entrywise")
    assert both.df.raw.shape == (1, 3, 4)  # the shape of x, not of the decoder's outputs


def test_zero_inflated_counts_can_be_expanded_after_they_were_drawn():
    p = likelihoods.ZeroInflatedNegativeBinomial(MLP(2, [], 6))(torch.zeros(4, 2))
    x = p.sample()
    torch.testing.assert_close(p.expand((5, 4)).log_prob(x), p.log_prob(x).expand(5, 4))


def columns() -> likelihoods.Columns:
    return likelihoods.Columns(
        [
            likelihoods.Normal(MLP(8, [], 2), scale=0.5),
            likelihoods.Bernoulli(MLP(8, [], 1)),
            likelihoods.Categorical(MLP(8, [], 4), num_levels=4, spacing=1),
        ],
        trunk=MLP(3, [], 8),
    )


def test_columns_add_up_the_densities_of_their_likelihoods():
    torch.manual_seed(0)
    table = columns()
    z, x = torch.randn(6, 5, 3), torch.tensor([0.3, -2.0, 1.0, 3.0])
    p = table(z)
    assert (p.batch_shape, p.event_shape) == ((6, 5), (4,))
    shared = table.trunk(z)
    normal, bernoulli, categorical = (part(shared) for part in table.likelihoods)
    expected = normal.log_prob(x[:2]) + bernoulli.log_prob(x[2:3]) + categorical.log_prob(x[3:])
    torch.testing.assert_close(p.log_prob(x), expected)
    torch.testing.assert_close(p.mean[..., 2:3], bernoulli.mean)
    torch.testing.assert_close(p.variance[..., :2], torch.full((6, 5, 2), 0.25))
    draws = p.sample((9,))
    assert draws.shape == (9, 6, 5, 4)
    assert p.support.check(draws).all()
    assert p.expand((2, 6, 5)).log_prob(x).shape == (2, 6, 5)


def test_columns_out_of_support_are_named():
    vae = pv.VAE(pv.priors.StandardNormal(3), columns(), pv.guides.DiagonalNormal(MLP(4, [], 6)))
    x = torch.tensor([[0.3, -2.0, 1.0, 3.0], [0.3, -2.0, 1.0, 4.0]])
    with pytest.raises(pv.PairError, match=r"column 3: 4 levels from 0 to 3, 1 apart"):
        vae.check(x)


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
        (lambda: likelihoods.Normal(identity, scale=-1.0), r"Normal\(scale=\).*got -1\.0"),
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
