"""Priors beyond their laws: exact values, what they learn, and what they refuse."""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch.nn.functional import softplus

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


def test_a_mixture_recovers_planted_clusters():
    means = torch.tensor([[4.0, 0.0], [-3.0, 3.0], [-2.0, -4.0]])
    labels = torch.arange(600) % 3
    x = means[labels] + 0.5 * torch.randn(600, 2)
    decoder = MLP(2, [], 2)
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.eye(2))
    decoder.requires_grad_(False)
    prior = pv.priors.MixtureOfGaussians(2, 3, locs=x[:3] + torch.randn(3, 2))
    encoder = MLP(2, [], 4)
    vae = pv.VAE(
        prior, pv.likelihoods.Normal(decoder, scale=0.1), pv.guides.DiagonalNormal(encoder)
    )
    pv.fit(vae, x, epochs=60, batch_size=100, learning_rate=0.03)
    described = vae.model.prior()
    locs = described.component_distribution.mean.detach()
    nearest = torch.cdist(means, locs).argmin(1)
    assert sorted(nearest.tolist()) == [0, 1, 2]
    empirical = torch.stack([x[labels == k].mean(0) for k in range(3)])
    torch.testing.assert_close(locs[nearest], empirical, rtol=0, atol=0.1)
    scales = described.component_distribution.stddev.detach()
    torch.testing.assert_close(scales, torch.full((3, 2), 0.5), rtol=0, atol=0.1)
    torch.testing.assert_close(
        described.mixture_distribution.probs.detach(), torch.full((3,), 1 / 3), rtol=0, atol=0.05
    )


def test_a_mixtures_density_is_the_sum_over_its_components_to_rounding():
    # Components far out and a hundred times narrower than they are far: float32 products of their
    # squares would be off by several nats.
    prior = pv.priors.MixtureOfGaussians(3, 4, locs=torch.tensor(3.0) * torch.randn(4, 3))
    with torch.no_grad():
        prior.raw_scales.copy_(torch.linspace(-4.6, 0.5, 12).reshape(4, 3))
        prior.logits.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0]))
    described = prior()
    z = described.sample((5, 6))

    def by_hand(z, locs, scales, weights):
        each = dist.Normal(locs, scales).log_prob(z.unsqueeze(-2)).sum(-1)
        return (each + weights).logsumexp(-1)

    exact = copy.deepcopy(prior).double()
    scales = softplus(exact.raw_scales) + 1e-6
    expected = by_hand(z.double(), exact.locs, scales, exact.logits.log_softmax(-1))
    torch.testing.assert_close(described.log_prob(z), expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact().log_prob(z.double()), expected, rtol=1e-9, atol=1e-9)
    in_a_plate = exact().expand((6,))
    assert in_a_plate.batch_shape == (6,)
    torch.testing.assert_close(in_a_plate.log_prob(z.double()), expected, rtol=1e-9, atol=1e-9)
    parameters = list(exact.parameters())
    mine = torch.autograd.grad(exact().log_prob(z.double()).sum(), parameters)
    torch.testing.assert_close(mine, torch.autograd.grad(expected.sum(), parameters))


def test_a_mixture_of_a_users_own_normals_is_scored_by_them():
    class Sharper(dist.Normal):
        def log_prob(self, value):
            return 2 * super().log_prob(value)

    components = Sharper(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1)
    prior = pv.priors.VampPrior(lambda u: components, 3, 2)()
    z = torch.randn(5, 2)
    expected = 2 * dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(prior.log_prob(z), expected)


class TestVampPrior:
    def test_its_density_is_the_mean_of_the_guides(self):
        guide = pv.guides.FullNormal(MLP(2, [4], 5)).double()
        data = torch.rand(6, 2, dtype=torch.float64)
        prior = pv.priors.VampPrior(guide, 6, 2, pseudo_inputs=data).double()
        torch.testing.assert_close(prior.pseudo_inputs, data.clamp(0.01, 0.99))
        z = torch.randn(50, 2, dtype=torch.float64)
        each = torch.stack([guide(u).log_prob(z) for u in data.clamp(0.01, 0.99)])
        torch.testing.assert_close(prior().log_prob(z), each.logsumexp(0) - math.log(6))

    def test_it_trains_saves_and_loads_with_the_models_own_guide(self, tmp_path):
        x = torch.rand(200, 2)
        vae = vae_of(pv.priors.StandardNormal(2))
        vae = vae.replace(prior=pv.priors.VampPrior(vae.parts["guide"], 5, 2, pseudo_inputs=x[:5]))
        start = vae.model.prior.pseudo_inputs.clone()
        fit = pv.fit(vae, x, epochs=5, batch_size=50, learning_rate=0.01)
        assert fit.history[-1]["train_elbo"] > fit.history[0]["train_elbo"]
        moved = vae.model.prior.pseudo_inputs
        assert (moved != start).all()
        assert ((moved >= 0) & (moved <= 1)).all()
        vae.save(tmp_path / "model")
        loaded = pv.load(tmp_path / "model")
        assert loaded.model.prior.guide is loaded.guide.posterior
        assert len(list(loaded.parameters())) == len(list(vae.parameters()))
        z = torch.randn(9, 2)
        torch.testing.assert_close(loaded.model.prior().log_prob(z), vae.model.prior().log_prob(z))

    def test_pseudo_inputs_stay_in_the_bounds_that_are_given(self):
        guide = pv.guides.DiagonalNormal(MLP(2, [], 4))
        data = torch.tensor([[-3.0, 5.0], [0.0, 1.0]])
        with pytest.raises(ValueError, match=r"values in \[-3, 5\].*bounds \(0.0, 1.0\)"):
            pv.priors.VampPrior(guide, 2, 2, pseudo_inputs=data)
        free = pv.priors.VampPrior(guide, 2, 2, bounds=None, pseudo_inputs=data)
        torch.testing.assert_close(free.pseudo_inputs.detach(), data)
        wide = pv.priors.VampPrior(guide, 2, 2, bounds=(-4, 6), pseudo_inputs=data)
        torch.testing.assert_close(wide.pseudo_inputs.detach(), data)
        with pytest.raises(ValueError, match=r"shape \(3, 2\), got \(2, 2\)"):
            pv.priors.VampPrior(guide, 3, 2, pseudo_inputs=data)


def test_a_flow_learns_what_no_normal_can():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 2, generator=generator)
    banana = torch.stack([noise[:, 0], noise[:, 0] ** 2 - 1 + 0.3 * noise[:, 1]], -1)
    train, test = banana[:1000], banana[1000:]
    flow = pv.priors.Flow(2, ["affine_autoregressive", "spline_coupling", "affine_autoregressive"])
    optim = torch.optim.Adam(flow.parameters(), lr=0.01)
    for _ in range(300):
        optim.zero_grad()
        (-flow().log_prob(train).mean()).backward()
        optim.step()
    normal = dist.MultivariateNormal(train.mean(0), torch.cov(train.T))
    # The truth is about 1.55 nats above the best normal; both have its entropy in closed form.
    entropy = math.log(2 * math.pi * math.e) + math.log(0.3)
    score = flow().log_prob(test).mean().item()
    assert score > normal.log_prob(test).mean().item() + 1
    assert score <= -entropy + 5 * 1 / math.sqrt(1000)


def test_a_flow_names_the_transforms_that_there_are():
    with pytest.raises(ValueError, match=r"unknown transform 'planer'.*'spline_coupling'"):
        pv.priors.Flow(2, ["planer"])
    with pytest.raises(ValueError, match="at least one transform"):
        pv.priors.Flow(2, [])
    with pytest.raises(ValueError, match="latent_dim must be at least 2, got 1"):
        pv.priors.Flow(1)


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
        (lambda: pv.priors.StandardNormal(0), "latent_dim must be at least 1, got 0"),
        (lambda: pv.priors.DiagonalNormal(0), "latent_dim must be at least 1, got 0"),
        (lambda: pv.priors.MixtureOfGaussians(2, 0), "num_components must be at least 1, got 0"),
        (lambda: pv.priors.StudentT(2, df=0), "df must be positive, got 0"),
        (lambda: pv.priors.Dirichlet(3, 0.0), "concentration must be positive, got 0.0"),
        (lambda: pv.priors.LogisticNormal(1), "latent_dim must be at least 2, got 1"),
        (lambda: pv.priors.HypersphericalUniform(1), "latent_dim must be at least 2, got 1"),
    ],
)
def test_impossible_sizes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
