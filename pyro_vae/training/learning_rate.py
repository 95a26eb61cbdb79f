"""The learning rate of a run: a schedule, multiplied by a factor that the schedule never reads."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Schedule = Callable[[Optimizer, int], LRScheduler]


class Rates:
    """Steps a learning rate schedule, and sets it to the step of a resumed run.

    Args:
        schedule: Function of the optimizer and `total_steps` that returns a schedule, or None.
        total_steps: Number of steps of the run.
    """

    def __init__(self, schedule: Schedule | None, total_steps: int) -> None:
        self.schedule, self.total_steps = schedule, total_steps
        self._scheduler: LRScheduler | None = None
        self._unscheduled: list[dict[str, object]] | None = None  # settings before the first step

    def advance(self, optimizer: Any, factor: float) -> None:
        """Step the schedule of an optimizer with learning rates that contain a factor."""
        if self._unscheduled is None and optimizer is not None:
            self._unscheduled = [_settings(group) for group in optimizer.param_groups]
        if self.schedule is None:
            return
        scale_rates(optimizer, 1 / factor)
        if self._scheduler is None:
            # Created after the first step, when the optimizer has its parameters.
            self._scheduler = self.schedule(optimizer, self.total_steps)
        else:
            self._scheduler.step()
        scale_rates(optimizer, factor)

    def reset(self, optimizer: Optimizer, step: int, factor: float) -> None:
        """Set the schedule to a step and multiply its learning rates by a factor.

        The steps of the schedule are repeated from the first one, because a schedule may be any
        function of the step.
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
    """Multiply the learning rates of all parameter groups by a factor."""
    if factor != 1.0:
        for group in optimizer.param_groups:
            group["lr"] *= factor


def _settings(group: dict[str, object]) -> dict[str, object]:
    """Copy the settings of a parameter group. A learning rate may be a tensor that changes."""
    return {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in group.items()
        if key != "params"
    }
