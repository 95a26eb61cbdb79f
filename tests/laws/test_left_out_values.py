"""Guides that leave out values for some data are refused, whatever the place of these data.

A cell is a distribution of the guide, a datum for which it leaves out values with p(x, z) > 0, and
a function that weights samples. With no such datum, log p(x) is right.
"""

import contextlib
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms

import pyro_vae as pv
from pyro_vae.pairs import chunking
from tests.laws.test_refined_pairs import pair_of

NUM = 7
X = torch.linspace(-1, 2, NUM, dtype=torch.float64)

TWO_OF_THREE = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)


@dataclass
class Kind:
    """Prior and guide of a latent, functions of a tensor of zeros; the guide also of `bad`."""

    prior: object
    guide: object
    event: bool = False


def probabilities(bad, values=2):
    """Return equal probabilities, of the first value alone if bad."""
    equal = torch.full((*bad.shape, values), 1 / values, dtype=torch.float64)
    first = torch.eye(values, dtype=torch.float64)[0].expand_as(equal)
    return torch.where(bad.unsqueeze(-1), first, equal)


def scaled(base, high):
    return dist.TransformedDistribution(base, [transforms.AffineTransform(0.0, high)])


def ones(zero, values):
    return (zero.unsqueeze(-1) + 1).expand(*zero.shape, values) / values


KINDS = {
    "Categorical": Kind(
        lambda o: dist.Categorical(ones(o, 2)), lambda bad: dist.Categorical(probabilities(bad))
    ),
    "Categorical, rare": Kind(
        lambda o: dist.Categorical(torch.tensor([0.9, 0.09, 0.01]).double().expand(*o.shape, 3)),
        lambda bad: dist.Categorical(
            torch.where(bad.unsqueeze(-1), TWO_OF_THREE, probabilities(bad & False, 3))
        ),
    ),
    "OneHotCategorical": Kind(
        lambda o: dist.OneHotCategorical(ones(o, 3)),
        lambda bad: dist.OneHotCategorical(probabilities(bad, 3)),
        event=True,
    ),
    "Bernoulli(0)": Kind(
        lambda o: dist.Bernoulli(o + 0.5), lambda bad: dist.Bernoulli(0.5 * ~bad)
    ),
    "Bernoulli(1)": Kind(
        lambda o: dist.Bernoulli(o + 0.5), lambda bad: dist.Bernoulli(0.5 + 0.5 * bad)
    ),
    "one of three bits": Kind(
        lambda o: dist.Bernoulli(0.5 * ones(o, 3) * 3).to_event(1),
        lambda bad: dist.Bernoulli(
            torch.where(
                bad.unsqueeze(-1), torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0.5, 0.5, 0.5])
            ).double()
        ).to_event(1),
        event=True,
    ),
    "Binomial": Kind(
        lambda o: dist.Binomial(3, o + 0.5), lambda bad: dist.Binomial(3, 0.5 * ~bad)
    ),
    "Geometric": Kind(
        lambda o: dist.Geometric(o + 0.5), lambda bad: dist.Geometric(0.5 + 0.5 * bad)
    ),
    "Uniform": Kind(
        lambda o: dist.Uniform(o, o + 1), lambda bad: dist.Uniform(0.0 * bad, 1 - 0.5 * bad)
    ),
    "scaled Beta": Kind(
        lambda o: dist.Uniform(o, o + 1),
        lambda bad: scaled(dist.Beta(1.0 + 0.0 * bad, 1.0), (1 - 0.5 * bad).double()),
    ),
    "two Uniforms": Kind(
        lambda o: dist.Uniform(0 * ones(o, 2), 1.0).to_event(1),
        lambda bad: dist.Uniform(
            0.0 * probabilities(bad), 1 - 0.5 * torch.stack([bad, bad & False], -1)
        ).to_event(1),
        event=True,
    ),
}  # fmt: skip


def pair(kind):
    """x ~ N(weighted sum of z, 0.7)."""

    def model(x, bad):
        z = pyro.sample("z", kind.prior(0 * x)).to(x)
        pyro.sample("x", dist.Normal(z @ weights(z) if kind.event else z, 0.7), obs=x)

    return pair_of(model, lambda x, bad: pyro.sample("z", kind.guide(bad)))


def weights(z):
    return torch.arange(1.0, z.shape[-1] + 1).to(z)


def weight(pair, data):
    """Return log weights of a tree, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = pv.from_pyro_svi(
            pair.model, pair.guide, model_args=data, num_samples=50, seed=0, batch_size=2,
            groups=("posterior", "sample_stats"),
        )  # fmt: skip
    return tree.children.get("sample_stats", {}).get("log_weight")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 100)


@pytest.mark.thinned(4)
@pytest.mark.parametrize("place", [0, 3, NUM - 1])
@pytest.mark.parametrize("name", KINDS)
def test_a_datum_with_values_left_out_is_found(name, place):
    cell, data = pair(KINDS[name]), (X, torch.arange(NUM) == place)
    for run in (
        lambda: pv.evaluate(cell, data, num_samples=50),
        lambda: pv.diagnose(cell, data, num_samples=50, num_simulations=0, num_gap_data=0),
    ):
        with pytest.raises(pv.PairError, match=r"leaves out latents with p\(x, z\) > 0"):
            run()
    assert weight(cell, data) is None


@pytest.mark.parametrize("place", [0, 3, NUM - 1])
def test_gaps_find_it(place):
    encoder = torch.nn.Linear(1, 1).double()
    kind = KINDS["Uniform"]

    def guide(x, bad):
        shift = 0 * encoder(x.unsqueeze(-1)).squeeze(-1)
        pyro.sample("z", dist.Uniform(shift, 1 - 0.5 * bad + shift))

    cell = pv.Pair(pair(kind).model, pair_of(None, guide).guide)
    for bad in (torch.arange(NUM) == place, torch.zeros(NUM) == 1):
        refused = pytest.raises(pv.PairError, match="leaves out latents with p")
        with refused if bad.any() else contextlib.nullcontext():
            pv.gaps(cell, (X, bad), encoder=encoder, num_steps=1, num_samples=50)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("name", KINDS)
def test_guides_that_leave_out_nothing_are_weighted(name):
    cell, data = pair(KINDS[name]), (X, torch.zeros(NUM) == 1)
    kind = KINDS[name]
    z = kind.prior(torch.zeros(400_000, dtype=torch.float64)).sample().double()
    mean = z @ weights(z) if kind.event else z
    terms = dist.Normal(mean, 0.7).log_prob(X[:, None])
    exact = terms.logsumexp(-1) - math.log(len(z))
    scores = pv.evaluate(cell, data, num_samples=4000)
    np.testing.assert_allclose(scores.log_likelihood, exact, rtol=0, atol=0.15)
    assert weight(cell, data).shape == (1, 50, NUM)


def test_values_may_be_left_out_if_p_is_zero_there():
    """z ~ Bernoulli(0.5), x = z: the posterior has probabilities of 0 and 1."""
    x = torch.tensor([0.0, 1.0, 1.0]).double()

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0 * x + 0.5))
        pyro.sample("x", dist.Uniform(z - 0.25, z + 0.25), obs=x)

    cell = pair_of(model, lambda x: pyro.sample("z", dist.Bernoulli(x)))
    scores = pv.evaluate(cell, x, num_samples=10)
    np.testing.assert_allclose(scores.elbo, 0 * x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("logit", [-200.0, -30.0, 30.0, 200.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_that_round_to_zero_are_a_density(logit, dtype):
    cell = pair_of(
        lambda x: pyro.sample(
            "x", dist.Normal(pyro.sample("z", dist.Bernoulli(0 * x + 0.5)), 1.0), obs=x
        ),
        lambda x: pyro.sample("z", dist.Bernoulli(logits=0 * x + logit)),
    )
    pv.evaluate(cell, X.to(dtype), num_samples=10)
