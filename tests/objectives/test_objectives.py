"""Objectives against closed forms and against Pyro's own, in float64."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.objectives.annealing import Beta, Cyclic, Linear
from pyro_vae.objectives.free_bits import FreeBits
from pyro_vae.objectives.importance_weighted import ImportanceWeighted
from pyro_vae.objectives.nats_per_datum import is_elbo, per_datum
from pyro_vae.objectives.sticking_the_landing import StickingTheLanding
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae

KWARGS = {"dtype": torch.float64}


def imperfect_vae(num_data=6):
    """A linear-Gaussian VAE whose diagonal guide is some way off, and data."""
    vae, x = linear_vae(dim=4, latent_dim=2)
    encoder = pv.networks.MLP(4, [], 4).double()
    return vae.replace(guide=pv.guides.DiagonalNormal(encoder)), x[:num_data]


def evaluated(objective, vae, x, seed=0):
    torch.manual_seed(seed)
    return objective.loss(vae.model, vae.guide, x)


def gradients(objective, vae, x, repeats, parameters):
    """Return `repeats` gradients of the loss, one row each."""
    rows = []
    for _ in range(repeats):
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        parts = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


class Linked(nn.Module):
    """Two latents, z2 given z1 in the guide and z1 given z2 in the model: a chain in both."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 2, **KWARGS)
        self.link = nn.Linear(2, 2, **KWARGS)
        self.log_scale = nn.Parameter(torch.zeros((), **KWARGS))
        self.decoder = nn.Linear(2, 3, **KWARGS)

    def model(self, x):
        pyro.module("linked", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2, **KWARGS), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2.tanh(), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("linked", self)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.encoder(x), self.log_scale.exp()).to_event(1))
            pyro.sample("z2", dist.Normal(self.link(z1), 0.8).to_event(1))


# -- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeighted(1),
        ImportanceWeighted(1, doubly_reparameterized=True),
        StickingTheLanding(),
        FreeBits(0.0),
        FreeBits(0.0, groups="dimensions"),
        Beta(1.0),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_each_objective_has_the_elbo_as_its_special_case(objective):
    vae, x = imperfect_vae()
    expected = evaluated(Trace_ELBO(), vae, x)
    assert evaluated(objective, vae, x) == pytest.approx(expected, abs=1e-9)
    torch.manual_seed(0)
    assert objective.differentiable_loss(vae.model, vae.guide, x).item() == pytest.approx(
        expected, abs=1e-9
    )


@pytest.mark.parametrize("vectorize_particles", [True, False])
def test_particles_at_once_or_one_by_one(vectorize_particles):
    vae, x = linear_vae()  # exact guide: no noise, so that both draws give the same
    for kind in (ImportanceWeighted, StickingTheLanding, functools.partial(FreeBits, 0.0)):
        objective = kind(num_particles=5, vectorize_particles=vectorize_particles)
        exact = vae.model.likelihood.marginal().log_prob(x).sum().item()
        assert evaluated(objective, vae, x) == pytest.approx(-exact, abs=1e-9)


def subsampled(vae, num_data, size):
    """The programs of a VAE in a plate over `num_data` that takes `size` at a time."""

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
    """Why `ImportanceWeighted` exists: Pyro's RenyiELBO puts the plate's scale into the logarithm,
    and its value, which is a bound only without that scale, passes the evidence by far."""
    torch.manual_seed(1)
    vae, x = linear_vae(MeanFieldPosterior, dim=4, latent_dim=2)
    x = x[:10]
    exact = vae.model.likelihood.marginal().log_prob(x).sum().item() * 100
    model, guide = subsampled(vae, 1000, 10)
    ours = ImportanceWeighted(1000)
    renyi = RenyiELBO(alpha=0, num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
    assert -renyi.loss(model, guide, x) > exact + 100
    # The bound is below log p in the mean, by var(w) / 2K E[w]^2 for each datum: a thousandth.
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
    """Jensen, on paired noise: the bound of 2K draws is at least the mean of its two halves."""
    vae, x = imperfect_vae()
    # One by one, so that the draws of the halves are those of the whole.
    whole, half = (ImportanceWeighted(k, vectorize_particles=False) for k in (8, 4))
    for seed in range(20):
        bound = -evaluated(whole, vae, x, seed)
        first = -evaluated(half, vae, x, seed)
        second = -half.loss(vae.model, vae.guide, x)
        assert bound > (first + second) / 2


def test_trace_mean_field_elbo_is_trace_elbo_in_the_mean():
    vae, x = imperfect_vae()
    values = {
        kind: torch.tensor([evaluated(kind(), vae, x, seed) for seed in range(400)], **KWARGS)
        for kind in (Trace_ELBO, TraceMeanField_ELBO)
    }
    a, b = values.values()
    difference = a - b
    assert difference.mean().abs() < 5 * difference.std() / math.sqrt(400)
    assert b.std() < a.std()


# -- gradients -------------------------------------------------------------------------------------


def test_sticking_the_landing_has_no_gradient_at_the_exact_posterior():
    """Not even one draw's, where Trace_ELBO's gradient to the guide is noise of mean zero."""
    vae, x = linear_vae(dim=4, latent_dim=2)
    guide = nn.Linear(4, 2, **KWARGS)
    gain, covariance = vae.model.likelihood.posterior_terms()
    with torch.no_grad():
        guide.weight.copy_(gain)
        guide.bias.copy_(-gain @ vae.model.likelihood.mean)
    root = nn.Parameter(torch.linalg.cholesky(covariance).detach())
    posterior = lambda x: dist.MultivariateNormal(guide(x), scale_tril=root)  # noqa: E731
    exact = vae.replace(guide=posterior)
    parameters = [*guide.parameters(), root]
    still = gradients(StickingTheLanding(), exact, x, 20, parameters)
    noisy = gradients(Trace_ELBO(), exact, x, 20, parameters)
    assert still.var(dim=0).max() < 1e-10
    assert still.abs().max() < 1e-9
    assert noisy.var(dim=0).max() > 1.0


@pytest.mark.parametrize("chain", [False, True], ids=["one latent", "a chain of two"])
@pytest.mark.parametrize(
    ("ours", "plain"),
    [
        (StickingTheLanding(2), Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=1)),
        (ImportanceWeighted(6, doubly_reparameterized=True), ImportanceWeighted(6)),
        (StickingTheLanding(2, vectorize_particles=False), Trace_ELBO(2)),
    ],
    ids=["sticking", "doubly reparameterized", "sticking, one by one"],
)
def test_path_derivatives_are_unbiased(ours, plain, chain):
    if chain:
        pair = Linked()
        x, parameters = torch.randn(4, 3, **KWARGS), list(pair.parameters())
    else:
        pair, x = imperfect_vae(4)
        parameters = list(pair.parameters())
    repeats, copies = 100, 16  # as many gradients, each the sum over copies of the data
    x = x.repeat(copies, 1)
    with pyro.get_param_store().scope():
        a = gradients(ours, pair, x, repeats, parameters)
        b = gradients(plain, pair, x, repeats, parameters)
    error = ((a.var(0) + b.var(0)) / repeats).sqrt()
    assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error + 1e-12).all()


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


# -- beta ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        StickingTheLanding(3),
        ImportanceWeighted(3, doubly_reparameterized=True),
        FreeBits(0.2),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_beta_of_one_changes_nothing(inner):
    vae, x = imperfect_vae()
    inner.loss(vae.model, vae.guide, x)  # a first run learns the plates, and draws for it
    parameters = list(vae.parameters())
    found = []
    for objective in (inner, Beta(1.0, inner)):
        torch.manual_seed(2)
        found.append((evaluated(objective, vae, x), gradients(objective, vae, x, 1, parameters)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_beta_weighs_the_kl_alone():
    vae, x = imperfect_vae()
    kl = torch.distributions.kl_divergence(vae.encode(x), vae.model.prior().expand([len(x)])).sum()
    at_zero, at_three = (
        evaluated(Beta(beta, TraceMeanField_ELBO()), vae, x) for beta in (0.0, 3.0)
    )
    assert at_three - at_zero == pytest.approx(3 * kl.item(), abs=1e-9)


def test_schedules_by_hand():
    assert [Linear(4, start=0.2)(step) for step in (0, 1, 4, 9)] == pytest.approx([0.2, 0.4, 1, 1])
    assert [Cyclic(10)(step) for step in (0, 1, 5, 9, 10, 11)] == pytest.approx(
        [0, 0.2, 1, 1, 0, 0.2]
    )
    assert Cyclic(10, ramp=0.25, stop=4.0)(1) == pytest.approx(1.6)


def test_beta_follows_its_schedule_in_place_and_scoring_does_not_advance_it():
    vae, x = imperfect_vae()
    objective = Beta(Linear(2))
    tensor, seen = objective.beta, []
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), objective)
    for _ in range(4):
        svi.step(x)
        svi.evaluate_loss(x)
        seen.append(objective.beta.item())
    assert seen == [0, 0.5, 1, 1]
    assert objective.beta is tensor


# -- free bits -------------------------------------------------------------------------------------


def test_free_bits_by_hand():
    vae, x = imperfect_vae(40)
    model, guide = per_datum(vae.model, 400), per_datum(vae.guide, 400)
    torch.manual_seed(3)
    elbo = -Trace_ELBO().loss(model, guide, x)
    torch.manual_seed(3)
    with torch.no_grad():
        q = vae.encode(x).base_dist
        z = torch.normal(q.loc, q.scale)
        prior = dist.Normal(torch.zeros(2, **KWARGS), 1.0)
        kl = (q.log_prob(z) - prior.log_prob(z)).mean(0)  # of each dimension, over the minibatch
    between, above = kl.mean().item(), 2 * kl.sum().item()
    assert kl.min() < between < kl.max()
    for groups, threshold, raised in [
        ("dimensions", between, kl.clamp(min=between).sum() - kl.sum()),
        ("sites", above, above - kl.sum()),
    ]:
        objective = FreeBits(threshold, groups=groups)
        torch.manual_seed(3)
        assert -objective.loss(model, guide, x) == pytest.approx(elbo - raised.item(), abs=1e-9)
        # Without the scale per datum, the threshold is one for each of the 40 data.
        torch.manual_seed(3)
        summed = -objective.loss(vae.model, vae.guide, x)
        assert summed == pytest.approx(40 * (elbo - raised.item()), abs=1e-9)


def test_free_bits_press_no_latent_below_the_threshold():
    """Below it, the gradient is that of the reconstruction alone."""
    vae, x = imperfect_vae(40)
    weight = vae.guide.posterior.encoder.layers[-1].weight
    found = []
    for objective in (FreeBits(1e3), Beta(0.0)):
        torch.manual_seed(1)
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        found += torch.autograd.grad(loss, [weight])
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)
    assert found[0].abs().max() > 0


# -- what is said ----------------------------------------------------------------------------------


def test_objectives_say_what_they_are():
    assert is_elbo(Trace_ELBO())
    assert is_elbo(TraceEnum_ELBO())
    assert is_elbo(StickingTheLanding())
    assert is_elbo(ImportanceWeighted(1))
    assert not is_elbo(ImportanceWeighted(2))
    assert not is_elbo(RenyiELBO(num_particles=2))
    assert not is_elbo(FreeBits(0.1))
    assert not is_elbo(Beta(1.0))
    assert ImportanceWeighted(2).is_bound
    assert Beta(4.0).is_bound
    assert not Beta(0.5).is_bound
    assert not Beta(Linear(10)).is_bound


def test_fit_calls_elbo_only_what_is_the_elbo():
    vae, x = imperfect_vae()
    for objective, key in [
        (None, "train_elbo"),
        (StickingTheLanding(), "train_elbo"),
        (Beta(4.0), "train_objective"),
        (ImportanceWeighted(3), "train_objective"),
    ]:
        fit = pv.fit(vae, x, validation=x, epochs=1, objective=objective)
        assert {"train_elbo", "train_objective"} & set(fit.history[0]) == {key}
        assert "validation_elbo" in fit.history[0]


@pytest.mark.parametrize(
    "objective",
    [
        ImportanceWeighted(5),
        ImportanceWeighted(5, doubly_reparameterized=True),
        StickingTheLanding(),
        Beta(Cyclic(20)),
        FreeBits(0.1, groups="dimensions"),
    ],
    ids=["iwae", "dreg", "stl", "beta", "free bits"],
)
def test_each_objective_trains(objective):
    """With stock SVI too; on the linear-Gaussian pair, the ELBO rises by more than a nat."""
    torch.manual_seed(6)
    vae, x = imperfect_vae(50)
    before = pv.evaluate(vae, x, num_samples=200).mean("elbo")
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 2e-2}), objective)
    for _ in range(150):
        svi.step(x)
    assert pv.evaluate(vae, x, num_samples=200).mean("elbo") > before + 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ImportanceWeighted(0), "num_particles must be a whole number from 1, got 0"),
        (lambda: StickingTheLanding(1.5), "num_particles must be a whole number"),
        (lambda: Beta(-1.0), "beta must be finite and at least 0, got -1.0"),
        (lambda: FreeBits(-0.1), "free_nats must be finite and at least 0, got -0.1"),
        (lambda: FreeBits(0.1, groups="pixels"), "groups must be 'sites' or 'dimensions'"),
    ],
)
def test_bad_settings_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_what_an_objective_cannot_take_is_said():
    x = torch.randn(4, **KWARGS)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros((), **KWARGS), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(torch.zeros((), **KWARGS), 1.0))

    with pytest.raises(pv.PairError, match=r"'w' is outside the plate over the data"):
        ImportanceWeighted(3).loss(model, guide, x)

    def discrete_model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, **KWARGS)))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def discrete_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5, **KWARGS)))

    for objective in (ImportanceWeighted(3), StickingTheLanding(), FreeBits(1.0)):
        with pytest.raises(pv.PairError, match=r"the guide's Bernoulli for latent 'y' has none"):
            objective.differentiable_loss(discrete_model, discrete_guide, x)

    vae, data = linear_vae()
    with pytest.raises(pv.PairError, match="not independent under its MultivariateNormal"):
        FreeBits(0.1, groups="dimensions").loss(vae.model, vae.guide, data)

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
