"""The steps of one epoch."""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.distributed import from_first, gather, own_rows, world_size
from pyro_vae.training.run_state import RunState

# Of several processes; asking each other takes some tenths of a millisecond.
STEPS_BETWEEN_AGREEMENTS = 10


class _End(NamedTuple):
    """How an epoch's steps came to an end.

    `signal` cut them short; on the batch `not_finite` the parameter of that name, or the loss where
    it is None, stopped being finite.
    """

    signal: int | None = None
    not_finite: tuple[Tensor, ...] | None = None
    parameter: str | None = None


def _take_steps(
    run: RunState,
    data: Dataset,
    batch_size: int,
    num_steps: int,
    interrupted: Callable[[], int | None],
    report: Callable[..., None],
) -> _End:
    """Take the steps of an epoch that are still to come."""
    now, svi, alone = run.progress, run.svi, world_size() == 1
    run.start_epoch()
    for whole in data.batches(run.order(data, batch_size), run.generator):
        num_rows = len(whole[0])
        batch, svi.share = (whole, None) if alone else own_rows(whole)
        loss = svi.step(*batch)
        finite = math.isfinite(loss)
        if finite:
            run.count(loss, num_rows)
            report(now.step, num_rows, now.epoch, now.total / now.num_seen)
        last, due, came = now.batch == num_steps, False, None
        if alone:
            came, due = interrupted(), run.is_due()
        elif last or now.step % STEPS_BETWEEN_AGREEMENTS == 0:
            came, due = _signal_to_any(interrupted()), from_first(run.is_due)
        ends = came is not None or last
        # Weights that are kept, in a checkpoint or as an epoch's, are finite.
        parameter = run.not_finite() if finite and (due or ends) else None
        if parameter or not finite:
            return _End(came, batch, parameter)
        if ends:
            return _End(came)
        if due:
            run.save()
    return _End()  # resumed after a signal that came at the epoch's last step


def _signal_to_any(own: int | None) -> int | None:
    """Return the signal that asks one of the processes to end, if any."""
    return next((number for number in gather(own) if number is not None), None)
