"""Trees of reparameterized models, computed values and factors: names, shapes, exact densities.

    mu ~ N(0, 5), theta_s ~ N(mu, 2), y_s ~ N(theta_s, 3) of 4 schools, in the plate over the data.

log p(y, latents) of each draw is recomputed by hand from the returned draws.
"""

import itertools
import warnings

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineTransform
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.infer.reparam import (
    HaarReparam,
    LocScaleReparam,
    NeuTraReparam,
    SplitReparam,
    TransformReparam,
)
from scipy.stats import norm

import pyro_vae as pv
from pyro_vae.datatree.from_pyro_svi import GROUPS, PRIOR_GROUPS

Y = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
ZERO = torch.zeros((), dtype=torch.float64)


class Schools:
    """The model with the given computed values and factors."""

    def __init__(self, deterministic=(), factor=None, transformed=False):
        self.deterministic, self.factor, self.transformed = deterministic, factor, transformed

    def __call__(self, y):
        mu = pyro.sample("mu", dist.Normal(ZERO, 5.0))
        if "outside" in self.deterministic:
            pyro.deterministic("outside", 10 * mu)
        if self.factor == "outside":
            pyro.factor("term", -mu.square())
        with pyro.plate("school", len(y)):
            prior = dist.Normal(mu, 2.0)
            if self.transformed:
                noise = dist.Normal(ZERO, 1.0).expand([len(y)])
                prior = dist.TransformedDistribution(noise, AffineTransform(mu, 2.0))
            theta = pyro.sample("theta", prior)
            if "plate" in self.deterministic:
                pyro.deterministic("plate", theta.exp())
            if "event" in self.deterministic:
                both = torch.stack([theta, mu.expand_as(theta)], -1)
                pyro.deterministic("event", both, event_dim=1)
            if "used" in self.deterministic:
                theta = pyro.deterministic("used", theta + 0.0)
            if self.factor == "plate":
                pyro.factor("term", -theta.square())
            pyro.sample("y", dist.Normal(theta, 3.0), obs=y)
        if "total" in self.deterministic:
            pyro.deterministic("total", theta.sum(-1))

    def log_joint(self, mu, theta):
        """Return log p(y, mu, theta), shape `(samples,)`."""
        terms = norm.logpdf(theta, mu[:, None], 2) + norm.logpdf(Y.numpy(), theta, 3)
        terms = terms - theta**2 if self.factor == "plate" else terms
        outside = norm.logpdf(mu, 0, 5) - (mu**2 if self.factor == "outside" else 0)
        return terms.sum(-1) + outside


def computed_values(mu, theta):
    return {
        "outside": (("chain", "draw"), 10 * mu),
        "plate": (("chain", "draw", "school"), np.exp(theta)),
        "event": (
            ("chain", "draw", "school", "event_dim_0"),
            np.stack(np.broadcast_arrays(theta, mu[:, None]), -1),
        ),
        "used": (("chain", "draw", "school"), theta),
        "total": (("chain", "draw"), theta.sum(-1)),
    }


def neutra(model):
    guide = AutoMultivariateNormal(model, init_scale=0.3)
    guide(Y)
    return NeuTraReparam(guide.requires_grad_(False)).reparam(model)


# Reparameterized model, its latents, and log |d latents / d (mu, theta)| of the density.
REPARAMS = {
    "none": (lambda model: model, {"mu", "theta"}, 0.0),
    "loc scale 0": (
        lambda model: poutine.reparam(model, {"theta": LocScaleReparam(0.0)}),
        {"mu", "theta_decentered"},
        4 * np.log(2),
    ),
    "loc scale 1/2": (
        lambda model: poutine.reparam(model, {"theta": LocScaleReparam(0.5)}),
        {"mu", "theta_decentered"},
        4 * np.log(2) / 2,
    ),
    "both": (
        lambda model: poutine.reparam(
            model, {"theta": LocScaleReparam(0.0), "mu": LocScaleReparam(0.0)}
        ),
        {"mu_decentered", "theta_decentered"},
        4 * np.log(2) + np.log(5),
    ),
    "transform": (
        lambda model: poutine.reparam(model, {"theta": TransformReparam()}),
        {"mu", "theta_base"},
        4 * np.log(2),
    ),
    "neutra": (neutra, {"mu_shared_latent"}, 6 * 0 + 5 * np.log(0.3)),
}
GUIDES = (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)
COMPUTED = ((), ("outside",), ("plate", "event"), ("used", "total"))
CELLS = [
    (reparam, GUIDES[i % len(GUIDES)], computed, factor)
    for i, (reparam, computed, factor) in enumerate(
        itertools.product(REPARAMS, COMPUTED, (None, "plate", "outside"))
    )
]


@pytest.mark.parametrize(("reparam", "autoguide", "computed", "factor"), CELLS)
def test_sites_are_in_their_groups_with_exact_densities(reparam, autoguide, computed, factor):
    pyro.set_rng_seed(0)
    schools = Schools(computed, factor, transformed=reparam == "transform")
    change, latents, log_det = REPARAMS[reparam]
    model = change(schools)
    guide = autoguide(model)
    groups = {*GROUPS, *PRIOR_GROUPS} - (
        {"prior", "prior_predictive"} if reparam == "neutra" else set()
    )
    tree = pv.from_pyro_svi(model, guide, model_args=(Y,), num_samples=30, seed=0, groups=groups)
    post = {name: values.values[0] for name, values in tree["posterior"].data_vars.items()}
    assert set(post) == {"mu", "theta", *latents, *computed}
    for group in ("observed_data", "log_likelihood", "posterior_predictive"):
        assert list(tree[group].data_vars) == ["y"]
        assert tree[group]["y"].sizes["school"] == 4
    if "prior" in groups:
        assert set(tree["prior"].data_vars) == set(post)
        assert set(tree["log_prior"].data_vars) == latents
    mu, theta = post["mu"], post["theta"]
    if "theta_base" in latents or reparam == "loc scale 0":
        (noise,) = latents - {"mu"}
        np.testing.assert_allclose(theta, mu[:, None] + 2 * post[noise])
    for group in {"posterior", "prior"} & groups:
        drawn = tree[group]
        expected = computed_values(drawn["mu"].values[0], drawn["theta"].values[0])
        for name in computed:
            dims, values = expected[name]
            assert drawn[name].dims == dims
            np.testing.assert_allclose(drawn[name].values[0], values, rtol=1e-6)
    stats = tree["sample_stats"]
    log_p = (stats["log_weight"] + stats["log_q"]).values[0]
    np.testing.assert_allclose(log_p, schools.log_joint(mu, theta) + log_det, rtol=1e-5, atol=1e-4)
    with warnings.catch_warnings():  # k-hat of an untrained guide
        warnings.simplefilter("ignore", UserWarning)
        assert np.isfinite(arviz_stats.loo(tree).elpd)


def test_a_reparameterized_prior_with_a_density_is_not_sampled():
    model = neutra(Schools())
    with pytest.raises(pv.PairError, match=r"\['mu', 'theta'\].*not from the prior"):
        pv.from_pyro_svi(model, AutoNormal(model), model_args=(Y,), groups=["prior"])


LOCAL_REPARAMS = {
    "none": (),
    "loc scale 0": (("z", LocScaleReparam(0.0)),),
    "haar": (("z", HaarReparam(dim=-1)),),
    "split": (("z", SplitReparam([1, 1], dim=-1)),),
}
