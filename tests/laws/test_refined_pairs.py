"""Refined posteriors of difficult pairs: log p(x) is right, or k-hat is high."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.runtime.tables import positions

X = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)


def pair_of(model, guide):
    """Return a pair of two programs inside the plate over the data."""

    def inside(program):
        def run(x, *context):
            with pyro.plate("data", len(x)):
                program(x, *context)

        return run

    return pv.Pair(inside(model), inside(guide))


def quadrature(log_joint, low, high, number=200_001):
    """Return log p(x) for a function of latents `(number,)`, which returns `(data, number)`."""
    z = torch.linspace(low, high, number, dtype=torch.float64)
    return log_joint(z).logsumexp(-1) + math.log((high - low) / (number - 1))


def bent(z):
    return z + 0.3 * z**2


@dataclass
class Case:
    """A pair, its data, and log p(x)."""

    pair: pv.Pair
    x: Tensor | tuple[Tensor, ...]
    exact: Tensor


def with_guide(loc, scale, dtype=torch.float64):
    """x ~ N(z + 0.3 z^2, 0.5): two modes of different mass, and a wrong guide."""
    pair = pair_of(
        lambda x: pyro.sample(
            "x", dist.Normal(bent(pyro.sample("z", dist.Normal(0 * x, 1.0))), 0.5), obs=x
        ),
        lambda x: pyro.sample("z", dist.Normal(0 * x + loc, scale)),
    )

    def log_joint(z):
        return dist.Normal(bent(z), 0.5).log_prob(X[:, None]) + dist.Normal(0 * ONE, 1).log_prob(z)

    return Case(pair, X.to(dtype), quadrature(log_joint, -12, 12))


def edge():
    """p(x|z) = 0 for half of the prior."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        pyro.factor("positive", torch.where(z < 0, -torch.inf, 0.0))
        pyro.sample("x", dist.Normal(2 * z, 0.5), obs=x)

    def log_joint(z):
        return dist.Normal(2 * z, 0.5).log_prob(X[:, None]) + dist.Normal(0 * ONE, 1).log_prob(z)

    guide = pair_of(model, lambda x: pyro.sample("z", dist.Normal(0 * x, 0.5)))
    return Case(guide, X, quadrature(log_joint, 0, 9))


def angle(guide):
    """x ~ N(sin(z), 0.3) for an angle: the density of z is not normalized on the real line."""

    def model(x):
        z = pyro.sample("z", dist.VonMises(0 * x, 1.0))
        pyro.sample("x", dist.Normal(z.sin(), 0.3), obs=x)

    def log_joint(z):
        prior = dist.VonMises(0 * ONE, 1.0).log_prob(z)
        return dist.Normal(z.sin(), 0.3).log_prob(X[:, None]) + prior

    pair = pair_of(model, lambda x: pyro.sample("z", guide(x)))
    return Case(pair, X, quadrature(log_joint, -math.pi, math.pi))


def scale_mixture():
    """A heavy-tailed positive latent."""
    x = torch.tensor([0.01, 1.0, 50.0]).double()

    def model(x):
        pyro.sample("x", dist.Normal(0.0, pyro.sample("z", dist.HalfCauchy(0 * x + 2.0))), obs=x)

    def log_joint(u):
        z = u.exp()
        return dist.HalfCauchy(2 * ONE).log_prob(z) + u + dist.Normal(0.0, z).log_prob(x[:, None])

    pair = pair_of(model, lambda x: pyro.sample("z", dist.LogNormal(0 * x, 1.0)))
    return Case(pair, x, quadrature(log_joint, -60, 60))


def small_counts():
    """Gamma(0.1)-Poisson: most of the posterior of x = 0 is near zero."""
    x = torch.tensor([0.0, 1.0, 7.0]).double()

    def model(x):
        pyro.sample("x", dist.Poisson(pyro.sample("z", dist.Gamma(0 * x + 0.1, 1.0))), obs=x)

    pair = pair_of(model, lambda x: pyro.sample("z", dist.Gamma(0 * x + 1.0, 1.0)))
    return Case(pair, x, dist.NegativeBinomial(0.1 * ONE, 0.5 * ONE).log_prob(x))


def two_supports(order):
    """A real and a positive site, which the guide samples in either order."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0 * x, 1.0))
        s = pyro.sample("s", dist.Gamma(0 * x + 3.0, 2.0))
        pyro.sample("x", dist.Normal(m, s), obs=x)

    def guide(x):
        sites = {"m": dist.Normal(0 * x, 1.0), "s": dist.LogNormal(0 * x, 0.5)}
        for name in order:
            pyro.sample(name, sites[name])

    def log_joint(u):  # the normal latent is integrated out
        s = u.exp()
        prior = dist.Gamma(3 * ONE, 2 * ONE).log_prob(s) + u
        return dist.Normal(0.0, (1 + s**2).sqrt()).log_prob(X[:, None]) + prior

    return Case(pair_of(model, guide), X, quadrature(log_joint, -12, 6))


def simplex():
    """Dirichlet-categorical."""
    prior = torch.tensor([0.5, 1.0, 3.0]).double()
    x = torch.tensor([[0, 0, 0, 2], [1, 1, 2, 2], [2, 2, 2, 2]])

    def model(x):
        z = pyro.sample("z", dist.Dirichlet(prior).expand([len(x)]))
        entries = dist.Categorical(z.unsqueeze(-2)).expand([*z.shape[:-1], 4])
        pyro.sample("x", entries.to_event(1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Dirichlet(torch.ones(len(x), 3).double()))

    counts = torch.nn.functional.one_hot(x, 3).sum(1)
    terms = torch.lgamma(counts + prior) - torch.lgamma(prior)
    exact = torch.lgamma(prior.sum()) - torch.lgamma(prior.sum() + 4) + terms.sum(1)
    return Case(pair_of(model, guide), x, exact)


def conditional():
    """The prior's mean is a second row of each datum."""
    context = torch.tensor([5.0, 0.0, -3.0]).double()
    pair = pair_of(
        lambda x, c: pyro.sample(
            "x", dist.Normal(2 * pyro.sample("z", dist.Normal(c, 1.0)), 0.5), obs=x
        ),
        lambda x, c: pyro.sample("z", dist.Normal(0 * x, 0.5)),
    )
    return Case(pair, (X, context), dist.Normal(2 * context, 4.25**0.5).log_prob(X))


def masked():
    """Some entries are missing; a datum has none."""
    x = torch.stack([X, X.flip(0)], -1)
    seen = torch.tensor([[True, True], [True, False], [False, False]])

    def model(x, seen):
        z = pyro.sample("z", dist.Normal(0 * x[:, 0], 1.0)).unsqueeze(-1)
        pyro.sample("x", dist.Normal(2 * z + 0 * x, 0.5).mask(seen).to_event(1), obs=x)

    def log_joint(z):
        terms = dist.Normal(2 * z[:, None], 0.5).log_prob(x[:, None]) * seen[:, None]
        return terms.sum(-1) + dist.Normal(0 * ONE, 1.0).log_prob(z)

    pair = pair_of(model, lambda x, seen: pyro.sample("z", dist.Normal(0 * x[:, 0], 0.5)))
    return Case(pair, (x, seen), quadrature(log_joint, -9, 9, 20_001))


def minibatch():
    """The rows are a minibatch of a plate of 1,000."""

    def model(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(2 * z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(0 * x, 0.5))

    return Case(pv.Pair(model, guide), X, dist.Normal(0 * ONE, 4.25**0.5).log_prob(X))


def narrow_ridge():
    """x ~ N(z_0 + z_1, 0.001)."""
    pair = pair_of(
        lambda x: pyro.sample(
            "x",
            dist.Normal(
                pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1)).sum(-1), 1e-3
            ),
            obs=x,
        ),
        lambda x: pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)),
    )
    return Case(pair, X, dist.Normal(0 * ONE, (2 + 1e-6) ** 0.5).log_prob(X))


def ring():
    """x ~ N(|z|, 0.05) in two dimensions."""
    x = torch.tensor([0.5, 1.0, 2.5]).double()
    pair = pair_of(
        lambda x: pyro.sample(
            "x",
            dist.Normal(
                pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1)).norm(dim=-1), 0.05
            ),
            obs=x,
        ),
        lambda x: pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1)),
    )

    def log_joint(r):
        return dist.Normal(r, 0.05).log_prob(x[:, None]) + r.log() - r**2 / 2

    return Case(pair, x, quadrature(log_joint, 1e-6, 9))


def funnel():
    """Neal's funnel with an observation of its second latent."""
    x = torch.tensor([0.0, 1.0, 30.0]).double()

    def model(x):
        v = pyro.sample("v", dist.Normal(0 * x, 3.0))
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, (v / 2).exp())), 0.1), obs=x)

    def guide(x):
        pyro.sample("v", dist.Normal(0 * x, 1.0))
        pyro.sample("z", dist.Normal(0 * x, 1.0))

    def log_joint(v):
        prior = dist.Normal(0 * ONE, 3.0).log_prob(v)
        return dist.Normal(0.0, (v.exp() + 0.01).sqrt()).log_prob(x[:, None]) + prior

    return Case(pair_of(model, guide), x, quadrature(log_joint, -40, 40))


CASES: dict[str, Callable[[], Case]] = {
    "narrow guide": lambda: with_guide(0.0, 1e-3),
    "point guide": lambda: with_guide(0.0, 1e-6),
    "wide guide": lambda: with_guide(0.0, 1e4),
    "shifted guide": lambda: with_guide(1e3, 0.1),
    "guide at the smaller mode": lambda: with_guide(-3.6, 0.1),
    "float32": lambda: with_guide(0.0, 0.5, torch.float32),
    "edge": edge,
    "angle": lambda: angle(lambda x: dist.VonMises(0 * x, 1.0)),
    "angle with a normal guide": lambda: angle(lambda x: dist.Normal(0 * x + 20.0, 3.0)),
    "heavy tail": scale_mixture,
    "small counts": small_counts,
    "two supports": lambda: two_supports("ms"),
    "two supports in another order": lambda: two_supports("sm"),
    "simplex": simplex,
    "conditional": conditional,
    "masked": masked,
    "minibatch": minibatch,
    "narrow ridge": narrow_ridge,
    "ring": ring,
    "funnel": funnel,
}


@pytest.mark.parametrize("name", CASES)
def test_a_refined_bound_is_right_or_its_khat_is_high(name):
    case = CASES[name]()
    posterior = pv.refine(case.pair, case.x, num_samples=2000)
    error = posterior.log_likelihood - case.exact.numpy()
    standard_error = np.sqrt(1 / posterior.ess - 1 / posterior.num_samples)
    right = np.abs(error) < 5 * standard_error + 1e-3
    assert not np.isnan(posterior.khat).any()
    assert (right | np.isin(np.arange(len(error)), posterior.unreliable)).all()
    assert right.mean() > 0.6  # most are cured


def test_no_data_are_refused_and_one_datum_is_not():
    case = with_guide(0.0, 0.5)
    with pytest.raises(pv.data.DataError, match="empty"):
        pv.refine(case.pair, X[:0])
    assert pv.refine(case.pair, X[:1]).num_data == 1


@pytest.mark.parametrize("num_samples", [1, 2, 24])
def test_data_are_unreliable_without_a_khat(num_samples):
    posterior = pv.refine(with_guide(0.0, 0.5).pair, X, num_samples=num_samples)
    assert np.isnan(posterior.khat).all()
    assert posterior.unreliable.tolist() == [0, 1, 2]


def test_uncured_data_are_named():
    """A posterior like a banana at the second datum, which few draws cannot cure."""

    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(12), 1.0).to_event(1))
        mean = torch.where(x > 0, 3 * (z[..., ::2] ** 2 - z[..., 1::2]).sum(-1), z[..., 0])
        pyro.sample("x", dist.Normal(mean, torch.where(x > 0, 0.01, 1.0)), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x.new_zeros(len(x), 12), 1.0).to_event(1))

    pair, x = pair_of(model, guide), torch.tensor([-1.0, 9.0, -0.5]).double()
    posterior = pv.refine(pair, x)
    scores = pv.evaluate(pair, x, num_samples=1000, proposal="refined")
    for result in (posterior, scores):
        assert result.unreliable.tolist() == [1]
        assert "(data 1)" in str(result)
    assert "(data" not in str(pv.refine(pair, x[:1]))
    assert "(data" not in str(pv.evaluate(pair, x, num_samples=1000))


def test_many_uncured_data_are_named_by_the_first():
    assert positions(list(range(12))) == "\n(data 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more)"


def test_resampling_keeps_most_of_a_rare_mode():
    """Pareto smoothing takes about half of a mode that has 1% of the posterior.

    Draws reach it by the prior's share only: no component of the proposal is there.
    """
    x, z = X[1], torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    terms = dist.Normal(bent(z), 0.5).log_prob(x) + dist.Normal(0 * ONE, 1.0).log_prob(z)
    exact = float(terms.softmax(0)[z < -2].sum())
    assert 0.009 < exact < 0.011
    samples = pv.refine(with_guide(0.0, 0.5).pair, x.repeat(200)).sample(1000)["z"]
    found = (samples < -2).double().mean(0)
    error = float(found.std()) / 200**0.5
    assert 0.4 * exact < found.mean() < exact + 5 * error


COUNTS = torch.tensor([[5.0, 0, 0], [3, 2, 0], [1, 2, 2], [0, 0, 5]])


@pytest.mark.parametrize("concentration", [0.05, 0.3, 2.0])
def test_sparse_shares_in_float32_have_the_evidence_of_counts(concentration):
    """Draws of the prior are in the corners, where second derivatives overflow."""

    def model(x):
        with pyro.plate("data", len(x)):
            shares = pyro.sample("p", dist.Dirichlet(torch.full((3,), concentration)))
            pyro.sample("x", dist.Multinomial(5, probs=shares, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Dirichlet(torch.ones(len(x), 3)))

    weights = torch.full((4, 3), concentration, dtype=torch.float64)
    exact = dist.DirichletMultinomial(weights, 5).log_prob(COUNTS.double()).numpy()
    scores = pv.evaluate(pv.Pair(model, guide), COUNTS, num_samples=2000, proposal="refined")
    assert not scores.share_unreliable
    np.testing.assert_allclose(scores.log_likelihood, exact, atol=0.1)


def test_weights_of_networks_that_are_not_finite_are_named():
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(2, [], 3)),
        pv.guides.DiagonalNormal(pv.networks.MLP(3, [], 4)),
    )
    with torch.no_grad():
        next(vae.parts["likelihood"].parameters()).fill_(torch.nan)
    with pytest.raises(pv.PairError, match=r"log p\(x, z\) is not finite .* 4 of 4 data"):
        pv.refine(vae, torch.randn(4, 3), num_samples=50)
