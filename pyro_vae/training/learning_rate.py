"""The learning rate of a run: a schedule, multiplied by a factor that the schedule never reads."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vae.engine.optimizer_values import PARAMETERS, Settings, settings_of

SAMPLED = 65  # learning rates that identify a schedule
MAX_SAMPLED_STEPS = 100_000  # about one second

Schedule = Callable[[Optimizer, int], LRScheduler]


class Rates:
    """Steps a learning rate schedule, and sets it to the step of a resumed run.

    Args:
        schedule: Function of the optimizer and `total_steps` that returns a schedule, or None.
        total_steps: Number of steps of the run.

    Attributes:
        unscheduled: Settings of each parameter group before its first step.
    """

    def __init__(self, schedule: Schedule | None, total_steps: int) -> None:
        self.schedule, self.total_steps = schedule, total_steps
        self._scheduler: LRScheduler | None = None
        self._num_steps = self._num_groups = 0  # groups that the schedule was made for
        self.unscheduled: list[Settings] = []
        self._sampled: tuple[int, list[list[float]]] | None = None

    def start(self, optimizer: Optimizer) -> None:
        """Set the learning rates of the first step.

        Raises:
            ValueError: If the schedule is none that can be stepped after each training step.
        """
        self.unscheduled += map(settings_of, optimizer.param_groups[len(self.unscheduled) :])
        self._num_groups = self._num_groups or len(self.unscheduled)
        if self.schedule is not None:
            made = self.schedule(optimizer, self.total_steps)
            if isinstance(made, ReduceLROnPlateau) or not callable(getattr(made, "step", None)):
                raise ValueError(
                    f"schedule returned a {type(made).__name__}, expected a learning rate schedule "
                    "of torch.optim.lr_scheduler that depends on the step only, such as OneCycleLR"
                )
            self._scheduler = made

    def advance(
        self, optimizer: Optimizer | None, factor: float, first: Sequence[Settings] = ()
    ) -> None:
        """Step the schedule of an optimizer with learning rates that contain a factor.

        Args:
            optimizer: Optimizer, or None if it does not exist yet.
            factor: Factor of the learning rates.
            first: Settings of each parameter group before its first step.
        """
        self._num_steps += 1
        if optimizer is not None and len(first) > len(self.unscheduled):
            # A parameter has appeared. The schedule knows only the groups that it was made for.
            self.unscheduled += first[len(self.unscheduled) :]
            if self.schedule is not None:
                self.reset(optimizer, self._num_steps, factor)
                return
        if self._scheduler is None or optimizer is None or self._num_steps >= self.total_steps:
            return
        scale_rates(optimizer, 1 / factor)
        self._scheduler.step()
        scale_rates(optimizer, factor)

    def sampled(self, optimizer: Optimizer) -> list[list[float]]:
        """Return the learning rates of a schedule at `SAMPLED` steps spread over the run.

        The schedule runs on a stand-in for the optimizer, with its class and settings.
        """
        if self.schedule is None or not self.unscheduled:
            return []
        if self._sampled is None or self._sampled[0] != self.total_steps:
            stand_in = type(optimizer).__new__(type(optimizer))
            first = map(settings_of, self.unscheduled[: self._num_groups])
            groups = [{**group, "params": [torch.zeros(1)]} for group in first]
            Optimizer.__init__(stand_in, groups, dict(optimizer.defaults))
            rates = Rates(self.schedule, self.total_steps)
            steps = min(self.total_steps, MAX_SAMPLED_STEPS)
            places, found = {i * (steps - 1) // (SAMPLED - 1) for i in range(SAMPLED)}, []
            with _without_warnings():
                rates.start(stand_in)
                for step in range(steps):
                    if step in places:
                        found.append([float(group["lr"]) for group in stand_in.param_groups])
                    rates.advance(stand_in, 1.0)
            self._sampled = self.total_steps, found
        return self._sampled[1]

    def reset(self, optimizer: Optimizer, step: int, factor: float) -> None:
        """Set the schedule to a step and multiply its learning rates by a factor.

        The steps of the schedule are repeated from the first one, because a schedule may be any
        function of the step.
        """
        self._num_steps = 0
        for group, settings in zip(optimizer.param_groups, self.unscheduled, strict=False):
            kept = {key: group[key] for key in PARAMETERS if key in group}
            group.clear()
            group.update(settings_of(settings), **kept)
        with _without_warnings():
            self.start(optimizer)
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
