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
from pyro.distributions.transforms import AffineTransform, HaarTransform
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
    "neutra": (neutra, {"mu_shared_latent"}, 5 * np.log(0.3)),
}
GUIDES = (AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal)
COMPUTED = ((), ("outside",), ("plate", "event"), ("used", "total"))
CELLS = [
    (reparam, GUIDES[i % len(GUIDES)], computed, factor)
    for i, (reparam, computed, factor) in enumerate(
        itertools.product(REPARAMS, COMPUTED, (None, "plate", "outside"))
    )
]


@pytest.mark.thinned(5)
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


# z_n ~ N(1/2, 4 I) in two dimensions, x_n ~ N(z_n, I). The posterior of z_n is N(mean(x_n), 4/5 I).
X = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-0.4, 0.8]], dtype=torch.float64)
EVIDENCE = norm.logpdf(X.numpy(), 0.5, 5**0.5).sum(-1)


def local_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(ZERO + 0.5, 2.0).expand([2]).to_event(1))
        pyro.deterministic("length", z.norm(dim=-1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def halves(mean, sd):
    return {f"z_split_{i}": (mean[..., i : i + 1], sd) for i in range(2)}


# Reparameterization of z, and the exact posterior mean and sd of its latents given those of z.
LOCAL = {
    "none": (None, lambda mean, sd: {"z": (mean, sd)}),
    "loc scale": (
        LocScaleReparam(0.0),
        lambda mean, sd: {"z_decentered": ((mean - 0.5) / 2, sd / 2)},
    ),
    "haar": (
        HaarReparam(dim=-1),
        lambda mean, sd: {"z_haar": (HaarTransform(dim=-1)(mean), sd)},
    ),
    "split": (SplitReparam([1, 1], dim=-1), halves),
}


def sample_plain(name, mean, sd):
    pyro.sample(name, dist.Normal(mean, sd).to_event(1))


def sample_by_factor(name, mean, sd):
    noise = dist.Normal(torch.zeros_like(mean), 1.0).to_event(1)
    u = pyro.sample(f"{name}_noise", noise, infer={"is_auxiliary": True})
    sd = torch.as_tensor(sd, dtype=mean.dtype)
    jacobian = -sd.log() * mean.shape[-1] + torch.zeros_like(u[..., 0])
    pyro.factor(f"{name}_jacobian", jacobian, has_rsample=True)
    pyro.sample(name, dist.Delta(mean + sd * u, event_dim=1))


@pytest.mark.parametrize("sample", [sample_plain, sample_by_factor])
@pytest.mark.parametrize("reparam", LOCAL)
def test_every_log_weight_of_the_exact_posterior_is_log_p_of_x(reparam, sample):
    handler, latents = LOCAL[reparam]
    model = local_model if handler is None else poutine.reparam(local_model, {"z": handler})

    def guide(x):
        with pyro.plate("data", len(x)):
            for name, posterior in latents((x + 0.125) / 1.25, 0.8**0.5).items():
                sample(name, *posterior)

    tree = pv.from_pyro_svi(model, guide, model_args=(X,), num_samples=50, batch_size=2)
    names = {"z", "length", *latents(X, 1.0)}
    assert set(tree["posterior"].data_vars) == names
    assert list(tree["log_likelihood"].data_vars) == list(tree["observed_data"].data_vars) == ["x"]
    z = tree["posterior/z"].values
    np.testing.assert_allclose(tree["posterior/length"], np.linalg.norm(z, axis=-1))
    elpd = pv.elpd_marginal(tree)
    np.testing.assert_allclose(elpd.elpd_i, EVIDENCE, rtol=1e-9)
    pair = pv.Pair(model, guide)
    if reparam == "split":  # its latents have no distribution in the model
        with pytest.raises(pv.PairError, match="ImproperUniform does not support sampling"):
            pv.evaluate(pair, X, num_samples=30)
        return
    scores = pv.evaluate(pair, X, num_samples=30)
    np.testing.assert_allclose(scores.log_likelihood, EVIDENCE, rtol=1e-9)
    np.testing.assert_allclose(scores.elbo, EVIDENCE, rtol=1e-9)


def outside(term):
    """Return the local pair with a factor of all data together."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("term", term(z, x))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    return pv.Pair(model, guide)


TERMS = {
    "constant": lambda z, x: ZERO - 1.5,
    "latents": lambda z, x: -(z.sum(-1) ** 2),
    "data": lambda z, x: -x.sum(),
    "first datum": lambda z, x: -z[..., 0],
}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("num_data", [1, 2, 5])
def test_a_term_of_all_data_makes_log_weights_joint(term, num_data):
    x = torch.linspace(-1, 2, num_data, dtype=torch.float64)
    pair = outside(TERMS[term])
    tree = pv.from_pyro_svi(pair.model, pair.guide, model_args=(x,), num_samples=6, batch_size=2)
    z = torch.as_tensor(tree["posterior/z"].values[0])
    right = dist.Normal(ZERO, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    right = (right - dist.Normal(x / 2, 1.0).log_prob(z)).sum(-1)
    right = right + torch.stack([TERMS[term](draw, x) for draw in z])
    weights = tree["sample_stats/log_weight"]
    assert weights.dims == ("chain", "draw")
    np.testing.assert_allclose(weights.values[0], right, rtol=1e-6)
    with pytest.raises(ValueError, match="log_weight is joint over all data"):
        pv.elpd_marginal(tree)
    if term == "constant":  # a prior of the parameters: no part of log p(x) of a datum
        scores = pv.evaluate(pair, x, num_samples=4000)
        right = norm.logpdf(x, 0, 2**0.5)
        np.testing.assert_allclose(scores.log_likelihood, right, atol=0.1)
    else:
        with pytest.raises(pv.PairError, match="'term' in the model is outside the plate over the"):
            pv.evaluate(pair, x, num_samples=5)


def test_two_plates_without_rows_have_joint_log_weights():
    y = torch.arange(6, dtype=torch.float64).reshape(2, 3)

    def model():
        gene, cell = pyro.plate("gene", 2, dim=-2), pyro.plate("cell", 3, dim=-1)
        with gene:
            a = pyro.sample("a", dist.Normal(ZERO, 1.0))
        with cell:
            b = pyro.sample("b", dist.Normal(ZERO, 1.0))
        with gene, cell:
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    tree = pv.from_pyro_svi(model, AutoNormal(model), num_samples=5)
    a, b = (torch.as_tensor(tree[f"posterior/{name}"].values[0]) for name in "ab")
    mean = a.reshape(5, 2, 1) + b.reshape(5, 1, 3)
    right = dist.Normal(mean, 1.0).log_prob(y).sum((1, 2))
    for values in (a, b):
        right = right + dist.Normal(ZERO, 1.0).log_prob(values).flatten(1).sum(1)
    stats = tree["sample_stats"]
    np.testing.assert_allclose((stats["log_weight"] + stats["log_q"]).values[0], right, rtol=1e-6)
    assert tree["log_likelihood/y"].dims == ("chain", "draw", "gene", "cell")
    local = pv.from_pyro_svi(model, AutoNormal(model), num_samples=5, obs_plate="cell")
    assert local["sample_stats/log_weight"].dims == ("chain", "draw")


def test_latents_in_a_plate_are_never_observations():
    """A model of computed values alone observes nothing."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(ZERO + 0.5, 2.0))
            pyro.deterministic("x", z)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z_decentered", dist.Normal(ZERO, 1.0))

    changed = poutine.reparam(model, {"z": LocScaleReparam(0.0)})
    for work in (
        lambda: pv.from_pyro_svi(changed, guide, model_args=(Y,)),
        lambda: pv.check(pv.Pair(changed, guide), Y),
        lambda: pv.evaluate(pv.Pair(changed, guide), Y),
    ):
        with pytest.raises(pv.PairError, match="the model has no observed site"):
            work()
