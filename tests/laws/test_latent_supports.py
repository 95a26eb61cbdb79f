"""Guides on every support for priors on every support: right numbers, or a refusal.

A guide can be trained if its support is in that of the prior. Its weights estimate p(x) if the
supports are equal, or if p(x, z) is zero on the difference. A refined proposal does not need the
guide's density. All densities of a cell are run on the same data, and log p(x) is compared with
quadrature.
"""

import functools
import math
import random
import warnings
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms

import pyro_vae as pv
from pyro_vae.pairs.log_weights import pareto_khat
from tests.laws.test_refined_pairs import X, pair_of

PI = math.pi


@dataclass
class Side:
    """A distribution of a latent, as prior or guide.

    Attributes:
        make: Function of ones of the data's batch shape.
        support: Name of its support, a key of `INSIDE`.
        zero_outside: Whether its density outside the support is zero.
    """

    make: object
    support: str
    zero_outside: bool = False


def through(base, *parts):
    return dist.TransformedDistribution(base, list(parts))


SCALARS = {
    "Normal": Side(lambda o: dist.Normal(0 * o, 1.0), "real"),
    "StudentT": Side(lambda o: dist.StudentT(5.0, 0 * o, 1.0), "real"),
    "Normal mixture": Side(
        lambda o: dist.MixtureSameFamily(
            dist.Categorical(o.unsqueeze(-1).expand(*o.shape, 2)),
            dist.Normal(o.unsqueeze(-1) * torch.tensor([-1.0, 1.0]).to(o), 1.0),
        ),
        "real",
    ),
    "Uniform(0, 2)": Side(lambda o: dist.Uniform(0 * o, 2.0), "[0, 2]", True),
    "scaled sigmoid": Side(
        lambda o: through(
            dist.Normal(0 * o, 1.0), transforms.SigmoidTransform(), transforms.AffineTransform(0, 2)
        ),
        "[0, 2]",
    ),
    "Uniform(-pi, pi)": Side(lambda o: dist.Uniform(-PI * o, PI), "circle", True),
    "VonMises": Side(lambda o: dist.VonMises(0 * o, 1.0), "circle"),
    "Beta": Side(lambda o: dist.Beta(2 * o, 2.0), "[0, 1]"),
    "Exponential": Side(lambda o: dist.Exponential(o), "positive"),
    "Gamma": Side(lambda o: dist.Gamma(2 * o, 2.0), "positive"),
    "HalfNormal": Side(lambda o: dist.HalfNormal(o), "positive", True),
    "LogNormal": Side(lambda o: dist.LogNormal(0 * o, 1.0), "positive"),
    "Pareto": Side(lambda o: dist.Pareto(o, 3.0), "above 1"),
    "Poisson": Side(lambda o: dist.Poisson(2 * o), "counts"),
    "Geometric": Side(lambda o: dist.Geometric(0.5 * o), "counts"),
    "Bernoulli": Side(lambda o: dist.Bernoulli(0.5 * o), "bits"),
}


def vector(make):
    """Return a distribution of three entries."""
    return lambda o: make(o.unsqueeze(-1).expand(*o.shape, 3)).to_event(1)


VECTORS = {
    "Normal": Side(vector(lambda o: dist.Normal(0 * o, 1.0)), "real"),
    "MultivariateNormal": Side(
        lambda o: dist.MultivariateNormal(
            0 * o.unsqueeze(-1).expand(*o.shape, 3), torch.eye(3).to(o)
        ),
        "real",
    ),
    "LogNormal": Side(vector(lambda o: dist.LogNormal(0 * o, 1.0)), "positive"),
    "VonMises": Side(vector(lambda o: dist.VonMises(0 * o, 1.0)), "circle"),
    "Beta": Side(vector(lambda o: dist.Beta(2 * o, 2.0)), "[0, 1]"),
    "ordered": Side(
        lambda o: through(
            vector(lambda o: dist.Normal(0 * o, 1.0))(o), transforms.OrderedTransform()
        ),
        "ordered",
    ),
    "Dirichlet": Side(
        lambda o: dist.Dirichlet(2 * o.unsqueeze(-1).expand(*o.shape, 3)), "simplex"
    ),
    "softmaxed": Side(
        lambda o: through(
            dist.Normal(0 * o.unsqueeze(-1).expand(*o.shape, 2), 1.0).to_event(1),
            transforms.StickBreakingTransform(),
        ),
        "simplex",
    ),
    "ProjectedNormal": Side(
        lambda o: dist.ProjectedNormal(o.unsqueeze(-1).expand(*o.shape, 3)), "sphere"
    ),
    "Bernoulli": Side(vector(lambda o: dist.Bernoulli(0.5 * o)), "bits"),
    "Poisson": Side(vector(lambda o: dist.Poisson(o)), "counts"),
}  # fmt: skip

# Supports by those that they are in. A set of another measure is in none of them.
INSIDE = {
    "real": set(),
    "positive": {"real"},
    "above 1": {"positive", "real"},
    "circle": {"real"},
    "[0, 1]": {"[0, 2]", "circle", "positive", "real"},
    "[0, 2]": {"circle", "positive", "real"},
    "ordered": {"real"},
    "simplex": set(),
    "sphere": set(),
    "counts": set(),
    "bits": {"counts"},
}
DISCRETE, SURFACE = {"counts", "bits"}, {"simplex", "sphere"}


def measure(side):
    return (
        "discrete" if side.support in DISCRETE else side.support if side.support in SURFACE else ""
    )


def fits(inner, outer):
    """Return whether a support is a part of another one."""
    return inner.support == outer.support or outer.support in INSIDE[inner.support]


GRIDS = {"scalars": SCALARS, "vectors": VECTORS}
CELLS = [(grid, p, q) for grid, sides in GRIDS.items() for p in sides for q in sides]
WEIGHTED = random.Random(0).sample(CELLS, 150)  # a part, to save time


def pair(grid, p, q):
    sides = GRIDS[grid]

    def model(x):
        z = pyro.sample("z", sides[p].make(torch.ones_like(x)))
        z = z if grid == "scalars" else z[..., 0] - z[..., 2]
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    return pair_of(model, lambda x: pyro.sample("z", sides[q].make(torch.ones_like(x))))


def attempt(function):
    """Return the result, or None if the pair is refused."""
    try:
        return function()
    except pv.PairError as error:
        if "latent 'z' lies on" not in str(error):
            raise
        return None


def log_weights(pair):
    """Return log weights of a tree; empty without any, None if the pair is refused."""

    def tree():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pv.from_pyro_svi(
                pair.model, pair.guide, model_args=(X,), num_samples=500, seed=0,
                groups=("posterior", "sample_stats"),
            )  # fmt: skip

    tree = attempt(tree)
    if tree is None:
        return None
    stats = tree.children.get("sample_stats", {})
    return stats["log_weight"].to_numpy()[0] if "log_weight" in stats else np.zeros(0)


def exact(p):
    """Return log p(x) under a prior of one latent."""
    side = SCALARS[p]
    low, high = {
        "real": (-40.0, 40.0), "circle": (-PI, PI), "[0, 2]": (0.0, 2.0), "[0, 1]": (0.0, 1.0),
        "positive": (0.0, 80.0), "above 1": (1.0, 81.0),
    }.get(side.support, (0.0, 0.0))  # fmt: skip
    if high:
        number = 160_000
        step = (high - low) / number
        z = low + step * (torch.arange(number, dtype=torch.float64) + 0.5)
    else:
        step, z = 1.0, torch.arange(2.0 if side.support == "bits" else 60.0, dtype=torch.float64)
    with pyro.validation_enabled(False):
        prior = side.make(torch.ones_like(z)).log_prob(z)
    terms = dist.Normal(z, 0.7).log_prob(X[:, None]) + prior
    return (terms.logsumexp(-1) + math.log(step)).numpy()


def is_right(weights, p):
    """Return whether the mean of weights is p(x), up to five standard errors, or k-hat is high."""
    found = torch.from_numpy(weights).double()
    relative = (found - torch.from_numpy(exact(p))).exp()
    error = relative.std(0) / len(relative) ** 0.5
    right = (relative.mean(0) - 1).abs() < 5 * error + 1e-3
    khat = pareto_khat(found)
    return bool((right | ~(khat <= 0.67)).all())


def is_trainable(grid, p, q):
    prior, guide = GRIDS[grid][p], GRIDS[grid][q]
    return measure(prior) == measure(guide) and fits(guide, prior)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.filterwarnings("ignore::pyro_vae.data.DataWarning")
def test_guides_inside_the_support_of_the_prior_can_be_trained(grid):
    for _, p, q in [cell for cell in CELLS if cell[0] == grid]:
        found = attempt(functools.partial(pv.check, pair(grid, p, q), X))
        assert (found is not None) == is_trainable(grid, p, q), (p, q)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("part", range(10))
def test_weights_need_a_guide_on_all_of_the_support(part):
    for grid, p, q in WEIGHTED[part::10]:
        prior, guide, cell = GRIDS[grid][p], GRIDS[grid][q], pair(grid, p, q)
        scores = attempt(functools.partial(pv.evaluate, cell, X, num_samples=10))
        right = is_trainable(grid, p, q) and fits(prior, guide)
        assert (scores is not None) == right, (p, q)
        weights = log_weights(cell)
        accepted = measure(prior) == measure(guide) and (fits(guide, prior) or prior.zero_outside)
        assert (weights is not None) == accepted, (p, q)
        if accepted:
            assert bool(weights.size) == fits(prior, guide), (p, q)
            if weights.size and grid == "scalars":
                assert is_right(weights, p), (p, q)


STARTS = [
    (p, q)
    for p in SCALARS
    for q in SCALARS
    if measure(SCALARS[p]) == measure(SCALARS[q]) == ""
    and (fits(SCALARS[q], SCALARS[p]) or p == "VonMises")
]


@pytest.mark.thinned(2)
@pytest.mark.parametrize("p", dict.fromkeys(p for p, _ in STARTS))
def test_refined_proposals_need_no_density_of_the_guide(p):
    for q in [q for start, q in STARTS if start == p][::3]:
        posterior = pv.refine(pair("scalars", p, q), X, num_samples=400, num_rounds=1)
        assert is_right(posterior.log_weights, p), (p, q)
        assert (posterior.khat < 0.7).mean() > 0.5


def test_a_smaller_support_is_enough_if_p_is_zero_elsewhere():
    """x ~ Uniform(0, z), z ~ Pareto(1, 3): the posterior is Pareto(max(1, x), 4)."""
    x = torch.tensor([0.5, 1.5, 4.0]).double()

    def model(x):
        z = pyro.sample("z", dist.Pareto(torch.ones_like(x), 3.0))
        pyro.sample("x", dist.Uniform(0.0, z), obs=x)

    cell = pair_of(model, lambda x: pyro.sample("z", dist.Pareto(x.clamp(min=1.0), 4.0)))
    log_p = math.log(3 / 4) - 4 * x.clamp(min=1.0).log()
    scores = pv.evaluate(cell, x, num_samples=3)
    np.testing.assert_allclose(scores.elbo, log_p, rtol=0, atol=1e-12)
    tree = pv.from_pyro_svi(cell.model, cell.guide, model_args=(x,), num_samples=3)
    log_weight = tree["sample_stats/log_weight"].to_numpy()
    np.testing.assert_allclose(log_weight, log_p.expand(1, 3, 3), rtol=0, atol=1e-12)


def bounded(low, high):
    """Return x ~ N(z, 0.7) with bounds of z that are different for each datum."""

    def sampled(x, low, high):
        return pyro.sample("z", dist.Uniform(low, high))

    cell = pair_of(
        lambda x, *ends: pyro.sample("x", dist.Normal(sampled(x, *ends), 0.7), obs=x), sampled
    )
    normal = torch.distributions.Normal(X, 0.7)
    return cell, (X, low, high), ((normal.cdf(high) - normal.cdf(low)) / (high - low)).log()


def test_bounds_may_differ_between_data():
    cell, data, exact = bounded(torch.tensor([-2.0, 0.0, 1.0]).double(), 3 + X.abs())
    found = [
        pv.evaluate(cell, data, num_samples=2000).log_likelihood,
        pv.refine(cell, data, num_samples=2000).log_likelihood,
        pv.ais(cell, data, num_chains=50, num_temperatures=50).lower,
    ]
    np.testing.assert_allclose(found, exact.expand(3, 3), rtol=0, atol=0.06)
    tree = pv.from_pyro_svi(
        cell.model, cell.guide, model_args=data, num_samples=200, posterior="resampled", seed=0
    )
    z = tree["posterior/z"].to_numpy()[0]
    assert ((z > data[1].numpy()) & (z < data[2].numpy())).all()


def test_bounds_that_depend_on_a_latent_are_not_refined():
    def sampled(x):
        a = pyro.sample("a", dist.Uniform(0 * x, 2.0))
        return pyro.sample("b", dist.Uniform(0 * x, a))

    cell = pair_of(lambda x: pyro.sample("x", dist.Normal(sampled(x), 0.7), obs=x), sampled)
    b = torch.linspace(1e-6, 2, 100_001, dtype=torch.float64)
    prior = ((2 / b).log() / 2).log()  # of b
    exact = (dist.Normal(b, 0.7).log_prob(X[:, None]) + prior).logsumexp(-1) + math.log(2e-5)
    scores = pv.evaluate(cell, X, num_samples=4000)
    np.testing.assert_allclose(scores.log_likelihood, exact, rtol=0, atol=0.05)
    for function in (pv.refine, pv.ais):
        with pytest.raises(
            pv.PairError, match=r"the bounds of latent 'b'.* depend on other latents"
        ):
            function(cell, X)


@pytest.mark.parametrize("p", ["Normal", "VonMises"])
def test_every_consumer_of_weights_refuses(p):
    encoder = torch.nn.Linear(1, 1).double()

    def guide(x):
        loc = encoder(x.unsqueeze(-1)).squeeze(-1)
        q = dist.LogNormal(loc, 1.0) if p == "Normal" else dist.Normal(loc, 1.0)
        pyro.sample("z", q)

    cell = pv.Pair(pair("scalars", p, p).model, pair_of(None, guide).guide)
    for run in (
        lambda: pv.evaluate(cell, X, num_samples=10),
        lambda: pv.diagnose(cell, X, num_samples=10, num_simulations=0, num_gap_data=0),
        lambda: pv.diagnose(cell, X, num_samples=10, refine=True, num_simulations=0),
        lambda: pv.gaps(cell, X, encoder=encoder, num_steps=1, num_samples=10),
    ):
        with pytest.raises(pv.PairError, match=f"latent 'z' lies on .* a {p}, but the guide's"):
            run()
    refined = pv.evaluate(cell, X, num_samples=1000, proposal="refined")
    np.testing.assert_allclose(refined.log_likelihood, exact(p), rtol=0, atol=0.1)
