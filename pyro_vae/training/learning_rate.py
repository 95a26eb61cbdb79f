"""The learning rate of a run: a schedule, multiplied by a factor that the schedule never reads."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.engine.verified_state import settings_of

SAMPLED = 65  # learning rates that identify a schedule
MAX_SAMPLED_STEPS = 100_000  # about one second

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
        self._num_steps = 0
        # Settings of each group before its first step.
        self._unscheduled: list[dict[str, object]] = []
        self._sampled: tuple[int, list[list[float]]] | None = None

    def advance(self, optimizer: Optimizer | None, factor: float) -> None:
        """Step the schedule of an optimizer with learning rates that contain a factor."""
        self._num_steps += 1
        if optimizer is not None and len(optimizer.param_groups) > len(self._unscheduled):
            started = bool(self._unscheduled)
            new = optimizer.param_groups[len(self._unscheduled) :]
            self._unscheduled += map(settings_of, new)
            if started and self.schedule is not None:
                # A parameter has appeared. The schedule knows only the groups that it was made for.
                self.reset(optimizer, self._num_steps, factor)
                return
        if self.schedule is None or optimizer is None:
            return
        scale_rates(optimizer, 1 / factor)
        if self._scheduler is None:
            # Created after the first step, when the optimizer has its parameters.
            self._scheduler = self.schedule(optimizer, self.total_steps)
        else:
            self._scheduler.step()
        scale_rates(optimizer, factor)

    def sampled(self, optimizer: Optimizer) -> list[list[float]]:
        """Return the learning rates of a schedule at `SAMPLED` steps spread over the run.

        The schedule runs on a stand-in for the optimizer, with its class and settings.
        """
        if self.schedule is None or not self._unscheduled:
            return []
        if self._sampled is None or self._sampled[0] != self.total_steps:
            stand_in = type(optimizer).__new__(type(optimizer))
            groups = [
                {**group, "params": [torch.zeros(1)]} for group in map(dict, self._unscheduled)
            ]
            Optimizer.__init__(stand_in, groups[:1], dict(optimizer.defaults))
            rates = Rates(self.schedule, self.total_steps)
            steps = min(self.total_steps, MAX_SAMPLED_STEPS)
            places, found = {i * (steps - 1) // (SAMPLED - 1) for i in range(SAMPLED)}, []
            with _without_warnings():
                for step in range(steps):
                    rates.advance(stand_in, 1.0)
                    if step in places:
                        found.append([float(group["lr"]) for group in stand_in.param_groups])
            self._sampled = self.total_steps, found
        return self._sampled[1]

    def reset(self, optimizer: Optimizer, step: int, factor: float) -> None:
        """Set the schedule to a step and multiply its learning rates by a factor.

        The steps of the schedule are repeated from the first one, because a schedule may be any
        function of the step.
        """
        self._scheduler, self._num_steps = None, 0
        for group, settings in zip(optimizer.param_groups, self._unscheduled, strict=False):
            parameters = group["params"]
            group.clear()
            group.update(settings, params=parameters)
        with _without_warnings():
            for _ in range(step):
                self.advance(optimizer, 1.0)
        scale_rates(optimizer, factor)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore the warning about a schedule that steps before its optimizer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        yield


def scale_rates(optimizer: Optimizer, factor: float) -> None:
    """Multiply the learning rates of all parameter groups by a factor."""
    if factor != 1.0:
        for group in optimizer.param_groups:
            group["lr"] *= factor
