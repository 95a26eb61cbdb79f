"""`sbc` ranks the pairs that scores accept, refuses the others, and is nominal on the circle."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

FAMILIES = {
    "real": lambda x: dist.Normal(0 * x, 1.0),
    "positive": lambda x: dist.LogNormal(0 * x, 1.0),
    "half": lambda x: dist.HalfNormal(1.0 + 0 * x),
    "interval": lambda x: dist.Uniform(0 * x - 1, 0 * x + 1),
    "unit": lambda x: dist.Beta(2.0 + 0 * x, 2.0),
    "circle": lambda x: dist.VonMises(0 * x + math.pi, 25.0),
    "flat circle": lambda x: dist.VonMises(0 * x, 1e-3),
    "counts": lambda x: dist.Poisson(1.0 + 0 * x),
    "bits": lambda x: dist.Bernoulli(0.5 + 0 * x),
}


def pair_of(prior, guide):
    """The data do not depend on the latent, so the prior is the posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", FAMILIES[prior](x))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def encoder(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", FAMILIES[guide](x))

    return pv.Pair(model, encoder)


def refusal(score):
    try:
        score()
    except pv.PairError as error:
        return str(error)
    return None


@pytest.mark.parametrize("prior", FAMILIES)
def test_sbc_and_evaluate_refuse_the_same_pairs(prior):
    x = torch.randn(4)
    for guide in FAMILIES:
        pair = pair_of(prior, guide)
        expected = refusal(lambda: pv.evaluate(pair, x, num_samples=3))  # noqa: B023
        assert refusal(lambda: pv.sbc(pair, x, num_simulations=3)) == expected  # noqa: B023
        if prior == guide:
            assert expected is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_exact_posterior_is_nominal(family):
    tree = pv.sbc(pair_of(family, family), torch.randn(4), num_simulations=2000, seed=1)
    assert float(tree["uniformity/z"]) > 1e-3
    for name, group in itertools.product(("z", "tarp", "density"), ("coverage", "joint_coverage")):
        if name in tree[group]:
            for level, found in zip((0.5, 0.8, 0.9, 0.95), tree[group][name], strict=True):
                assert float(found) == pytest.approx(
                    level, abs=5 * (level * (1 - level) / 2000) ** 0.5
                )


def test_a_wrong_concentration_is_rejected_across_the_cut_of_the_circle():
    FAMILIES["narrow circle"] = lambda x: dist.VonMises(0 * x + math.pi, 60.0)
    tree = pv.sbc(pair_of("circle", "narrow circle"), torch.randn(4), num_simulations=2000)
    del FAMILIES["narrow circle"]
    assert float(tree["uniformity/z"]) < 1e-6
    assert float(tree["joint_uniformity/density"]) < 1e-6
