"""The steps of an epoch, and the decision that follows them."""

import math
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from torch import Tensor

from pyro_vae.checkpointing.resumable import CALLBACK, FINISHED, Progress
from pyro_vae.distributed import gather, world_size
from pyro_vae.training.early_stopping import epochs_without_improvement
from pyro_vae.training.nan_recovery import backtrack_or_raise, raise_not_finite
from pyro_vae.training.run_state import RunState, own_batch
from pyro_vae.training.running import is_due, save
from pyro_vae.training.setup import FitConfig, Job
from pyro_vae.training.validation import _validate
from pyro_vae.training.watching import observe

# Of several processes. One agreement takes some tenths of a millisecond.
STEPS_BETWEEN_AGREEMENTS = 10

MAX_BACKTRACKS = 5  # the learning rate is then 1/32 of the given one


@dataclass(frozen=True)
class EpochEnd:
    """Why `run_epoch` returned.

    Attributes:
        is_complete: Whether all steps of the epoch were taken and the epoch is in the history.
        is_due: Whether a checkpoint within the epoch is due.
        signal: Number of the signal that asks the run to end.
        failed_batch: Batch after which the loss or a parameter was not finite.
        parameter: Name of the non-finite parameter; None if the loss was not finite.
        asks_to_stop: Whether the callback asks the run to end.
        error: Exception of the callback or the tracker.
    """

    is_complete: bool = False
    is_due: bool = False
    signal: int | None = None
    failed_batch: tuple[Tensor, ...] | None = None
    parameter: str | None = None
    asks_to_stop: bool = False
    error: Exception | None = None


@dataclass(frozen=True)
class Continue:
    """Take the next steps."""


@dataclass(frozen=True)
class Save:
    """Write a checkpoint, then take the next steps."""


@dataclass(frozen=True)
class Backtrack:
    """Go back to a checkpoint and halve the learning rate."""


@dataclass(frozen=True)
class Stop:
    """End the run."""

    reason: str


@dataclass(frozen=True)
class Raise:
    """Execute the action that would have followed, then raise an exception of the caller's code."""

    error: Exception
    before: "Action"


Action: TypeAlias = Continue | Save | Backtrack | Stop | Raise
NOT_FINITE, INTERRUPTED = "not finite", "interrupted"
EARLY_STOPPING = "early stopping"


def next_action(progress: Progress, end: EpochEnd, config: FitConfig, annealed: int = 0) -> Action:
    """Return the action that follows `run_epoch`. A pure function of its arguments.

    Args:
        progress: Counters of the run. If the epoch is complete, they are those of the next one.
        end: Result of `run_epoch`.
        config: Settings of the run.
        annealed: Last epoch in which beta changes. Epochs up to it do not count for `patience`.
    """
    if end.error is not None:
        return Raise(end.error, next_action(progress, replace(end, error=None), config, annealed))
    if end.failed_batch is not None:
        may_backtrack = progress.rate_factor > 0.5**MAX_BACKTRACKS
        return Backtrack() if config.on_nan == "backtrack" and may_backtrack else Stop(NOT_FINITE)
    if end.signal is not None:
        return Stop(INTERRUPTED)
    if end.is_complete:
        epoch = progress.epoch - 1
        patience = config.patience
        if patience is not None and epochs_without_improvement(progress, annealed) >= patience:
            return Stop(EARLY_STOPPING)
        if epoch == config.epochs:
            return Stop(FINISHED)
        if end.asks_to_stop:
            return Stop(CALLBACK)
    return Save() if config.keeps_checkpoints and (end.is_complete or end.is_due) else Continue()


def apply(action: Action, end: EpochEnd, job: Job, state: RunState) -> None:
    """Execute an action.

    Raises:
        TrainingError: If the loss or a parameter is not finite and the run cannot go back.
        Exception: If the callback or the tracker raised it.
    """
    match action:
        case Save():
            save(state)
        case Backtrack():
            assert end.failed_batch is not None
            backtrack_or_raise(job.pair, end.failed_batch, end.parameter, state)
        case Stop(reason) if reason == NOT_FINITE:
            assert end.failed_batch is not None
            raise_not_finite(job.pair, end.failed_batch, end.parameter, state)
        case Stop(reason) if reason == INTERRUPTED:
            if state.progress.batch:
                save(state)  # before the epoch is closed: the resumed run completes it
                with state.averaged():
                    close_epoch(job, state)
            state.progress.stopped = reason
        case Stop(reason):
            state.progress.stopped = reason
            save(state)
        case Raise(error, before):
            apply(before, end, job, state)
            raise error


def run_epoch(job: Job, state: RunState) -> EpochEnd:
    """Take the remaining steps of an epoch until it is complete or something else must be done.

    A complete epoch is validated and appended to the history, and the entry is sent to callback and
    tracker. Nothing is written. If a checkpoint is due within the epoch, the next call continues
    with the next batch.
    """
    now, svi, is_alone = state.progress, state.svi, world_size() == 1
    runs_steps_only = job.runs_steps_only
    if state.batches is None:
        if now.step and not now.batch:
            came = _signal_to_any(state.interrupted())  # in the validation or a checkpoint
            if came is not None:
                return EpochEnd(signal=came)
        state.start_epoch()
        drawn = state.draw_batches(job.batch_size, job.steps_per_epoch)
        state.batches = job.checked.batches(drawn)
    for whole in state.batches:
        num_rows = len(whole[0])
        batch, share = (whole, None) if is_alone else own_batch(whole)
        if runs_steps_only:
            svi.nothing_changed()
        if now.step + 1 == job.total_steps:
            svi.verify_next_step()
        loss = cast(float, svi.step_of(batch, {}, share))  # `fit` accepts objectives of one loss
        is_finite = math.isfinite(loss)
        if is_finite:
            state.count(loss, num_rows)
            state.add_to_average(job.config.average)
            state.report(now.step, num_rows, now.epoch, now.total / now.num_seen)
        is_last, due, came = now.batch == job.steps_per_epoch, False, None
        if is_alone or is_last or now.step % STEPS_BETWEEN_AGREEMENTS == 0:
            came, due = state.interrupted(), is_due(state, job.config.checkpoint_seconds)
            if not is_alone:
                came, due = _signal_to_any(came), gather(due)[0]
        ends = came is not None or is_last
        # Only finite weights are kept, in a checkpoint or as those of an epoch.
        parameter = state.not_finite() if is_finite and (due or ends) else None
        if parameter or not is_finite:
            state.batches = None
            return EpochEnd(signal=came, failed_batch=batch, parameter=parameter)
        if came is not None:
            state.batches = None
            return EpochEnd(signal=came)
        if due and not is_last:
            return EpochEnd(is_due=True)
    with state.averaged():
        close_epoch(job, state)
        try:
            asks_to_stop = observe(job, state.progress.history[-1])
        except Exception as error:  # raised again after the checkpoint
            return EpochEnd(is_complete=True, error=error)
    return EpochEnd(is_complete=True, asks_to_stop=asks_to_stop)


def close_epoch(job: Job, state: RunState) -> None:
    """Validate the weights and append the epoch to the history."""
    state.batches = None
    state.share_buffers()
    now = state.progress
    entry = {
        "epoch": now.epoch,
        "step": now.step,
        "num_data": now.num_seen,
        job.curve: now.total / now.num_seen,
        "seconds": state.epoch_seconds,
    }
    if job.config.on_nan == "backtrack":
        entry["rate_factor"] = now.rate_factor
    if job.sampler is not None and job.checked_validation is not None:
        entry |= _validate(job.sampler, job.checked_validation, job.noise_seeds[0])
    state.end_epoch(entry)


def _signal_to_any(own: int | None) -> int | None:
    """Return the signal that asks one of the processes to end, or None."""
    return next((number for number in gather(own) if number is not None), None)
