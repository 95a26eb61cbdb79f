"""The baselines of the paper: wake-sleep and Monte Carlo EM."""

from collections.abc import Callable, Iterator
from typing import Any

import paper
import torch
from marginal_likelihood import joint
from pyro import poutine
from torch import Tensor

import pyro_vae as pv
from pyro_vae import hmc


def wake_sleep(model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> Tensor:
    """Return the loss of wake-sleep (Hinton et al. 1995) for `pv.SVI`.

    Its gradient is the sum of

    wake:   z ~ q(z|x), x the data;   d/d theta of log p(x, z)
    sleep:  x, z ~ p(x, z);           d/d phi   of log q(z|x)

    The two gradients belong to different objectives; together they maximize no bound on log p(x).

    Args:
        model: The Pyro program of p(x, z).
        guide: The Pyro program of q(z|x), with the same encoder as AEVB.
        x: A minibatch, shape `(M, *event)`.
    """
    with torch.no_grad():
        awake = poutine.trace(guide).get_trace(x)
        dream = poutine.trace(poutine.uncondition(model)).get_trace(x)
    wake = poutine.trace(poutine.replay(model, trace=awake)).get_trace(x)
    dreamed = dream.nodes["x"]["value"]
    sleep = poutine.trace(poutine.replay(guide, trace=dream)).get_trace(dreamed)
    return -(wake.log_prob_sum() + sleep.log_prob_sum())


def monte_carlo_em(
    vae: pv.VAE,
    data: pv.data.Dataset,
    samples: int,
    optim: torch.optim.Optimizer,
    seed: int,
    points: int = 1,
) -> Iterator[int]:
    """Train the model by Monte Carlo EM (Appendix E); yields as `paper.algorithm_1`.

    E: one Hamiltonian transition of 10 leapfrog steps for each datum of a minibatch, from the last
       state of its chain (at first a sample from the prior). The step size is tuned to 90%
       acceptance.
    M: 5 updates of theta along d/d theta of log p(x, z) at these z.

    It stores a z for every datum. If a datum is seen rarely, its chain lags far behind theta; this
    is why the paper calls it "not an on-line algorithm". The guide is not used.
    """
    chains = vae.model.prior().sample((len(data),))
    step_size = hmc.StepSizes(torch.tensor(hmc.FIRST_STEP), acceptance=0.9)

    def step(index: Tensor, generator: torch.Generator) -> None:
        (x,) = data.draw_batch(index, generator)
        posterior = joint(vae, x)
        point = hmc.Point.at(posterior, chains[index])
        size = hmc.jittered(step_size.values)
        point, moved = hmc.transition(posterior, point, size, num_leapfrog=10)
        step_size.follow(moved.float().mean())
        chains[index] = point.state
        for _ in range(5):
            optim.zero_grad()
            log_prior, log_likelihood = posterior(point.state)
            (-(log_prior + log_likelihood).mean()).backward()
            optim.step()

    yield from paper.minibatches(step, len(data), samples, seed, points, updates=5)
