"""Appendix D: log p(x) of each datum from samples of its posterior, for fewer than 5 latents.

    1. sample z from p(z|x) by Hamiltonian Monte Carlo
    2. fit a density q(z) to these samples
    3. take L new samples, and estimate
       log p(x) = -log ( 1/L sum_l q(z_l) / (p(z_l) p(x|z_l)) ),    z_l ~ p(z|x)

For any q, the mean in step 3 is unbiased for 1/p(x), because q integrates to 1. The closer q is to
the posterior, the smaller the variance. Here, q is a Gaussian with the mean and covariance of the
samples. The logarithm of a mean of 1/p(x) overestimates log p(x) if L is small.

The paper does not say where its chains start. If they start at samples from the prior, many stay in
a minor mode of p(z|x), tens of nats too low, because the posterior of a trained decoder has
isolated modes. Here, each chain starts at one of many samples from the prior, chosen with weights
p(x|z).

Importance sampling from the guide (`pv.evaluate`) is the better estimator, but Monte Carlo EM has
no guide. This estimator applies to all three methods of Figure 3.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import hmc


def joint(vae: pv.VAE, x: Tensor) -> hmc.LogDensities:
    """Return a function from z `(len(x), latent_dim)` to log p(z) and log p(x|z), `(len(x),)`."""
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
        vae: The VAE with the model to score; its guide is not used.
        x: The data, shape `(num_data, *event)`.
        num_samples: L, the number of samples to fit q to, and of new samples.
        num_leapfrog: Leapfrog steps of each transition.
        warm_up: Initial transitions, which tune the step size of each chain to 90% acceptance. It
            is fixed afterwards, so that the chain keeps its stationary distribution.
        num_starts: Samples from the prior, the same for all data, at which chains may start.
        seed: Random seed of the chains; the global random state is restored.
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
    """Choose a z for each datum among prior samples with weights p(x|z): importance resampling.

    Returns:
        Shape `(len(x), latent_dim)`.
    """
    z = vae.model.prior().sample((num_starts,))
    likelihood = vae.decode(z)
    chosen = [dist.Categorical(logits=likelihood.log_prob(datum)).sample() for datum in x]
    return z[torch.stack(chosen)]


def gaussian(draws: Tensor) -> dist.MultivariateNormal:
    """Fit a Gaussian to the samples of each datum, shape `(draws, data, dim)`."""
    centred = draws - draws.mean(0)
    covariance = torch.einsum("sni,snj->nij", centred, centred) / (len(draws) - 1)
    # If a chain has hardly moved, the covariance is singular in floating point.
    floor = 1e-6 * torch.eye(draws.shape[-1], dtype=draws.dtype)
    return dist.MultivariateNormal(draws.mean(0), covariance + floor)
