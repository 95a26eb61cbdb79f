"""Vectorized Hamiltonian Monte Carlo (Neal 2011) with one acceptance decision for each chain.

Chains are the leading dimensions of one state of shape `(*chains, dim)`, and one evaluation of the
log density moves all of them. `pyro.infer.HMC` would accept or reject them together. The target is
p(z) p(x|z)^b: the posterior for b = 1, and an annealed density for 0 < b < 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Point", "StepSizes", "jittered", "transition"]

FIRST_STEP = 0.1

# States to log p(z) and log p(x|z), each of shape `chains`.
LogDensities = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Point:
    """States `(*chains, dim)`, their log densities of shape `chains`, and the gradients.

    Attributes:
        state: States of the chains.
        log_prior: log p(z) in nats.
        log_likelihood: log p(x|z) in nats.
        prior_gradient: Gradient of `log_prior` with respect to the state.
        likelihood_gradient: Gradient of `log_likelihood` with respect to the state.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> def target(z):  # log p(z) and log p(x|z)
        ...     return -0.5 * z.square().sum(-1), -0.5 * (z - 1).square().sum(-1)
        >>> point = pv.hmc.Point.at(target, torch.zeros(8, 2))  # 8 chains
        >>> point.log_density().shape, point.gradient().shape
        (torch.Size([8]), torch.Size([8, 2]))

    See also: `transition`.
    """

    state: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_gradient: Tensor
    likelihood_gradient: Tensor

    @classmethod
    def at(cls, target: LogDensities, state: Tensor) -> "Point":
        """Evaluate a target at states, one for each chain."""
        state = state.detach().requires_grad_()
        with torch.enable_grad():
            prior, likelihood = target(state)
            likelihood_gradient = _gradient(likelihood, state)
            prior_gradient = _gradient(prior, state)
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


def _gradient(values: Tensor, state: Tensor) -> Tensor:
    """Return the gradient of log densities; 0 if they are constant, as p(x|z) if x ignores z."""
    if not values.requires_grad:
        return torch.zeros_like(state)
    total = values.sum()
    return torch.autograd.grad(total, state, retain_graph=True, materialize_grads=True)[0]


class StepSizes:
    """Step sizes that adapt to the recent acceptance rate (Wu et al. 2017).

    Attributes:
        values: Step sizes of shape `chains`, or one of shape `()` for all chains.

    Args:
        values: Initial step sizes.
        acceptance: Target acceptance rate.
        change: Factor by which a step size grows or shrinks after each transition.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> sizes = pv.hmc.StepSizes(torch.full((2,), 0.1), acceptance=0.65)
        >>> sizes.follow(torch.tensor([1.0, 0.0]))  # the first chain moved, the second did not
        >>> sizes.values > 0.1
        tensor([ True, False])

    See also: `transition`, `jittered`.
    """

    def __init__(self, values: Tensor, acceptance: float, change: float = 1.02) -> None:
        self.values, self.acceptance, self.change = values, acceptance, change
        self._rate = torch.full_like(values, acceptance)

    def follow(self, moved: Tensor) -> None:
        """Adapt to a transition, given the accepted chains or their share."""
        self._rate = 0.9 * self._rate + 0.1 * moved
        grow = self._rate > self.acceptance
        self.values = torch.where(grow, self.values * self.change, self.values / self.change)


def jittered(step: Tensor) -> Tensor:
    """Return step sizes with up to 40% of random variation, of the same shape.

    A fixed number of equal steps may be a full period in some direction of a near-Gaussian target,
    in which the chain then does not move (Neal 2011, section 3.2).

    Args:
        step: Step sizes, one for each chain.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> pv.hmc.jittered(torch.full((3,), 0.1)).shape
        torch.Size([3])

    See also: `StepSizes`.
    """
    return step * (0.6 + 0.8 * torch.rand_like(step))


def transition(
    target: LogDensities, start: Point, step: Tensor, num_leapfrog: int, beta: float = 1.0
) -> tuple[Point, Tensor]:
    """Make one transition of every chain that leaves p(z) p(x|z)^beta invariant.

    Args:
        target: Function that returns the log prior and the log likelihood.
        start: Current states of the chains.
        step: Leapfrog step sizes of shape `chains` or `()`.
        num_leapfrog: Number of leapfrog steps.
        beta: Exponent of the likelihood.

    Returns:
        The new states, and whether each chain moved, of shape `chains`.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> def target(z):
        ...     return -0.5 * z.square().sum(-1), -0.5 * (z - 1).square().sum(-1)
        >>> start = pv.hmc.Point.at(target, torch.zeros(8, 2))
        >>> point, moved = pv.hmc.transition(target, start, torch.tensor(0.3), num_leapfrog=5)
        >>> point.state.shape, moved.shape
        (torch.Size([8, 2]), torch.Size([8]))

    See also: `Point`, `StepSizes`, `pyro_vae.ais`, `pyro_vae.mcmc_draws`.
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
