"""`fit`: Algorithm 1 of Kingma & Welling (2013) over epochs, with a validation bound beside it.

Each step draws a minibatch of M data, estimates the bound per datum and its gradients on it, and
lets the optimizer climb. What is reported is in nats per datum.
"""

import contextlib
import functools
import math
import numbers
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vae.checkpoints import MODEL, results_folder, save
from pyro_vae.checkpoints import describe as describe_part
from pyro_vae.checks import check_data
from pyro_vae.datasets import Chunk, Data, Dataset, as_dataset
from pyro_vae.distributed import (
    check_same,
    dealt,
    from_first,
    gather,
    is_first,
    own_device,
    own_rows,
    rank,
    was_restarted,
    world_size,
)
from pyro_vae.failures import TrainingError, described
from pyro_vae.folders import CheckpointError, write_json
from pyro_vae.identity import describe
from pyro_vae.lowering import can_compile
from pyro_vae.objectives import is_elbo, per_datum
from pyro_vae.pairs import PairLike
from pyro_vae.parts import Part, device_of, resolve_device
from pyro_vae.progress import training_bar
from pyro_vae.rates import Schedule
from pyro_vae.resuming import Run
from pyro_vae.runs import Checkpoints, opened
from pyro_vae.signals import interruptible
from pyro_vae.sites import untouched
from pyro_vae.streams import worker_deaths_told
from pyro_vae.svi import SVI, Compile, Precision, is_own
from pyro_vae.traces import Sampler, data_per_chunk, seed_chunk
from pyro_vae.updates import OptimizerFactory, TorchOptim

# Compiling takes ten seconds or so, and a compiled step saves one or two milliseconds.
STEPS_WORTH_COMPILING = 5000
# Of several processes; asking each other takes some tenths of a millisecond.
STEPS_BETWEEN_AGREEMENTS = 10
HISTORY = "history.json"


@dataclass
class Fit:
    """What a training run did; ELBOs are in nats per datum.

    `history` has one entry for each epoch. Its `train_elbo` is the mean over the epoch's steps; an
    objective whose value is not the ELBO (beta, importance-weighted, free bits) is called
    `train_objective` instead, and `validation_elbo` is the ELBO all the same. `best` is the entry
    whose weights the pair now has: the best on validation data, or the last where there were none.
    `stopped` says why the run ended: `"finished"`, `"early stopping"` or `"interrupted"`.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    stopped: str = "finished"
    num_steps: int = 0
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        """Training data seen each second, validation left out."""
        seen = sum(entry["num_data"] for entry in self.history)
        return seen / max(sum(entry["seconds"] for entry in self.history), 1e-9)


@worker_deaths_told()
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
    batch_size = getattr(data.values, "batch_size", min(batch_size, len(data)))
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
        run = Run(
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


class _End(NamedTuple):
    """How an epoch's steps came to an end.

    `signal` cut them short; on the batch `not_finite` the parameter of that name, or the loss where
    it is None, stopped being finite.
    """

    signal: int | None = None
    not_finite: tuple[Tensor, ...] | None = None
    parameter: str | None = None


def _take_steps(
    run: Run,
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


@contextlib.contextmanager
def _checkpoints(folder: Path | None, on_nan: str) -> Iterator[Checkpoints | None]:
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


def _say_how_to_resume(run: Run, folder: Path) -> None:
    print(
        f"interrupted at step {run.progress.step}; the last checkpoint in {folder} is of step "
        f"{run.saved_step}. The same call with resume=True goes on",
        file=sys.stderr,
    )


def _per_datum_svi(
    pair: PairLike | SVI,
    data: Dataset,
    total_steps: int,
    objective: ELBO | None,
    num_particles: int,
    optimizer: Optimizer | OptimizerFactory | None,
    learning_rate: float,
    compile: Compile,
    precision: Precision,
) -> SVI:
    """Check a pair; return the step to train it with, its own if it is an `SVI`, per datum."""
    optim: Any
    guide = pair.guide
    if isinstance(pair, SVI):
        own = objective is None and optimizer is None and num_particles == 1
        if not own or compile != "auto" or precision != "fp32":
            raise ValueError(
                "an SVI has its own objective, optimizer, compile and precision: pass them to "
                "pv.SVI"
            )
        bound, optim = pair.objective, pair.optim
        compile, precision = pair.compile, pair.precision
    else:
        # Draws stand in a plate on the left; networks take any leading dimensions.
        bound = objective or Trace_ELBO(num_particles, vectorize_particles=num_particles > 1)
        optim = optimizer or functools.partial(torch.optim.Adam, lr=learning_rate, fused=True)
        if isinstance(getattr(bound, "objective", bound), TraceEnum_ELBO):
            guide = config_enumerate(guide, expand=True)
    if compile == "auto":
        own = is_own(pair.model, pair.guide)
        compile = own and total_steps >= STEPS_WORTH_COMPILING and can_compile()
    table = check_data(pair, data, objective=bound)
    model, guide = (per_datum(p, len(data), *table.data_plates) for p in (pair.model, guide))
    svi = SVI(model, guide, optim, bound, compile=compile, precision=precision)
    svi.nest_plates(table.plate_nesting)
    return svi


def _check_settings(
    epochs: int,
    batch_size: int,
    num_particles: int,
    patience: int | None,
    validation: object,
    objective: ELBO | None,
) -> None:
    for name, value in [
        ("epochs", epochs),
        ("batch_size", batch_size),
        ("num_particles", num_particles),
        ("patience", 1 if patience is None else patience),
    ]:
        if not (isinstance(value, numbers.Real) and value >= 1 and value % 1 == 0):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if patience is not None and validation is None:
        raise ValueError("patience needs validation data: pass validation=, or leave patience out")
    if objective is not None and num_particles != 1:
        raise ValueError("num_particles belongs to the objective: pass objective=Trace_ELBO(L)")


def _validate(sampler: Sampler, data: Dataset, seed: int) -> dict[str, float]:
    """One draw for each validation datum, the same noise every epoch, so that epochs compare.

    Global latents are drawn from the guide; their KL divergence belongs to the training data.
    """

    def score(chunk: Chunk) -> Tensor:
        place, read = chunk
        batch = read()
        seed_chunk(seed, place)
        return sampler.log_weights(batch, 1).log_weights[0].double().cpu()

    with untouched():
        chunks = data.chunks(data_per_chunk(data.event_shape, 1))
        elbo = torch.cat(list(dealt(chunks, score)))
    se = elbo.std().item() / math.sqrt(len(elbo)) if len(elbo) > 1 else math.nan
    return {"validation_elbo": elbo.mean().item(), "validation_elbo_se": se}


def _handle_nan(
    pair: PairLike, batch: tuple[Tensor, ...], parameter: str | None, run: Run, on_nan: str
) -> None:
    """Go back to a checkpoint with a lower learning rate, if asked, or raise `TrainingError`."""
    now = run.progress
    what, step = (f"parameter {parameter!r}", now.step) if parameter else ("the loss", now.step + 1)
    failure = described(what, step, now.epoch, pair, batch)
    if on_nan == "backtrack" and run.backtrack():
        there = run.progress
        if is_first():
            print(
                f"{failure}; back at step {there.step}, with {there.rate_factor:g} times the "
                "learning rate",
                file=sys.stderr,
            )
        return
    if run.not_finite() is None:
        kept = "the weights of the step before are kept"
    else:
        kept = f"the weights are back at epoch {int(now.best.get('epoch', 0))}"
        run.restore_best()
    raise TrainingError(
        f"{failure}; {kept}. Try a lower learning rate, or look at the data of this batch"
    )
