"""`ImportanceWeighted` against closed forms and `RenyiELBO`, in float64."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.objectives import (
    ImportanceWeighted,
    per_datum,
)
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae
from tests.support.objectives import KWARGS, evaluated, gradients, imperfect_vae


def subsampled(vae, num_data, size):
    """Return the programs of a VAE in a plate over `num_data` with a subsample of `size`."""

    def run(program, x):
        with pyro.plate("data", num_data, subsample=torch.arange(size)):
            return program(x)

    def model(x):
        z = pyro.sample("z", vae.model.prior())
        pyro.sample("x", vae.decode(z), obs=x)

    return functools.partial(run, model), functools.partial(
        run, lambda x: pyro.sample("z", vae.encode(x))
    )


def test_the_importance_weighted_bound_holds_under_subsampling_and_renyi_s_does_not():
    """Pyro's RenyiELBO applies the plate's scale inside the logarithm. Its value is a bound only
    without that scale, and exceeds the evidence by far here."""
    torch.manual_seed(1)
    vae, x = linear_vae(MeanFieldPosterior, dim=4, latent_dim=2)
    x = x[:10]
    exact = vae.model.likelihood.marginal().log_prob(x).sum().item() * 100
    model, guide = subsampled(vae, 1000, 10)
    ours = ImportanceWeighted(1000)
    renyi = RenyiELBO(alpha=0, num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    assert -renyi.loss(model, guide, x) > exact + 100
    # The expected bound is below log p by var(w) / 2K E[w]^2 per datum, about 0.001.
    values = [-ours.loss(model, guide, x) / 1000 for _ in range(20)]
    mean = sum(values) / 20
    error = torch.tensor(values).std().item() / math.sqrt(20)
    assert mean < exact / 1000 + 5 * error
    assert mean > exact / 1000 - 0.01


def test_per_datum_scales_stand_outside_the_logarithm():
    vae, x = imperfect_vae()
    objective = ImportanceWeighted(7, max_plate_nesting=1)
    whole = evaluated(objective, vae, x)
    torch.manual_seed(0)
    scaled = objective.loss(per_datum(vae.model, 60), per_datum(vae.guide, 60), x)
    assert scaled == pytest.approx(whole / len(x), abs=1e-9)


def test_more_particles_never_lower_the_bound():
    """Jensen's inequality on the same noise: the bound of 2K samples is at least the mean of the
    bounds of its two halves."""
    vae, x = imperfect_vae()
    # Not vectorized: the samples of the halves are then those of the whole.
    whole, half = (ImportanceWeighted(k, vectorize_particles=False) for k in (8, 4))
    for seed in range(20):
        bound = -evaluated(whole, vae, x, seed)
        first = -evaluated(half, vae, x, seed)
        second = -half.loss(vae.model, vae.guide, x)
        assert bound > (first + second) / 2


def test_the_doubly_reparameterized_gradient_of_the_guide_has_the_smaller_variance():
    vae, x = linear_vae(MeanFieldPosterior, dim=4, latent_dim=2)
    loc = nn.Parameter(vae.encode(x).mean.detach())
    scale = vae.encode(x).stddev.detach()
    near = vae.replace(guide=lambda x: dist.Normal(loc, scale).to_event(1))
    variances = [
        gradients(ImportanceWeighted(32, doubly_reparameterized=doubly), near, x, 300, [loc])
        .var(dim=0)
        .sum()
        for doubly in (False, True)
    ]
    assert variances[1] < 0.2 * variances[0]


def test_the_gradient_of_the_importance_weighted_bound_is_that_derived_by_hand():
    """sum_k w~_k d log w_k, with z_k = m + s e_k and s fixed, so that log q(z_k) is free of m:

    d log w_k/dm = W'(x - W z_k - mu)/s2 - z_k; doubly reparameterized, with the score of q
    taken out, sum_k w~_k^2 (W'(x - W z_k - mu)/s2 - z_k + e_k/s)."""
    torch.manual_seed(4)
    vae, x = linear_vae(dim=4, latent_dim=2)
    x, decoder, num_particles = x[:3], vae.model.likelihood, 5
    loc = nn.Parameter(torch.randn(3, 2, **KWARGS))
    scale = torch.full((3, 2), 0.6, **KWARGS)
    vae = vae.replace(guide=lambda x: dist.Normal(loc, scale).to_event(1))
    for doubly in (False, True):
        objective = ImportanceWeighted(
            num_particles, doubly_reparameterized=doubly, max_plate_nesting=1
        )
        torch.manual_seed(5)
        (gradient,) = torch.autograd.grad(
            objective.differentiable_loss(vae.model, vae.guide, x), [loc]
        )
        torch.manual_seed(5)
        noise = torch.normal(
            torch.zeros(num_particles, 3, 2, **KWARGS), torch.ones(num_particles, 3, 2, **KWARGS)
        )
        with torch.no_grad():
            z, s2 = loc + scale * noise, (2 * decoder.log_scale).exp()
            residual = x - z @ decoder.weight.T - decoder.mean
            log_weights = (
                -0.5 * residual.square().sum(-1) / s2
                - 0.5 * z.square().sum(-1)
                + 0.5 * noise.square().sum(-1)
            )
            weights = log_weights.softmax(dim=0).unsqueeze(-1)
            dz = residual @ decoder.weight / s2 - z
            if doubly:
                expected = (weights.square() * (dz + noise / scale)).sum(0)
            else:
                expected = (weights * dz).sum(0)
        torch.testing.assert_close(-gradient, expected, rtol=0, atol=1e-9)


def test_a_latent_outside_the_plate_is_refused():
    x = torch.randn(4, **KWARGS)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros((), **KWARGS), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(torch.zeros((), **KWARGS), 1.0))

    with pytest.raises(pv.PairError, match=r"'w' is outside the plate over the data"):
        ImportanceWeighted(3).loss(model, guide, x)


def test_observed_sites_with_different_scales_are_refused():
    x = torch.randn(4, **KWARGS)

    def two_scales(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), **KWARGS), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with pyro.poutine.scale(scale=0.1):
                pyro.sample("u", dist.Normal(z, 1.0), obs=x)

    def one_latent(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros((), **KWARGS), 1.0))

    with pytest.raises(pv.PairError, match=r"remove poutine\.scale"):
        ImportanceWeighted(3).loss(two_scales, one_latent, x)


def test_deterministic_sites_do_not_count():
    vae, x = imperfect_vae()

    def model(x):
        pyro.deterministic("global", torch.zeros(3, **KWARGS))
        vae.model(x)

    objective = ImportanceWeighted(3, max_plate_nesting=1)
    expected = evaluated(objective, vae, x)
    assert evaluated(objective, pv.Pair(model, vae.guide), x) == expected
