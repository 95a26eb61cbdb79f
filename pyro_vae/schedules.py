"""Learning rate schedules for `fit`: functions of an optimizer and the number of steps of a run.

Any function that returns a `torch.optim.lr_scheduler.LRScheduler` can be used in their place. The
schedule is stepped after each training step. The learning rate of the optimizer is its maximum.
"""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

__all__ = ["one_cycle", "stages"]

NUM_STAGES = 8


def one_cycle(optimizer: Optimizer, num_steps: int) -> OneCycleLR:
    """Return a schedule that increases the learning rate for 30% of the steps, then lowers it to 0.

    Smith & Topin (2018), "Super-Convergence".

    Args:
        optimizer: Optimizer with the highest learning rate.
        num_steps: Number of steps of the run.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> optimizer = torch.optim.Adam([torch.zeros(1)], lr=0.1)
        >>> round(pv.schedules.one_cycle(optimizer, 100).get_last_lr()[0], 4)
        0.004

    See also: `stages`, `pyro_vae.fit`.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, total_steps=num_steps)


def stages(optimizer: Optimizer, num_steps: int) -> MultiStepLR:
    """Return a schedule of eight stages; stage i takes 3^i of 3280 parts of the run.

    The learning rate of stage i is 10^(-i/7) times that of the first, for i = 0, ..., 7: Burda et
    al. (2016), "Importance Weighted Autoencoders", section 5, with 3^i passes over the data.

    Args:
        optimizer: Optimizer with the learning rate of the first stage.
        num_steps: Number of steps of the run.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> optimizer = torch.optim.Adam([torch.zeros(1)], lr=1e-3)
        >>> sorted(pv.schedules.stages(optimizer, 3280).milestones)
        [1, 4, 13, 40, 121, 364, 1093]

    See also: `one_cycle`, `pyro_vae.fit`.
    """
    parts = [3**i for i in range(NUM_STAGES)]
    ends = [round(num_steps * sum(parts[:i]) / sum(parts)) for i in range(1, NUM_STAGES)]
    return MultiStepLR(optimizer, ends, gamma=10 ** (-1 / (NUM_STAGES - 1)))
