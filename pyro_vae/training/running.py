"""The context of a training run: lock, random state, signals, progress bar, resumption."""

import contextlib
import json
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pyro
import torch

from pyro_vae.checkpointing.checkpoint_store import (
    Checkpoint,
    CheckpointStore,
    CheckpointWriter,
    opened,
)
from pyro_vae.checkpointing.earlier_results import check_results, set_aside_results
from pyro_vae.checkpointing.fingerprint import describe, held_sha256, sample_sha256
from pyro_vae.checkpointing.identity import Identity
from pyro_vae.checkpointing.snapshot import restore, snapshot
from pyro_vae.distributed import (
    check_same,
    copy_from_first,
    from_first,
    is_first,
    rank,
    was_restarted,
)
from pyro_vae.objectives.nats_per_datum import objectives_of
from pyro_vae.runtime.files import CheckpointError, writing
from pyro_vae.runtime.progress_bar import training_bar
from pyro_vae.runtime.random_state import python_seeded
from pyro_vae.runtime.signals import interruptible
from pyro_vae.training.early_stopping import annealed_epochs, warn_if_without_effect
from pyro_vae.training.learning_rate import Rates
from pyro_vae.training.run_state import (
    LateConstraints,
    Report,
    RunState,
    named_parameters,
    own_batch,
    register_parameters,
)
from pyro_vae.training.setup import FitConfig, Job


@contextlib.contextmanager
def running(job: Job) -> Iterator[RunState]:
    """Lock the output folder, seed the noise, resume if asked; yield the state of the run.

    On exit the random state is restored and the lock is released. A SIGTERM that ended the run is
    then raised again, for the handler that was installed before.

    Raises:
        CheckpointError: If the folder is locked or has other files with the names of results, or
            the run cannot be resumed.
    """
    config = job.config
    with (
        contextlib.ExitStack() as stack,
        torch.random.fork_rng(),
        python_seeded(job.noise_seeds[rank()]),
        pyro.validation_enabled(False),  # `prepare` has checked everything that is static
        warnings.catch_warnings(),
        interruptible(also_sigterm=job.folder is not None) as interrupted,
        training_bar(
            config.progress if is_first() else False, job.total_steps, config.epochs
        ) as report,
    ):
        warnings.filterwarnings(
            "ignore", message="Encountered (NaN|-?inf)"
        )  # `TrainingError` reports it
        store = from_first(lambda: stack.enter_context(_opened(job.folder, config)))
        torch.manual_seed(job.noise_seeds[rank()])
        writer = None if store is None else CheckpointWriter(store)
        if writer is not None:
            stack.callback(writer.close)  # before the lock is released
        state = _initial(job, writer, interrupted, report)
        if writer is not None:
            _warn_if_not_repeatable(job)
            _resume(job, state, writer.store)
        state.annealed = _annealed(job, state)
        if writer is not None:
            if state.progress.step:
                _as_after_steps(job, state, stack)
            if config.on_nan == "backtrack" and not state.progress.step:
                save(state)  # so that there is always a checkpoint to go back to
        yield state
    if interrupted() == signal.SIGTERM:
        sys.stdout.flush()
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def _opened(folder: Path | None, config: FitConfig) -> Iterator[CheckpointStore | None]:
    """Open the checkpoints in the output folder, or in a temporary one if the run needs them."""
    if folder is not None:
        check_results(folder)
        with opened(folder) as store:
            yield store
    elif config.keeps_checkpoints:
        with tempfile.TemporaryDirectory() as temporary, opened(Path(temporary)) as store:
            yield store
    else:
        yield None


def _initial(
    job: Job,
    writer: CheckpointWriter | None,
    interrupted: Callable[[], int | None],
    report: Report,
) -> RunState:
    """Return the state at step 0, with the same weights in all processes."""
    generator = torch.Generator(job.train.values.device).manual_seed(job.data_seed)
    state = RunState(
        svi=job.svi,
        programs=job.programs,
        train=job.train,
        generator=generator,
        rates=Rates(job.config.schedule, job.total_steps),
        named=named_parameters(job.svi, job.programs, job.train.batch(slice(2))),
        order_state=generator.get_state(),
        writer=writer,
        interrupted=interrupted,
        report=report,
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in state.tensors().items()}
    check_same("parameters and buffers", shapes)
    copy_from_first(state.tensors().values())
    state.keep_weights()
    svi = state.svi
    svi.optim.add(state.named.values())
    if svi.optim.optimizer is not None:
        state.rates.start(svi.optim.optimizer)
    return state


def _annealed(job: Job, state: RunState) -> int:
    """Return the last epoch in which beta changes. Warn if `patience` has no effect."""
    epochs, patience = job.config.epochs, job.config.patience
    objectives = objectives_of(job.svi)
    counts = [item.num_steps for item in objectives if hasattr(item, "num_steps")]
    before = max(counts, default=0) - state.progress.step
    annealed = annealed_epochs(objectives, max(before, 0), job.steps_per_epoch, epochs)
    if patience is not None and state.progress.stopped is None and is_first():
        warn_if_without_effect(patience, annealed, epochs)
    return annealed


def _warn_if_not_repeatable(job: Job) -> None:
    """Warn before training if the rows of a `DataLoader` cannot be read again."""
    reason = None if job.train.loader is None else job.train.loader.cannot_repeat()
    if reason is not None and is_first():
        warnings.warn(
            f"the run cannot be resumed bit for bit, because {reason}",
            stacklevel=6,  # the caller of `fit`
        )


def _resume(job: Job, state: RunState, store: CheckpointStore) -> None:
    """Set a run to its newest checkpoint if it is resumed; else move older results away.

    Raises:
        CheckpointError: If all checkpoints are damaged, or the newest is of another run.
    """
    # Compiled sums are rounded differently, so `compile` has to be the same, too.
    settings = job.settings | {"patience": job.config.patience, "compile": job.svi.compile}
    settings |= describe(job.svi, job.programs, job.total_steps, job.train, job.validation)
    state.settings = json.loads(json.dumps(settings))
    check_same("settings", state.settings)
    state.identity = Identity(
        {**dict(zip(("model", "guide"), job.programs, strict=True)), **_objectives(job)},
        {
            f"{kind} data{what}": None if data is None else hashed(data)
            for kind, data in (("training", job.train), ("validation", job.validation))
            for what, hashed in (("", sample_sha256), (" of the loader", held_sha256))
        },
    )
    wanted = job.config.resume or was_restarted()
    checkpoint = from_first(lambda: _found(store, wanted))
    if checkpoint is not None:
        go_to(state, checkpoint)


def _as_after_steps(job: Job, state: RunState, stack: contextlib.ExitStack) -> None:
    """Restore what the steps of the programs have left in Pyro's store, and the compiled programs.

    The constraints of restored parameters are found now, or when the parameters appear.
    """
    rows, _ = own_batch(job.train.batch(slice(job.batch_size)))
    awaited = LateConstraints(state.late)
    with awaited:
        register_parameters((job.svi.model, job.svi.guide), rows, state.tensors().values())
    if not awaited.keep():
        state.awaited = awaited
        awaited.context.enter_context(awaited)
        stack.enter_context(awaited.context)
    if state.progress.stopped is None:
        state.restore_compilation(job.batch_size)


def _objectives(job: Job) -> dict[str, object]:
    return {f"objective{i or ''}": item for i, item in enumerate(objectives_of(job.svi))}


def _found(store: CheckpointStore, wanted: bool) -> Checkpoint | None:
    checkpoint = store.newest() if wanted else None
    if checkpoint is None:
        with writing(store.path.parent):
            store.set_aside()
            set_aside_results(store.path.parent)
    if wanted and checkpoint is None:
        print(f"{store.path.parent} has no checkpoint: training starts at step 0", file=sys.stderr)
    return checkpoint


def go_to(state: RunState, checkpoint: Checkpoint) -> None:
    """Set a run to a checkpoint.

    Raises:
        CheckpointError: If the checkpoint is of another run. The message names the difference.
    """
    restore(state, checkpoint)
    state.batches = None
    state.clocks.run = time.perf_counter() - state.progress.seconds
    if state.writer is not None:
        state.writer.saved_step = state.progress.step


def is_due(state: RunState, seconds: float) -> bool:
    """Return whether the last checkpoint is at least `seconds` old."""
    return state.writer is not None and time.perf_counter() - state.clocks.saved >= seconds


def save(state: RunState) -> None:
    """Start to write a checkpoint, if the run writes checkpoints.

    It contains the random states of all processes, and can be resumed by any number of them.
    """
    writer, progress = state.writer, state.progress
    if writer is None:
        return
    writer.wait()
    state.share_buffers()
    progress.seconds = state.seconds
    if progress.batch:
        progress.epoch_seconds = state.epoch_seconds
    state.clocks.saved = time.perf_counter()
    try:
        tensors, description = snapshot(state)
    except CheckpointError as error:
        writer.fail(progress.step, error)
        return
    if is_first():
        writer.start(tensors, description, progress.step, progress.best_checkpoint)
    else:
        writer.saved_step = progress.step
