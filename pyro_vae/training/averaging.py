"""Averages of the weights over training steps.

    ema    w_n = w_{n-1} + (1 - d_n) (weights - w_{n-1}),  d_n = min(0.999, (1 + n) / (10 + n))
    last   mean over the steps of the last quarter of the run

An average at a constant learning rate has less noise than its last weights: Polyak & Juditsky
(1992), Izmailov et al. (2018). The decay of the moving average grows with the number n of averaged
steps, so that the weights of the first steps are forgotten in short runs, too. The updates are
those of `torch.optim.swa_utils`. They are applied to tensors instead of a module, because
parameters may also be in the parameter store of Pyro.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

Kind: TypeAlias = Literal["ema", "last"] | None
Weights: TypeAlias = list[tuple[Tensor, Tensor]]

MAX_DECAY = 0.999


def first_step(total_steps: int) -> int:
    """Return the number of steps of a run that `"last"` leaves out."""
    return total_steps - -(-total_steps // 4)


@torch.no_grad()
def add(average: Weights, new: Iterable[Tensor], kind: Kind, num_averaged: int) -> None:
    """Add the weights after a step to their average, in-place.

    Args:
        average: Tensors and their averages.
        new: Tensors that are not in the average yet. Integers are not averaged, nor are buffers
            with infinite entries, which are masks.
        kind: Kind of the average.
        num_averaged: Number of earlier steps in the average.
    """
    if average:
        weights, copies = ([pair[i] for pair in average] for i in (0, 1))
        if kind == "ema":
            decay = min(MAX_DECAY, (1 + num_averaged) / (10 + num_averaged))
            get_ema_multi_avg_fn(decay)(copies, weights, num_averaged)
        else:
            get_swa_multi_avg_fn()(copies, weights, num_averaged)
    average += [
        (tensor, tensor.detach().clone())
        for tensor in new
        if tensor.is_floating_point() and tensor.isfinite().all()
    ]


@contextlib.contextmanager
def swapped_in(average: Weights) -> Iterator[None]:
    """Set tensors to their averages, and back on exit."""
    now = [(tensor, tensor.detach().clone()) for tensor, _ in average]
    set_to(average)
    try:
        yield
    finally:
        set_to(now)


@torch.no_grad()
def set_to(weights: Weights) -> None:
    """Copy values into tensors."""
    for tensor, value in weights:
        tensor.copy_(value)
