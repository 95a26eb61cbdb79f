"""What the paper compares AEVB with."""

from collections.abc import Callable, Iterator
from typing import Any

import paper
import torch
from marginal_likelihood import joint
from pyro import poutine
from torch import Tensor

import pyro_vae as pv
from pyro_vae.diagnostics import hmc


def wake_sleep(model: Callable[..., Any], guide: Callable[..., Any], x: Tensor) -> Tensor:
    """Return a loss whose gradient is wake-sleep's (Hinton et al. 1995), for `pv.SVI`.

    wake:   z ~ q(z|x), x the data;   d/d theta of log p(x, z)
    sleep:  x, z ~ p(x, z), dreamed;  d/d phi   of log q(z|x)

    The two climb different objectives, and no bound on log p(x) is climbed by both.

    Args:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x), the same encoder as AEVB's.
        x: a minibatch, shape `(M, *event)`.
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
    """Train the model alone by Monte Carlo EM, as Appendix E sets it up; as `paper.algorithm_1`.

    E: one Hamiltonian transition of 10 leapfrog steps for each datum of a minibatch, from where its
       chain was left (the first time, from a draw of the prior); the step size follows 90%
       acceptance
    M: 5 updates of theta along d/d theta of log p(x, z) at these z

    It remembers a z for every datum, so that data seen seldom have chains that lag far behind
    theta: what the paper means by "not an on-line algorithm". The guide is not used.
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
