"""Hamiltonian Monte Carlo of many chains at once (Neal 2011), each accepted by itself.

Chains stand in the leading dimensions of one state, shape `(*chains, dim)`, and move together
through one evaluation of their log density; `pyro.infer.HMC` would accept or refuse them all as
one. The target is p(z) p(x|z)^b: b = 1 is the posterior, and annealing passes through 0 < b < 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_STEP = 0.1

# States to log p(z) and log p(x|z), each of shape `chains`.
LogDensities = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Point:
    """States `(*chains, dim)`, their log densities of shape `chains`, and the gradients."""

    state: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_gradient: Tensor
    likelihood_gradient: Tensor

    @classmethod
    def at(cls, target: LogDensities, state: Tensor) -> "Point":
        """Evaluate a target at states, one per chain."""
        state = state.detach().requires_grad_()
        with torch.enable_grad():
            prior, likelihood = target(state)
            likelihood_gradient = torch.autograd.grad(likelihood.sum(), state, retain_graph=True)[0]
            prior_gradient = torch.autograd.grad(prior.sum(), state)[0]
        return cls(
            state.detach(),
            prior.detach(),
            likelihood.detach(),
            prior_gradient,
            likelihood_gradient,
        )

    def log_density(self, beta: float = 1.0) -> Tensor:
        """Return log p(z) + beta log p(x|z), of shape `chains`."""
        return self.log_prior + beta * self.log_likelihood

    def gradient(self, beta: float = 1.0) -> Tensor:
        """Return the gradient of `log_density`, of the state's shape."""
        return self.prior_gradient + beta * self.likelihood_gradient


class StepSizes:
    """Step sizes that follow the recent acceptance (Wu et al. 2017).

    Attributes:
        values: of shape `chains`, each chain its own, or `()`, all the same.

    Args:
        values: at the start.
        acceptance: the share of accepted transitions that is aimed at.
        change: factor by which a step grows or shrinks after each transition.
    """

    def __init__(self, values: Tensor, acceptance: float, change: float = 1.02) -> None:
        self.values, self.acceptance, self.change = values, acceptance, change
        self._rate = torch.full_like(values, acceptance)

    def follow(self, moved: Tensor) -> None:
        """Adapt to a transition: who moved, or the share of chains that did."""
        self._rate = 0.9 * self._rate + 0.1 * moved
        grow = self._rate > self.acceptance
        self.values = torch.where(grow, self.values * self.change, self.values / self.change)


def jittered(step: Tensor) -> Tensor:
    """Return step sizes that vary by up to 40% from transition to transition, of the same shape.

    A fixed number of equal steps may turn some direction of a near-Gaussian target by a full
    circle, and the chain stays where it was there (Neal 2011, section 3.2).
    """
    return step * (0.6 + 0.8 * torch.rand_like(step))


def transition(
    target: LogDensities, start: Point, step: Tensor, num_leapfrog: int, beta: float = 1.0
) -> tuple[Point, Tensor]:
    """Make one transition of every chain, which leaves p(z) p(x|z)^beta invariant.

    Args:
        target: log prior and log likelihood.
        start: where the chains are.
        step: size of the leapfrog steps, of shape `chains` or `()`.
        num_leapfrog: their number.
        beta: the likelihood's exponent.

    Returns:
        Where the chains are now, and who of them moved, of shape `chains`.
    """
    momentum = torch.randn_like(start.state)
    energy = -start.log_density(beta) + 0.5 * momentum.square().sum(-1)
    size = step[..., None]
    point = start
    momentum = momentum + 0.5 * size * point.gradient(beta)
    for i in range(num_leapfrog):
        point = Point.at(target, point.state + size * momentum)
        last = i == num_leapfrog - 1
        momentum = momentum + (0.5 if last else 1.0) * size * point.gradient(beta)
    new_energy = -point.log_density(beta) + 0.5 * momentum.square().sum(-1)
    moved = torch.rand_like(energy).log() < energy - new_energy
    where = moved[..., None]
    kept = Point(
        torch.where(where, point.state, start.state),
        torch.where(moved, point.log_prior, start.log_prior),
        torch.where(moved, point.log_likelihood, start.log_likelihood),
        torch.where(where, point.prior_gradient, start.prior_gradient),
        torch.where(where, point.likelihood_gradient, start.likelihood_gradient),
    )
    return kept, moved
