"""`fit`: Algorithm 1 of Kingma & Welling (2013) over epochs, with a validation bound beside it.

Each step draws a minibatch of M data, estimates the bound per datum and its gradients on it, and
lets the optimizer climb. What is reported is in nats per datum.
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyro
import torch
from pyro.infer import ELBO
from torch import nn
from torch.optim import Optimizer

from pyro_vae.checkpointing.checkpoint_store import CheckpointStore, opened
from pyro_vae.checkpointing.fingerprint import describe
from pyro_vae.checkpointing.model_folder import MODEL, results_folder, save
from pyro_vae.checkpointing.model_folder import describe as describe_part
from pyro_vae.data.data_loader import worker_errors_as_data_errors
from pyro_vae.data.dataset import Data, as_dataset
from pyro_vae.distributed import (
    check_same,
    from_first,
    is_first,
    own_device,
    own_rows,
    rank,
    was_restarted,
    world_size,
)
from pyro_vae.engine.torch_optim import OptimizerFactory, TorchOptim
from pyro_vae.objectives.nats_per_datum import is_elbo
from pyro_vae.pairs.check import check_data
from pyro_vae.pairs.pair import PairLike
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.part import Part
from pyro_vae.runtime.devices import device_of, resolve_device
from pyro_vae.runtime.files import CheckpointError, write_json
from pyro_vae.runtime.progress_bar import training_bar
from pyro_vae.runtime.signals import interruptible
from pyro_vae.svi import SVI, Compile, Precision
from pyro_vae.training.learning_rate import Schedule
from pyro_vae.training.loop import _signal_to_any, _take_steps
from pyro_vae.training.nan_recovery import _handle_nan
from pyro_vae.training.result import Fit
from pyro_vae.training.run_state import RunState
from pyro_vae.training.setup import _check_settings, _per_datum_svi
from pyro_vae.training.validation import _validate

HISTORY = "history.json"


@worker_errors_as_data_errors()
def fit(
    pair: PairLike | SVI,
    train: Data,
    *,
    validation: Data | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    objective: ELBO | None = None,
    num_particles: int = 1,
    optimizer: Optimizer | OptimizerFactory | None = None,
    learning_rate: float = 1e-3,
    schedule: Schedule | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    compile: Compile = "auto",
    precision: Precision = "fp32",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    on_nan: Literal["stop", "backtrack"] = "stop",
    progress: bool | None = None,
) -> Fit:
    """Train a model/guide pair by stochastic variational inference.

    Started by `torchrun`, every process takes its rows of each minibatch, on its own noise, and
    gradients are averaged: batch size, objective and history mean what they mean for one process.
    The first one writes and shows progress. A group that torchrun starts again, because a process
    was lost, goes on from the last checkpoint in `out`.

    Args:
        pair: anything with `.model` and `.guide` that take a batch, such as a `VAE`; or an `SVI`
            of such a pair, which then says what each step does.
        train: the training data, shape `(N, *event)`; a data set draws its binarization anew. A
            tuple `(data, y, ...)` has further rows for each datum, and the programs are called
            on `(x, y, ...)`. Of a `numpy.memmap` or a zarr array only what the next steps need is
            in memory, and rows are shuffled within windows of it (`pyro_vae.streams`); a torch
            `DataLoader` gives batches of x, or of `(x, y, ...)`, in its own order and size.
        validation: data for early stopping and for choosing the epoch whose weights are kept.
        epochs: passes over the training data.
        batch_size: M, data in a minibatch.
        objective: the bound to climb, `Trace_ELBO(num_particles)` by default; not with an `SVI`.
            `TraceEnum_ELBO()` sums over the guide's discrete latents, save those whose site has an
            `infer["enumerate"]` of its own.
        num_particles: L, draws of z for each datum and step, where `objective` is the default.
        optimizer: a torch optimizer or a callable that makes one of a list of parameters;
            by default fused Adam at `learning_rate`; not with an `SVI`.
        learning_rate: step size of the default optimizer.
        schedule: makes a learning rate schedule, stepped after every step, of the optimizer and
            the total number of steps.
        patience: stop after so many epochs without a better validation ELBO; never by default.
        seed: of the order of the data, their binarization and the noise. The same seed gives the
            same numbers; torch's global random state is left as it was found.
        device: where to train, such as `"cuda"`, of which each process of a machine takes its own;
            by default where the pair's parameters are.
        compile: compile the step (`pv.SVI`). `"auto"` compiles the package's own models in runs of
            at least 5,000 steps, which earn back the time that compiling takes; pass `True` for a
            model and guide of your own. Not with an `SVI`, which has its own.
        precision: `"fp32"`, or `"bf16"` for the networks' layers (`pv.SVI`); not with an `SVI`.
        out: a folder for the trained model (`model/`, where the pair is a `Part` such as a `VAE`)
            and the history (`history.json`), and for checkpoints: the last two and the one of the
            best epoch. Ctrl-C and SIGTERM save one and end in order; a second signal ends at once.
        resume: go on from the newest checkpoint in `out`, bit for bit, with the same settings and
            data; from the beginning where there is none. A run that has ended returns its result.
        checkpoint_seconds: time between checkpoints within an epoch; each epoch's end writes one.
        on_nan: what a loss or a parameter that is not finite does: `"stop"`; or `"backtrack"` to
            the newest checkpoint of an earlier step and go on with half the learning rate, at most
            five times, then stop. The history's `rate_factor` says what the rate is multiplied by.
        progress: show a progress bar; by default where standard error is a terminal.

    Returns:
        The history of the run. The pair itself is trained in place.

    Raises:
        ValueError: for settings or data that cannot be trained on, before anything is changed.
        CheckpointError: when another run holds the folder, when it has a link or something else in
            the place of what is to be written, when all checkpoints are damaged, or when the run to
            resume had other settings or data.
        TrainingError: when the loss or a parameter stops being finite; the last good weights are
            kept.
        DistributedError: when the processes of a group were not started alike.
    """
    if on_nan not in ("stop", "backtrack"):
        raise ValueError(f"on_nan must be 'stop' or 'backtrack', got {on_nan!r}")
    _check_settings(epochs, batch_size, num_particles, patience, validation, objective)
    programs = (pair.model, pair.guide)
    kind = device_of(*programs) if device is None else resolve_device(device)
    torch_device = own_device(kind)
    for program in programs:
        if isinstance(program, nn.Module):
            program.to(torch_device)
    data = as_dataset(train).to(torch_device)
    held_out = None if validation is None else as_dataset(validation).to(torch_device)
    batch_size = data.training_batch_size(batch_size)
    total_steps = epochs * data.num_batches(batch_size)
    svi = _per_datum_svi(
        pair, data, total_steps, objective, num_particles, optimizer, learning_rate, compile,
        precision,
    )  # fmt: skip
    if held_out is not None:
        check_data(pair, held_out, objective=svi.objective)
        sampler = Sampler(pair, held_out.batch(slice(2)), given_globals=True)
    if resume and out is None:
        raise ValueError("resume=True needs the folder of the run: pass out=")
    if (out is not None or on_nan == "backtrack") and not isinstance(svi.optim, TorchOptim):
        raise ValueError(
            "checkpoints (out=, on_nan='backtrack') need a torch optimizer, the SVI has one of "
            "pyro.optim: give pv.SVI functools.partial(torch.optim.Adam, lr=1e-3), say"
        )
    if out is not None and isinstance(pair, Part):
        describe_part(pair)  # what cannot be saved is better said before it is trained
    folder = None
    if out is not None:
        folder = from_first(lambda: results_folder(out, [HISTORY], model=isinstance(pair, Part)))

    # The order of the data is common to all processes, the noise is each one's own.
    states = np.random.SeedSequence(seed).generate_state(1 + world_size(), np.uint64)
    data_seed, noise_seeds = states[1], np.delete(states, 1)
    generator = torch.Generator(data.values.device).manual_seed(int(data_seed))

    settings = {
        "dataset": data.name,
        "binarization": data.binarization,
        "num_train": len(data),
        "epochs": epochs,
        "batch_size": batch_size,
        "objective": type(svi.objective).__name__,
        "num_particles": getattr(svi.objective, "num_particles", 1),
        "seed": seed,
        "device": str(kind),
        "precision": svi.precision,
    }
    check_same("settings", settings)
    curve = "train_elbo" if is_elbo(svi.objective) else "train_objective"
    with (
        contextlib.ExitStack() as held,
        torch.random.fork_rng(),
        pyro.validation_enabled(False),  # `check` has validated all that is static
        warnings.catch_warnings(),
        interruptible(also_sigterm=folder is not None) as interrupted,
        training_bar(progress if is_first() else False, total_steps, epochs) as report,
    ):
        warnings.filterwarnings("ignore", message="Encountered NaN")  # an error of its own
        checkpoints = from_first(lambda: held.enter_context(_checkpoints(folder, on_nan)))
        torch.manual_seed(int(noise_seeds[rank()]))
        few = data.batch(slice(2))
        run = RunState(
            svi, programs, generator, few, schedule, total_steps, checkpoints, checkpoint_seconds
        )
        held.callback(run.close)  # before the folder is free for another run
        if checkpoints is not None:
            # Compiled sums are rounded otherwise: such a run would not go on bit for bit.
            settled = settings | {"patience": patience, "compile": svi.compile}
            identity = describe(svi, programs, total_steps, data, held_out)
            run.open(settled | identity, resume or was_restarted())
            if run.progress.step and run.progress.stopped is None:
                svi.prepare(*own_rows(data.batch(slice(batch_size)))[0])
            if on_nan == "backtrack" and not run.progress.step:
                run.save()  # to have something to go back to
        while run.progress.stopped is None:
            now = run.progress
            end = _take_steps(run, data, batch_size, total_steps // epochs, interrupted, report)
            if end.not_finite is not None:
                _handle_nan(pair, end.not_finite, end.parameter, run, on_nan)
                continue  # it went back
            run.share_buffers()
            if end.signal:
                run.save()  # before the epoch is closed: it goes on when the run is resumed
            epoch = now.epoch
            entry = {
                "epoch": epoch,
                "step": now.step,
                "num_data": now.num_seen,
                curve: now.total / now.num_seen,
                "seconds": time.perf_counter() - run.epoch_started,
            }
            if on_nan == "backtrack":
                entry["rate_factor"] = now.rate_factor
            if held_out is not None:
                entry |= _validate(sampler, held_out, int(noise_seeds[0]))
            run.end_epoch(entry)
            if not end.signal:
                if patience is not None and epoch - now.best["epoch"] >= patience:
                    now.stopped = "early stopping"
                elif epoch == epochs:
                    now.stopped = "finished"
                run.save()
            if now.stopped is None and (end.signal or _signal_to_any(interrupted())):
                now.stopped = "interrupted"
        now = run.progress
        run.finish_writing()
        run.restore_best()
        settings["engine"] = "compiled" if svi.num_compiled_steps else "eager"
        settings["num_processes"] = world_size()
        assert now.stopped is not None
        result = Fit(now.history, now.best, now.stopped, now.step, run.seconds, settings)
        if folder is not None and is_first():
            _write_results(pair, result, folder)
            if now.stopped == "interrupted":
                _say_how_to_resume(run, folder)
    if interrupted() == signal.SIGTERM:
        sys.stdout.flush()
        signal.raise_signal(signal.SIGTERM)  # now to whoever handled it before, or to the end
    return result


@contextlib.contextmanager
def _checkpoints(folder: Path | None, on_nan: str) -> Iterator[CheckpointStore | None]:
    """Open the checkpoints in a run's folder, or those that it needs to go back in another one."""
    if folder is not None:
        with opened(folder) as checkpoints:
            yield checkpoints
    elif on_nan == "backtrack":
        with tempfile.TemporaryDirectory() as temporary, opened(Path(temporary)) as checkpoints:
            yield checkpoints
    else:
        yield None


def _write_results(pair: PairLike, fit: Fit, folder: Path) -> None:
    """Write model and history; where the disk refuses, warn: what was trained is not lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(pair, Part):
            save(pair, folder / MODEL)
        write_json(folder / HISTORY, fit.history)
    except (OSError, CheckpointError) as error:
        warnings.warn(
            f"the trained model and its history cannot be written into {folder} ({error}); the "
            "weights are in the pair, and the result is returned",
            stacklevel=4,  # whoever called `fit`, which has a decorator
        )


def _say_how_to_resume(run: RunState, folder: Path) -> None:
    print(
        f"interrupted at step {run.progress.step}; the last checkpoint in {folder} is of step "
        f"{run.saved_step}. The same call with resume=True goes on",
        file=sys.stderr,
    )
