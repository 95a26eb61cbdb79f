"""Log weights are of p(x, z)/q(z|x) in full, or the pair is refused."""

import functools
import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv

ZERO = torch.zeros((), dtype=torch.float64)
N, F = 4, 6
X = torch.randn(N, F, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
EXACT = dist.MultivariateNormal(ZERO.expand(F), torch.eye(F).double() + 1).log_prob(X)

# -- plates ----------------------------------------------------------------------------------------

OUTSIDE = pyro.plate("features", F, subsample=torch.arange(F // 2), dim=-1)


def vectorized(z, x, size):
    with pyro.plate("features", F, subsample_size=size, dim=-1) as index:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])


def by_index(z, x, size):
    index = torch.arange(size)
    with pyro.plate("features", F, subsample=index, dim=-1):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])


def sequential(z, x, size):
    for i in pyro.plate("features", F, subsample_size=size):
        pyro.sample(f"x_{int(i)}", dist.Normal(z, 1.0), obs=x[:, i, None])


def sequential_by_index(z, x, size):
    for i in pyro.plate("features", F, subsample=torch.arange(size)):
        pyro.sample(f"x_{int(i)}", dist.Normal(z, 1.0), obs=x[:, i, None])


def from_outside(z, x, size):
    plate = OUTSIDE if size < F else pyro.plate("features", F, dim=-1)
    with plate as index:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])


def indices_alone(z, x, size):
    with pyro.plate("features", F, subsample_size=size) as index:
        chosen = x[:, index]
    for i in range(size):
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=chosen[:, i, None])


PLATES = [vectorized, by_index, sequential, sequential_by_index, from_outside, indices_alone]


def pair_of(observe, size):
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(ZERO, 1.0))
            observe(z, x, size)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            mean = x.sum(1, keepdim=True) / (F + 1)
            pyro.sample("z", dist.Normal(mean, (F + 1) ** -0.5))

    return pv.Pair(model, guide)


def score(name, pair, x):
    if name == "evaluate":
        return pv.evaluate(pair, x, num_samples=10).log_likelihood
    tree = pv.from_pyro_svi(pair.model, pair.guide, model_args=(x,), num_samples=30)
    return pv.elpd_marginal(tree).elpd_i


@pytest.mark.parametrize("name", ["evaluate", "from_pyro_svi"])
@pytest.mark.parametrize("observe", PLATES)
def test_subsampled_plates_are_whole_or_refused(observe, name):
    for size in (1, F // 2, F - 1, F):
        if size == F:
            np.testing.assert_allclose(score(name, pair_of(observe, F), X), EXACT, atol=1e-9)
        else:
            with pytest.raises(pv.PairError, match=r"\['features'\] are subsampled"):
                score(name, pair_of(observe, size), X)


# -- auxiliary variables ---------------------------------------------------------------------------

Y = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LOG_P = dist.Normal(ZERO, 2**0.5).log_prob(Y)
AUXILIARY = {"is_auxiliary": True}


def model(y):
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def model_with_u(y, shift=0.3):
    """Sample u in the model too, given z."""
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        pyro.sample("u", dist.Normal(shift * z, 2.0))


def random_given(y, strength, scale):
    u = pyro.sample("u", dist.Normal(ZERO.expand(len(y)), scale), infer=AUXILIARY)
    pyro.sample("z", dist.Normal(y / 2 + strength * u, 0.5**0.5))


def equal_to(y, strength, scale):
    u = pyro.sample("u", dist.Normal(y / 2, 0.5**0.5 * scale), infer=AUXILIARY)
    pyro.sample("z", dist.Delta(u))


def sum_of_two(y, strength, scale):
    u = pyro.sample("u", dist.Normal(y / 4, 0.5 * scale), infer=AUXILIARY)
    v = pyro.sample("v", dist.Normal(y / 4, 0.5 * scale), infer=AUXILIARY)
    pyro.sample("z", dist.Delta(u + v))


def sum_of_vector(y, strength, scale):
    u = pyro.sample("u", dist.Normal(ZERO.expand(len(y), 3), scale).to_event(1), infer=AUXILIARY)
    pyro.sample("z", dist.Delta(u.sum(-1)))


def unused(y, strength, scale):
    pyro.sample("u", dist.Normal(ZERO.expand(len(y)), scale), infer=AUXILIARY)
    pyro.sample("z", dist.Normal(y / 2, 0.5**0.5))


def constant(y, strength, scale):
    """A point mass that does not depend on u."""
    pyro.sample("u", dist.Normal(ZERO.expand(len(y)), scale), infer=AUXILIARY)
    pyro.sample("z", dist.Delta(y / 2))


def discrete(y, strength, scale):
    k = pyro.sample("k", dist.Bernoulli(ZERO.expand(len(y)) + 0.5), infer=AUXILIARY)
    pyro.sample("z", dist.Normal(y / 2 + strength * k, 0.5**0.5))


def not_traced(y, strength, scale):
    """The density of z given u alone gives proper weights."""
    infer = {**AUXILIARY, "_do_not_trace": True}
    u = pyro.sample("u", dist.Normal(ZERO.expand(len(y)), scale), infer=infer)
    pyro.sample("z", dist.Normal(y / 2 + strength * u, 0.5**0.5))


REFUSED = [random_given, sum_of_two, sum_of_vector, unused, constant, discrete]
PROPER = [equal_to, not_traced]


def guided(sample, strength, scale):
    def guide(y):
        with pyro.plate("data", len(y)):
            sample(y, strength, scale)

    return guide


@pytest.mark.thinned(2)
@pytest.mark.parametrize("sample", REFUSED + PROPER)
def test_auxiliary_variables_are_determined_or_refused(sample):
    for strength, scale in itertools.product((0.1, 0.3), (0.9, 1.3)):
        pair = pv.Pair(model, guided(sample, strength, scale))
        if sample in REFUSED:
            for call in (
                lambda pair=pair: pv.check(pair, Y),
                lambda pair=pair: pv.evaluate(pair, Y, num_samples=3),
                lambda pair=pair: pv.fit(pair, Y, epochs=1),
                lambda pair=pair: score("from_pyro_svi", pair, Y),
            ):
                with pytest.raises(pv.PairError, match=r"auxiliary variable '[uk]'"):
                    call()
        else:
            scores = pv.evaluate(pair, Y, num_samples=300).log_likelihood
            np.testing.assert_allclose(scores, LOG_P, atol=0.4)


def test_an_auxiliary_variable_of_the_model_gives_the_evidence():
    pair = pv.Pair(model_with_u, guided(random_given, 0.1, 2.0))
    scores = pv.evaluate(pair, Y, num_samples=4000).log_likelihood
    np.testing.assert_allclose(scores, LOG_P, atol=0.15)


def cubed(u):
    return u + u**3 / 3, (1 + u**2).log()


# One-to-one maps from u to z, with log |dz/du| of each datum.
MAPS = {
    "identity": lambda u: (u, 0 * u),
    "narrow": lambda u: (u / 4, 0 * u - math.log(4)),
    "wide": lambda u: (2 * u, 0 * u + math.log(2)),
    "cubed": cubed,
}
# How the guide states log |dz/du|.
STATED = {
    "density": lambda z, term: pyro.sample("z", dist.Delta(z, log_density=-term)),
    "factor": lambda z, term: (
        pyro.factor("jacobian", -term, has_rsample=True),
        pyro.sample("z", dist.Delta(z)),
    ),
    "nothing": lambda z, term: pyro.sample("z", dist.Delta(z)),
    "opposite": lambda z, term: pyro.sample("z", dist.Delta(z, log_density=term)),
    "twice": lambda z, term: (
        pyro.factor("jacobian", -term, has_rsample=True),
        pyro.sample("z", dist.Delta(z, log_density=-term)),
    ),
}


@pytest.mark.parametrize("stated", STATED)
@pytest.mark.parametrize("kind", MAPS)
def test_the_density_of_computed_latents_has_their_jacobian_or_is_refused(kind, stated):
    def guide(y):
        with pyro.plate("data", len(y)):
            u = pyro.sample("u", dist.Normal(ZERO.expand(len(y)), 1.0), infer=AUXILIARY)
            z, term = MAPS[kind](u)
            STATED[stated](z, term)

    pair = pv.Pair(model, guide)
    if kind == "identity" or stated in ("density", "factor"):
        pv.check(pair, Y)
        scores = pv.evaluate(pair, Y, num_samples=2000)
        if kind != "narrow":  # too narrow for the posterior
            np.testing.assert_allclose(scores.log_likelihood, LOG_P, atol=0.2)
        return
    for call in (pv.check, pv.evaluate, pv.fit):
        with pytest.raises(pv.PairError, match=r"computes 'z' from .* 'u' with -log \|det dz/du\|"):
            call(pair, Y)


def test_a_factor_of_a_guide_that_is_no_jacobian_is_refused_by_weights():
    def guide(y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y / 2, 0.5**0.5))
            pyro.factor("penalty", y.new_full((len(y),), -5.0), has_rsample=True)

    pair = pv.Pair(model, guide)
    with pytest.raises(pv.PairError, match=r"pyro.factor \['penalty'\]"):
        pv.evaluate(pair, Y)
    with pytest.warns(UserWarning, match=r"pyro.factor \['penalty'\]"):
        tree = pv.from_pyro_svi(model, guide, model_args=(Y,), num_samples=10)
    assert "log_weight" not in tree.children.get("sample_stats", {})
    scores = pv.evaluate(pair, Y, num_samples=300, proposal="refined")
    np.testing.assert_allclose(scores.log_likelihood, LOG_P, atol=0.05)


# -- masks -----------------------------------------------------------------------------------------

MASKS = {
    "none": lambda y: None,
    "all": lambda y: torch.ones(len(y), dtype=torch.bool),
    "last": lambda y: torch.arange(len(y)) < 7,
    "odd": lambda y: torch.arange(len(y)) % 2 == 0,
    "nothing": lambda y: False,
    "of the distribution": lambda y: torch.arange(len(y)) % 2 == 0,
}


def masked(kind, name, fn, y, **kwargs):
    mask = MASKS[kind](y)
    if kind == "of the distribution":
        return pyro.sample(name, fn.mask(mask), **kwargs)
    with poutine.mask(mask=True if mask is None else mask):
        return pyro.sample(name, fn, **kwargs)


@pytest.mark.thinned(5)
@pytest.mark.parametrize("in_guide", MASKS)
@pytest.mark.parametrize("in_model", MASKS)
def test_masks_of_latents_are_equal_or_refused(in_model, in_guide):
    def model(y):
        with pyro.plate("data", len(y)):
            z = masked(in_model, "z", dist.Normal(ZERO.expand(len(y)), 1.0), y)
            masked(in_model, "y", dist.Normal(z, 1.0), y, obs=y)

    def guide(y):
        with pyro.plate("data", len(y)):
            masked(in_guide, "z", dist.Normal(y / 2, 0.5**0.5), y)

    def counted(kind):
        mask = MASKS[kind](Y)
        return torch.ones(8) if mask is None else torch.as_tensor(mask).expand(8).double()

    pair = pv.Pair(model, guide)
    if counted(in_model).equal(counted(in_guide).to(counted(in_model).dtype)):
        scores = pv.evaluate(pair, Y, num_samples=3).log_likelihood
        np.testing.assert_allclose(scores, LOG_P * counted(in_model), atol=1e-6)
    else:
        for name in ("evaluate", "from_pyro_svi"):
            with pytest.raises(pv.PairError, match="latent 'z' has different masks"):
                score(name, pair, Y)
        with pytest.raises(pv.PairError, match="latent 'z' has different masks"):
            pv.check(pair, Y)


# -- particles -------------------------------------------------------------------------------------


class Folded(nn.Module):
    """A network that expects one batch dimension: an error, or other numbers, with more."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(2, 16), nn.ConvTranspose2d(4, 1, 2, 2)

    def forward(self, z):
        h = self.first(z)
        if self.kind == "unflatten":
            h = nn.functional.relu(h.unflatten(1, (4, 2, 2)))
        elif self.kind == "view":
            h = h.view(len(z), 4, 2, 2).tanh()
        else:
            h = nn.functional.relu(h.reshape(-1, 4, 2, 2))
        x = self.last(h)
        return x if self.kind != "reshape" else x.reshape(*z.shape[:-1], 1, 4, 4)


OBJECTIVES = {
    "Trace_ELBO": lambda k: pyro.infer.Trace_ELBO(k, vectorize_particles=True),
    "TraceMeanField_ELBO": lambda k: pyro.infer.TraceMeanField_ELBO(k, vectorize_particles=True),
    "ImportanceWeighted": pv.objectives.ImportanceWeighted,
    "doubly reparameterized": functools.partial(
        pv.objectives.ImportanceWeighted, doubly_reparameterized=True
    ),
    "StickingTheLanding": pv.objectives.StickingTheLanding,
    "FreeBits": lambda k: pv.objectives.FreeBits(0.0, num_particles=k),
}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["unflatten", "view", "reshape"])
def test_particles_run_through_networks_with_one_batch_dimension(kind, objective):
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(Folded(kind)),
        pv.guides.DiagonalNormal(nn.Sequential(nn.Flatten(), nn.Linear(16, 4))),
    )
    x = (torch.rand(6, 1, 4, 4) < 0.3).float()
    particles, frozen = 3, functools.partial(torch.optim.SGD, lr=0.0)
    loss = OBJECTIVES[objective](particles)
    fit = pv.fit(vae, x, epochs=25, batch_size=3, objective=loss, optimizer=frozen)
    assert loss.vectorize_particles == (kind == "reshape")
    name = "train_objective" if "train_objective" in fit.history[0] else "train_elbo"
    trained = np.array([entry[name] for entry in fit.history])
    many = pv.evaluate(vae, x, num_samples=3000)
    weighted = objective in ("ImportanceWeighted", "doubly reparameterized")
    # The bound with three samples is between the ELBO and log p(x).
    assert trained.mean() > many.mean("elbo") - 5 * trained.std() / 25**0.5 - 0.02
    right = many.mean("log_likelihood" if weighted else "elbo")
    assert trained.mean() < right + 5 * trained.std() / 25**0.5 + 0.02
    svi = pv.SVI(vae.model, vae.guide, frozen, OBJECTIVES[objective](particles), compile=False)
    assert np.mean([svi.step(x) for _ in range(25)]) / 6 == pytest.approx(-trained.mean(), rel=0.05)
