"""Pairs without a posterior of each datum that `refine` can find are refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from tests.laws.test_refined_pairs import X, pair_of


def normal(x):
    pyro.sample("z", dist.Normal(0 * x, 1.0))


def subsampled():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(2 * z, 0.5), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=2) as rows:
            pyro.sample("z", dist.Normal(0 * x[rows], 0.5))

    return pv.Pair(model, guide)


def without_latents():
    return pair_of(lambda x: pyro.sample("x", dist.Normal(0 * x, 1.0), obs=x), lambda x: None)


def of_a_class():
    def model(x):
        y = pyro.sample("y", dist.Bernoulli(0 * x + 0.5))
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(y, 1.0)), 1.0), obs=x)

    def guide(x):
        pyro.sample("y", dist.Bernoulli(0 * x + 0.5))
        normal(x)

    return pair_of(model, guide)


def with_a_global():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(loc, 1.0)), 1.0), obs=x)

    def guide(x):
        pyro.sample("loc", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            normal(x)

    return pv.Pair(model, guide)


def impossible():
    def model(x):
        z = pyro.sample("z", dist.Normal(0 * x, 1.0))
        pyro.factor("never", torch.where(x > 1, -torch.inf, 0.0) + 0 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return pair_of(model, normal)


REFUSED = {
    subsampled: "subsample",
    without_latents: "no latent",
    of_a_class: "'y' is discrete",
    with_a_global: "outside the plate",
    impossible: r"log p\(x\) of 1 data is not finite \(first at datum 2\)",
}


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: pair.__name__)
def test_a_pair_without_a_refined_posterior_is_refused(pair):
    with pytest.raises(ValueError, match=REFUSED[pair]):
        pv.refine(pair(), X)
    if pair is subsampled:
        with pytest.raises(pv.PairError, match=REFUSED[pair]):
            pv.evaluate(pair(), X, num_samples=10)
