"""Appendix D: log p(x) of each datum from draws of its posterior, for few latents (below 5).

    1. draw z from p(z|x) by Hamiltonian Monte Carlo
    2. fit a density q(z) to these draws
    3. draw L new ones, and
       log p(x) = -log ( 1/L sum_l q(z_l) / (p(z_l) p(x|z_l)) ),    z_l ~ p(z|x)

Any q makes the mean of step 3 that of 1/p(x), since the integral of q is 1; the closer it is to the
posterior, the smaller the variance. Here it is a Gaussian with the draws' mean and covariance. The
logarithm of a mean of 1/p(x) overestimates log p(x) where L is small.

The paper does not say where its chains begin. From draws of the prior many end on a slope of p(z|x)
that is not its summit, and stay, tens of nats too low: the latents of a trained decoder lie in
islands. So each chain begins at one of many draws of the prior, chosen with odds p(x|z).

Importance sampling from the guide (`pv.evaluate`) is the better estimator, but Monte Carlo EM has
no guide: this one treats all three methods of Figure 3 alike.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.diagnostics import hmc


def joint(vae: pv.VAE, x: Tensor) -> hmc.LogDensities:
    """Return z, shape `(len(x), latent_dim)`, to log p(z) and log p(x|z), each `(len(x),)`."""
    return lambda z: (vae.model.prior().log_prob(z), vae.decode(z).log_prob(x))


def log_marginal_likelihood(
    vae: pv.VAE,
    x: Tensor,
    *,
    num_samples: int = 50,
    num_leapfrog: int = 4,
    warm_up: int = 100,
    num_starts: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Estimate log p(x) of each datum in nats, shape `(len(x),)`.

    Args:
        vae: whose model is scored; its guide is not used.
        x: shape `(num_data, *event)`.
        num_samples: L, draws that q is fitted to, and as many new ones.
        num_leapfrog: leapfrog steps of each transition.
        warm_up: transitions from the start on, which also tune each chain's step size to 90%
            acceptance; it is fixed afterwards, as the chain's law demands.
        num_starts: draws of the prior, the same for all data, that chains may begin at.
        seed: of all draws; the random state is left as it was found.
    """
    target = joint(vae, x)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        point = hmc.Point.at(target, starts(vae, x, num_starts))
        first = torch.full_like(point.log_prior, hmc.FIRST_STEP)
        steps = hmc.StepSizes(first, acceptance=0.9, change=1.05)
        states, log_joints = [], []
        for count in range(warm_up + 2 * num_samples):
            point, moved = hmc.transition(target, point, hmc.jittered(steps.values), num_leapfrog)
            if count < warm_up:
                steps.follow(moved)
            else:
                states.append(point.state)
                log_joints.append(point.log_density())
        fitted, new = torch.stack(states).split(num_samples)
        q = gaussian(fitted)
        log_ratio = q.log_prob(new) - torch.stack(log_joints[num_samples:])
        return math.log(num_samples) - log_ratio.logsumexp(0)


def starts(vae: pv.VAE, x: Tensor, num_starts: int) -> Tensor:
    """Choose a z for each datum among draws of the prior, with odds p(x|z): importance resampling.

    Returns:
        Shape `(len(x), latent_dim)`.
    """
    z = vae.model.prior().sample((num_starts,))
    likelihood = vae.decode(z)
    chosen = [dist.Categorical(logits=likelihood.log_prob(datum)).sample() for datum in x]
    return z[torch.stack(chosen)]


def gaussian(draws: Tensor) -> dist.MultivariateNormal:
    """Fit a Gaussian to the draws of each datum, shape `(draws, data, dim)`."""
    centred = draws - draws.mean(0)
    covariance = torch.einsum("sni,snj->nij", centred, centred) / (len(draws) - 1)
    # Where a chain has hardly moved, the covariance is singular in floating point.
    floor = 1e-6 * torch.eye(draws.shape[-1], dtype=draws.dtype)
    return dist.MultivariateNormal(draws.mean(0), covariance + floor)
