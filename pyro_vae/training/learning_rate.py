"""Learning rates of a run: a schedule's, multiplied by a factor that the schedule never sees."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Schedule = Callable[[Optimizer, int], LRScheduler]


class Rates:
    """Steps a schedule, and puts it where a run stands.

    Args:
        schedule: makes the learning rate schedule, of the optimizer and `total_steps`.
        total_steps: steps of the whole run.
    """

    def __init__(self, schedule: Schedule | None, total_steps: int) -> None:
        self.schedule, self.total_steps = schedule, total_steps
        self._scheduler: LRScheduler | None = None
        self._unscheduled: list[dict[str, Any]] | None = None  # the optimizer's own settings

    def advance(self, optimizer: Any, factor: float) -> None:
        """Step the schedule of an optimizer whose rates are multiplied by a factor."""
        if self._unscheduled is None and optimizer is not None:
            self._unscheduled = [_settings(group) for group in optimizer.param_groups]
        if self.schedule is None:
            return
        scale_rates(optimizer, 1 / factor)
        if self._scheduler is None:
            # Made after the first step, when the optimizer has its parameters.
            self._scheduler = self.schedule(optimizer, self.total_steps)
        else:
            self._scheduler.step()
        scale_rates(optimizer, factor)

    def reset(self, optimizer: Any, step: int, factor: float) -> None:
        """Put the schedule where it stands at a step, and multiply its learning rates.

        A schedule is a function of the step: its steps are taken again, whatever it is made of.
        """
        self._scheduler = None
        for group, settings in zip(optimizer.param_groups, self._unscheduled or (), strict=False):
            parameters = group["params"]
            group.clear()
            group.update(settings, params=parameters)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(step):
                self.advance(optimizer, 1.0)
        scale_rates(optimizer, factor)


def scale_rates(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rates of all parameter groups."""
    if factor != 1.0:
        for group in optimizer.param_groups:
            group["lr"] *= factor


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Copy a parameter group's settings; a learning rate may be a tensor that is changed."""
    return {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in group.items()
        if key != "params"
    }
