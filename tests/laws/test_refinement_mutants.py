"""Faults of refinement that a law must catch: each is put into the code, and its law then fails."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.unconstrained import Unconstrained
from pyro_vae.refinement import importance, newton, proposal, refiner
from tests.laws.test_refinement import (
    COPIES,
    Constrained,
    LinearGaussian,
    assert_unbiased,
    by_quadrature,
)
from tests.support.conjugate import GammaExponential

# -- laws ------------------------------------------------------------------------------------------


def modes_and_curvatures_are_exact():
    """Newton's method finds the mean and the precision of a linear Gaussian posterior."""
    pair = LinearGaussian(9, 4)
    posterior = Unconstrained(Sampler(pair, pair.x), (pair.x,))
    zero = torch.zeros(4, 4).double()
    gradient, hessian = newton.gradient_and_hessian(posterior, zero)
    precision = pair.covariance.inverse()
    assert torch.allclose(hessian, -precision.expand(4, 4, 4))
    assert torch.allclose(gradient, pair.mean(pair.x) @ precision)
    modes = newton.find_modes(posterior, zero, torch.ones(4).double())
    assert torch.allclose(modes.state, pair.mean(pair.x), atol=1e-3)


def tails_of_a_heavy_posterior_are_covered():
    """A posterior that is nearly its Student t prior: normal tails lose its mass."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(5.0, x.new_zeros(12), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 8.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 12), 0.1).to_event(1))

    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)).double()
    posterior = pv.refine(pv.Pair(model, guide), x, num_rounds=0, num_samples=400)
    assert (posterior.khat < 0.7).mean() > 0.8


def weights_are_unbiased_with_few_draws():
    """With few draws in many dimensions a fit follows them, and only fresh ones are unbiased."""
    pair = LinearGaussian(14, 6)
    x = pair.x.repeat(COPIES, 1)
    posterior = pv.refine(pair, x, num_samples=60, num_rounds=2)
    assert_unbiased(posterior.log_weights, pair.exact.repeat(COPIES).numpy())

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(skewed(z), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 1.0).to_event(1))

    def skewed(z):
        return (2 * z).exp()

    x = torch.tensor([[0.5, 0.2, 1.0, 0.7, 1.5, 0.1]]).double()
    exact = by_quadrature(skewed, 0.5, x[0]).sum().expand(COPIES).numpy()
    posterior = pv.refine(pv.Pair(model, guide), x.repeat(COPIES, 1), num_samples=60, num_rounds=2)
    assert_unbiased(posterior.log_weights, exact)


def densities_of_constrained_latents_have_their_jacobian():
    """The posterior of a rate is a gamma distribution."""
    conjugate = GammaExponential(torch.tensor(2.0).double(), torch.tensor(1.0).double())
    x = conjugate.data((3,), 3).double()
    exact = conjugate.log_evidence(x, torch.ones_like(x, dtype=torch.bool))
    posterior = pv.refine(Constrained(conjugate), x.repeat(COPIES, 1), num_samples=100)
    assert_unbiased(posterior.log_weights, exact.repeat(COPIES).numpy())


def a_second_mode_is_found():
    """x ~ N(z^2, 0.2): the guide knows one of the two modes."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z**2, 0.2), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1.0 + 0 * x, 0.1))

    samples = pv.refine(pv.Pair(model, guide), torch.ones(20).double(), num_samples=400).sample(200)
    positive = (samples["z"] > 0).double().mean()
    assert abs(float(positive) - 0.5) < 0.06


# -- mutants ---------------------------------------------------------------------------------------


def sign_of_the_hessian(patch):
    original = newton.gradient_and_hessian

    def mutant(*arguments):
        gradient, hessian = original(*arguments)
        return gradient, -hessian

    patch.setattr(newton, "gradient_and_hessian", mutant)


def sign_of_the_step(patch):
    original = newton._solve
    patch.setattr(newton, "_solve", lambda *arguments: -original(*arguments))


def no_tails(patch):
    for module in (proposal, importance):
        patch.setattr(module, "degrees_of_freedom", lambda dim: 1e6)


def reuse_of_the_fitting_draws(patch):
    def mutant(self, batch, chunk):
        posterior = Unconstrained(self.sampler, batch)
        before = importance.fitted(posterior, self.num_rounds, self.num_samples, chunk)
        draws = importance.weighted(posterior, before, self.num_samples, chunk)
        _, scores = newton.value_and_gradient(posterior, draws.states)
        fit = before.adapted(draws.states, draws.log_weights, scores)
        log_q = fit.distribution.log_prob(draws.states)
        reused = importance.WeightedStates(
            draws.log_likelihood, draws.log_prior, log_q, draws.states
        )
        return fit, reused

    patch.setattr(refiner.Refiner, "draw", mutant)


def no_jacobian(patch):
    original = Unconstrained.constrain

    def mutant(self, states):
        latents, log_jacobian = original(self, states)
        return latents, torch.zeros_like(log_jacobian)

    patch.setattr(Unconstrained, "constrain", mutant)


def defence_that_is_not_weighted(patch):
    patch.setattr(
        importance,
        "log_mixture",
        lambda posterior, r, states, *others: r.distribution.log_prob(states),
    )


def one_start(patch):
    patch.setattr(importance, "_num_starts", lambda dim: 1)


MUTANTS = {
    sign_of_the_hessian: modes_and_curvatures_are_exact,
    sign_of_the_step: modes_and_curvatures_are_exact,
    no_tails: tails_of_a_heavy_posterior_are_covered,
    reuse_of_the_fitting_draws: weights_are_unbiased_with_few_draws,
    no_jacobian: densities_of_constrained_latents_have_their_jacobian,
    defence_that_is_not_weighted: weights_are_unbiased_with_few_draws,
    one_start: a_second_mode_is_found,
}


@pytest.mark.parametrize("law", dict.fromkeys(MUTANTS.values()), ids=lambda law: law.__name__)
def test_laws_hold(law):
    law()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutants_are_caught(mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        MUTANTS[mutant]()
