"""Priors with a fixed form: exact values, enumeration, a distribution as a prior."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

import pyro_vae as pv
from pyro_vae.networks import MLP


def vae_of(prior, latent_dim=2, dim=2):
    return pv.VAE(
        prior,
        pv.likelihoods.Normal(MLP(latent_dim, [8], dim)),
        pv.guides.DiagonalNormal(MLP(dim, [8], 2 * latent_dim)),
    )


@pytest.mark.parametrize("distribution", [True, False])
def test_a_distribution_or_a_callable_stands_where_a_prior_does(distribution):
    plain = dist.Normal(torch.ones(2), torch.full((2,), 0.5)).to_event(1)
    vae = vae_of(plain if distribution else lambda: plain)
    x = torch.randn(64, 2)
    vae.check(x)
    pv.fit(vae, x, epochs=1, batch_size=32)
    assert vae.sample(3).shape == (3, 2)
    z = torch.randn(5, 2)
    torch.testing.assert_close(vae.model.prior().log_prob(z), plain.log_prob(z))


def test_a_distribution_follows_its_module():
    vae = vae_of(dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)).double()
    assert vae.model.prior().sample().dtype == torch.float64


def test_a_distribution_cannot_be_saved_and_says_what_to_do(tmp_path):
    vae = vae_of(dist.Laplace(torch.zeros(2), torch.ones(2)).to_event(1))
    with pytest.raises(pv.CheckpointError, match=r"part\.prior is a Independent.*subclass"):
        vae.save(tmp_path / "model")


def test_a_distribution_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"got \(2,\) and \(\): .*\.to_event\(1\)"):
        vae_of(dist.Normal(torch.zeros(2), torch.ones(2)))


@pytest.mark.parametrize(("dim", "area"), [(2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)])
def test_the_uniform_density_is_one_over_the_spheres_area(dim, area):
    uniform = pv.priors.HypersphericalUniform(dim).double()()
    draws = uniform.sample((10,))
    torch.testing.assert_close(
        uniform.log_prob(draws), torch.full((10,), -math.log(area), dtype=torch.float64)
    )


def discrete_vae(num_codes=4, dim=3):
    return pv.VAE(
        pv.priors.Categorical(num_codes),
        pv.likelihoods.Normal(MLP(num_codes, [6], dim)),
        pv.guides.Categorical(MLP(dim, [6], num_codes)),
    ).double()


def joint(vae, x, num_codes=4):
    """Return log p(x_n, z = k), shape `(num_codes, num_data)`, code by code."""
    codes = torch.eye(num_codes, dtype=torch.float64)
    rows = [vae.model.prior().log_prob(k) + vae.decode(k).log_prob(x) for k in codes]
    return torch.stack(rows)


def test_enumerating_the_model_is_brute_force():
    vae, x = discrete_vae(), torch.randn(7, 3, dtype=torch.float64)
    with torch.no_grad():
        vae.model.prior.logits.normal_()
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(vae.model), lambda x: None, x)
    assert -loss == pytest.approx(joint(vae, x).logsumexp(0).sum().item(), abs=1e-9)


def test_enumerating_the_guide_is_the_exact_bound_with_its_gradients():
    vae, x = discrete_vae(), torch.randn(7, 3, dtype=torch.float64)
    log_q = vae.encode(x).logits.log_softmax(-1).T
    expected = (log_q.exp() * (joint(vae, x) - log_q)).sum()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
        vae.model, config_enumerate(vae.guide), x
    )
    assert -loss.item() == pytest.approx(expected.item(), abs=1e-9)
    parameters = list(vae.parameters())
    for ours, exact in zip(
        torch.autograd.grad(-loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: pv.priors.StandardNormal(0),
            "latent_dim must be a whole .* at least 1, got 0",
        ),
        (
            lambda: pv.priors.DiagonalNormal(0),
            "latent_dim must be a whole .* at least 1, got 0",
        ),
        (
            lambda: pv.priors.MixtureOfGaussians(2, 0),
            "num_components must be a .* at least 1, got 0",
        ),
        (lambda: pv.priors.StudentT(2, df=0), "df must be a positive number, got 0"),
        (lambda: pv.priors.Dirichlet(3, 0.0), "concentration must be a positive number, got 0.0"),
        (
            lambda: pv.priors.LogisticNormal(1),
            "latent_dim must be a whole .* at least 2, got 1",
        ),
        (
            lambda: pv.priors.HypersphericalUniform(1),
            "latent_dim must be a whole .* at least 2, got 1",
        ),
    ],
)
def test_impossible_sizes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
