"""Early stopping: the epochs that count for `patience` are those after annealing."""

import math
import warnings
from collections.abc import Callable

from pyro_vae.checkpointing.resumable import Progress

REACHED = 0.01  # relative difference between beta and its last value, at most, after annealing


def annealed_epochs(
    objectives: list[object], first_step: int, steps_per_epoch: int, epochs: int
) -> int:
    """Return the last epoch in which the beta of an objective still changes; 0 without such.

    Beta is compared with its value at the last step of the run, within 1%.

    Args:
        objectives: Objectives, of which some may have a `schedule` of beta.
        first_step: Number of steps that the schedules counted before the run.
        steps_per_epoch: Number of steps of an epoch.
        epochs: Number of epochs of the run.
    """
    schedules = [getattr(objective, "schedule", None) for objective in objectives]
    steps = range(first_step, first_step + epochs * steps_per_epoch)
    changes = [_last_change(schedule, steps) for schedule in schedules if callable(schedule)]
    return -(-max(changes, default=0) // steps_per_epoch)


def _last_change(schedule: Callable[[int], float | list[float]], steps: range) -> int:
    """Return the number of steps before beta, or each of the betas, has its last value for good."""
    last = _betas(schedule(steps[-1]))
    for place in reversed(range(len(steps))):
        pairs = zip(_betas(schedule(steps[place])), last, strict=True)
        if not all(math.isclose(*pair, rel_tol=REACHED, abs_tol=1e-12) for pair in pairs):
            return place + 1
    return 0


def _betas(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def epochs_without_improvement(progress: Progress, annealed: int) -> int:
    """Return the number of epochs since the best validation ELBO, counted after annealing."""
    best = progress.best
    if annealed:
        best = {"epoch": annealed}
        for entry in progress.history[annealed:]:
            if entry["validation_elbo"] >= best.get("validation_elbo", -math.inf):
                best = entry
    return progress.epoch - 1 - int(best["epoch"])


def warn_if_without_effect(patience: int, annealed: int, epochs: int) -> None:
    """Warn if too few epochs follow the annealing for early stopping."""
    if annealed and epochs - annealed < patience:
        warnings.warn(
            f"patience={patience} has no effect: beta changes until epoch {annealed} of {epochs}, "
            "and only epochs after the last change count. Leave patience out, or anneal beta in "
            "fewer steps",
            stacklevel=6,  # the caller of `fit`
        )
