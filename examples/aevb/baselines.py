"""What the paper compares AEVB with."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor


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
