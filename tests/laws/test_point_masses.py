"""A point mass has no density: guides with one are refused by all that weights their samples.

A cell is a way to write the guide, and a function that uses log q(z|x). The latents are
a ~ N(0, 1) and b ~ N(0, 1), and x ~ N(a + b, 0.1) has a closed form. Refinement needs no density.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal

import pyro_vae as pv
from pyro_vae.pairs.sampler import Sampler
from tests.laws.test_refined_pairs import X, pair_of

NOISE = 0.1
EXACT = dist.Normal(torch.zeros_like(X), (2 + NOISE**2) ** 0.5).log_prob(X)
AUXILIARY = {"is_auxiliary": True}


def latents(x):
    a = pyro.sample("a", dist.Normal(0 * x, 1.0))
    return a + pyro.sample("b", dist.Normal(0 * x, 1.0))


def model(x):
    pyro.sample("x", dist.Normal(latents(x), NOISE), obs=x)


def normal(x, scale=0.8):
    return pyro.sample("a", dist.Normal(x / 2, scale))


def at(value, **settings):
    return pyro.sample("b", dist.Delta(value, **settings))


def shifted(value):
    return dist.TransformedDistribution(dist.Delta(value), [transforms.AffineTransform(1.0, 2.0)])


def auxiliary(x, *names):
    """Compute latents from one auxiliary variable."""
    u = pyro.sample("u", dist.Normal(x / 2, 0.8), infer=AUXILIARY)
    for name in names:
        pyro.sample(name, dist.Delta(u))


POINTS = {
    "fixed": lambda x: (normal(x), at(x / 2)),
    "a number": lambda x: (normal(x), at(torch.tensor(0.3).to(x))),
    "all latents": lambda x: (pyro.sample("a", dist.Delta(x / 2)), at(x / 2)),
    "masked": lambda x: (normal(x), pyro.sample("b", dist.Delta(x / 2).mask(x < 1))),
    "expanded": lambda x: (normal(x), pyro.sample("b", dist.Delta(x[:1] / 2).expand(x.shape))),
    "transformed": lambda x: (normal(x), pyro.sample("b", shifted(x))),
    "given a constant density": lambda x: (normal(x), at(x / 2, log_density=1.0)),
    "at another latent": lambda x: at(normal(x)),
    "near another latent": lambda x: at(x - normal(x) / 2),
    "transformed, at another latent": lambda x: pyro.sample("b", shifted(normal(x))),
    "at noise": lambda x: (normal(x), at(torch.randn_like(x))),
    "two from one auxiliary variable": lambda x: auxiliary(x, "a", "b"),
    "at a latent from an auxiliary variable": lambda x: (
        auxiliary(x, "a"),
        at(x / 2),
    ),
}


def with_density(x):
    """Sample without a site, and give the density."""
    normal(x)
    q = dist.Normal(x / 2, 0.8)
    value = q.sample()
    at(value, log_density=q.log_prob(value))


DENSITIES = {
    "auxiliary": lambda x: (auxiliary(x, "a"), pyro.sample("b", dist.Normal(x / 2, 0.8))),
    "given density": with_density,
}


def encoded(guide):
    """Return a pair and an encoder that is called but does nothing."""
    encoder = torch.nn.Linear(1, 1).double()
    torch.nn.init.zeros_(encoder.weight), torch.nn.init.zeros_(encoder.bias)
    return pair_of(model, lambda x: guide(x + encoder(x.unsqueeze(-1)).squeeze(-1))), encoder


def log_weight(pair):
    tree = pv.from_pyro_svi(
        pair.model, pair.guide, model_args=(X,), num_samples=2000, seed=0,
        groups=("posterior", "sample_stats"),
    )  # fmt: skip
    stats = tree.children.get("sample_stats", {})
    return stats["log_weight"].to_numpy()[0] if "log_weight" in stats else None


@pytest.mark.parametrize("name", POINTS)
def test_every_consumer_of_weights_refuses(name):
    pair, encoder = encoded(POINTS[name])
    for run in (
        lambda: pv.evaluate(pair, X, num_samples=10),
        lambda: pv.diagnose(pair, X, num_samples=10, num_simulations=0, num_gap_data=0),
        lambda: pv.diagnose(pair, X, num_samples=10, refine=True, num_simulations=0),
        lambda: pv.gaps(pair, X, encoder=encoder, num_steps=1, num_samples=10),
    ):
        with pytest.raises(pv.PairError, match=r"point mass at \[.*'b'\].* proposal='refined'"):
            run()
    with pytest.warns(UserWarning, match="point mass at .*log_weight, k-hat and evidence"):
        assert log_weight(pair) is None
    assert not Sampler(pair, X).has_density


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", POINTS)
def test_refined_proposals_start_at_a_point(name):
    pair = pair_of(model, POINTS[name])
    posterior = pv.refine(pair, X, num_samples=2000)
    assert (posterior.khat < 0.5).all()
    np.testing.assert_allclose(posterior.log_likelihood, EXACT, rtol=0, atol=0.03)
    scores = pv.evaluate(pair, X, num_samples=2000, proposal="refined")
    np.testing.assert_allclose(scores.log_likelihood, EXACT, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_of_computed_values_are_weighted(name):
    pair = pair_of(model, DENSITIES[name])
    weights = torch.from_numpy(log_weight(pair))
    bounds = weights.logsumexp(0) - math.log(len(weights))
    np.testing.assert_allclose(bounds, EXACT, rtol=0, atol=0.25)
    num_samples = 1000 if name == "given density" else 10_000  # the former runs one by one
    scores = pv.evaluate(pair, X, num_samples=num_samples)
    six_errors = 14 / math.sqrt(num_samples)
    np.testing.assert_allclose(scores.log_likelihood, EXACT, rtol=0, atol=six_errors)


@pytest.mark.parametrize("map_of", [["a"], ["b"], ["a", "b"], []])
def test_auto_guides(map_of):
    """The latents of `AutoDelta` are named, and those of `AutoNormal` have densities."""
    whole = pair_of(model, lambda x: None).model
    guide = AutoGuideList(whole)
    for kind, names in (
        (AutoDelta, map_of),
        (AutoNormal, [name for name in "ab" if name not in map_of]),
    ):
        if names:
            guide.append(kind(pyro.poutine.block(whole, expose=names)))
    if not map_of:
        assert log_weight(pv.Pair(whole, guide)).shape == (2000, len(X))
        return
    with pytest.warns(UserWarning, match="point mass at ") as caught:
        assert log_weight(pv.Pair(whole, guide)) is None
    assert any(f"point mass at {map_of} " in str(warning.message) for warning in caught)
