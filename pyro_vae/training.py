"""`fit`: Algorithm 1 of Kingma & Welling (2013) over epochs, with a validation bound beside it.

Each step draws a minibatch of M data, estimates the bound per datum and its gradients on it, and
lets the optimizer climb. What is reported is in nats per datum.
"""

import contextlib
import functools
import json
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.checkpoints import save, writable_folder
from pyro_vae.checks import check
from pyro_vae.data import Data, Dataset, as_dataset
from pyro_vae.lowering import can_compile
from pyro_vae.objectives import is_elbo, per_datum
from pyro_vae.pairs import PairLike
from pyro_vae.parts import Part, device_of, resolve_device
from pyro_vae.supports import check_support
from pyro_vae.svi import SVI, Compile, Precision
from pyro_vae.traces import Sampler, data_per_chunk
from pyro_vae.updates import OptimizerFactory

Schedule = Callable[[Optimizer, int], LRScheduler]
# Compiling takes ten seconds or so, and a compiled step saves one or two milliseconds.
STEPS_WORTH_COMPILING = 5000


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step, the site and the batch."""


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
    progress: bool | None = None,
) -> Fit:
    """Train a model/guide pair by stochastic variational inference.

    Args:
        pair: anything with `.model` and `.guide` that take a batch, such as a `VAE`; or an `SVI`
            of such a pair, which then says what each step does.
        train: the training data, shape `(N, *event)`; a data set draws its binarization anew. A
            tuple `(data, y, ...)` has further rows for each datum, and the programs are called
            on `(x, y, ...)`.
        validation: data for early stopping and for choosing the epoch whose weights are kept.
        epochs: passes over the training data.
        batch_size: M, data in a minibatch.
        objective: the bound to climb, `Trace_ELBO(num_particles)` by default; not with an `SVI`.
        num_particles: L, draws of z for each datum and step, where `objective` is the default.
        optimizer: a torch optimizer or a callable that makes one of a list of parameters;
            by default fused Adam at `learning_rate`; not with an `SVI`.
        learning_rate: step size of the default optimizer.
        schedule: makes a learning rate schedule, stepped after every step, of the optimizer and
            the total number of steps.
        patience: stop after so many epochs without a better validation ELBO; never by default.
        seed: of the order of the data, their binarization and the noise. The same seed gives the
            same numbers; torch's global random state is left as it was found.
        device: where to train, such as `"cuda"`; by default where the pair's parameters are.
        compile: compile the step (`pv.SVI`); `"auto"` does so in runs of at least 5,000 steps,
            which earn back the time that compiling takes. Not with an `SVI`, which has its own.
        precision: `"fp32"`, or `"bf16"` for the networks' layers (`pv.SVI`); not with an `SVI`.
        out: a folder for the trained model (`model/`, where the pair is a `Part` such as a `VAE`)
            and the history (`history.json`).
        progress: show a progress bar; by default where standard error is a terminal.

    Returns:
        The history of the run. The pair itself is trained in place.

    Raises:
        ValueError: for settings or data that cannot be trained on, before anything is changed.
        TrainingError: when the loss stops being finite; the last good weights are kept.
    """
    _check_settings(epochs, batch_size, num_particles, patience, validation, objective)
    programs = (pair.model, pair.guide)
    torch_device = device_of(*programs) if device is None else resolve_device(device)
    for program in programs:
        if isinstance(program, nn.Module):
            program.to(torch_device)
    data = as_dataset(train).to(torch_device)
    held_out = None if validation is None else as_dataset(validation).to(torch_device)
    batch_size = min(batch_size, len(data))
    total_steps = epochs * math.ceil(len(data) / batch_size)
    svi = _per_datum_svi(
        pair, len(data), total_steps, objective, num_particles, optimizer, learning_rate, compile,
        precision,
    )  # fmt: skip
    _check_data(pair, svi.objective, data, held_out)
    folder = None if out is None else writable_folder(out)

    noise_seed, data_seed = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    generator = torch.Generator(data.values.device).manual_seed(int(data_seed))

    result = Fit(
        settings={
            "dataset": data.name,
            "binarization": data.binarization,
            "num_train": len(data),
            "epochs": epochs,
            "batch_size": batch_size,
            "objective": type(svi.objective).__name__,
            "num_particles": getattr(svi.objective, "num_particles", 1),
            "seed": seed,
            "device": str(torch_device),
            "precision": svi.precision,
        }
    )
    curve = "train_elbo" if is_elbo(svi.objective) else "train_objective"
    keeper = _Keeper(svi, programs)
    scheduler: LRScheduler | None = None
    started = time.perf_counter()
    with (
        torch.random.fork_rng(),
        pyro.validation_enabled(False),  # `check` has validated all that is static
        warnings.catch_warnings(),
        _interruptible() as interrupted,
        _progress_bar(progress, total_steps) as report,
    ):
        warnings.filterwarnings("ignore", message="Encountered NaN")  # an error of its own
        torch.manual_seed(int(noise_seed))
        for epoch in range(1, epochs + 1):
            epoch_started, total, seen = time.perf_counter(), 0.0, 0
            for index in _batches(len(data), batch_size, generator):
                batch = data.draw_batch(index, generator)
                loss = svi.step(*batch)
                if not math.isfinite(loss):
                    _stop_on_nan(pair, batch, result.num_steps, epoch, keeper)
                result.num_steps += 1
                total, seen = total - loss * len(index), seen + len(index)
                if schedule is not None:
                    if scheduler is None:
                        # Made after the first step, when the optimizer has its parameters.
                        scheduler = schedule(svi.optim.optimizer, total_steps)
                    else:
                        scheduler.step()
                report(len(index), epoch, epochs, total / seen)
                if interrupted():
                    break
            entry = {
                "epoch": epoch,
                "step": result.num_steps,
                "num_data": seen,
                curve: total / seen,
                "seconds": time.perf_counter() - epoch_started,
            }
            if held_out is not None:
                entry |= _validate(pair, held_out, int(noise_seed))
            result.history.append(entry)
            keeper.keep(entry)
            if interrupted():
                result.stopped = "interrupted"
                break
            if patience is not None and epoch - keeper.best["epoch"] >= patience:
                result.stopped = "early stopping"
                break
    keeper.restore()
    result.settings["engine"] = "compiled" if svi.num_compiled_steps else "eager"
    result.best = keeper.best
    result.seconds = time.perf_counter() - started
    if folder is not None:
        if isinstance(pair, Part):
            save(pair, folder / "model")
        (folder / "history.json").write_text(json.dumps(result.history, indent=1) + "\n")
    return result


def _per_datum_svi(
    pair: PairLike | SVI,
    num_data: int,
    total_steps: int,
    objective: ELBO | None,
    num_particles: int,
    optimizer: Optimizer | OptimizerFactory | None,
    learning_rate: float,
    compile: Compile,
    precision: Precision,
) -> SVI:
    """Return the step to train with: the pair's own if it is an `SVI`, in nats per datum."""
    optim: Any
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
    if compile == "auto":
        compile = total_steps >= STEPS_WORTH_COMPILING and can_compile()
    model, guide = per_datum(pair.model, num_data), per_datum(pair.guide, num_data)
    return SVI(model, guide, optim, bound, compile=compile, precision=precision)


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
        if int(value) != value or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if patience is not None and validation is None:
        raise ValueError("patience needs validation data: pass validation=, or leave patience out")
    if objective is not None and num_particles != 1:
        raise ValueError("num_particles belongs to the objective: pass objective=Trace_ELBO(L)")


def _check_data(pair: PairLike, objective: object, *datasets: Dataset | None) -> None:
    """Check a first batch of each data set in depth, and the support of all the rest."""
    for data in datasets:
        if data is None:
            continue
        check(pair, data.batch(slice(8)), objective=objective)
        if data.values.dtype == torch.uint8:
            continue  # a data set's own pixels: in range by construction
        with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
            first = data.batch(slice(1))
            guide = poutine.trace(pair.guide).get_trace(*first)
            model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*first)
        for name in model.observation_nodes:
            fn: Any = model.nodes[name]["fn"]
            # One datum's distribution, whose support all data share.
            if fn.batch_shape == (1,) and model.nodes[name]["value"] is first[0]:
                check_support(fn, data[:], name)


def _batches(num_data: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.randperm(num_data, generator=generator, device=generator.device)
    yield from order.split(batch_size)


def _validate(pair: PairLike, data: Dataset, seed: int) -> dict[str, float]:
    """One draw for each validation datum, the same noise every epoch, so that epochs compare."""
    total: list[Tensor] = []
    rows = data_per_chunk(data.event_shape, 1)
    with torch.random.fork_rng():
        sampler = Sampler(pair, data.batch(slice(2)))
        torch.manual_seed(seed)
        for start in range(0, len(data), rows):
            batch = data.batch(slice(start, start + rows))
            total.append(sampler.log_weights(batch, 1).log_weights[0])
    elbo = torch.cat(total).double()
    se = elbo.std().item() / math.sqrt(len(elbo)) if len(elbo) > 1 else math.nan
    return {"validation_elbo": elbo.mean().item(), "validation_elbo_se": se}


class _Keeper:
    """Keeps a copy of the best weights and buffers so far, the latest where nothing ranks them."""

    def __init__(self, svi: SVI, programs: Iterable[Any]) -> None:
        self.svi = svi
        self.modules = [program for program in programs if isinstance(program, nn.Module)]
        self.best: dict[str, float] = {}
        self._copy: list[tuple[Tensor, Tensor]] = []

    def keep(self, entry: dict[str, float]) -> None:
        score = entry.get("validation_elbo", math.inf)
        if self.best and not score >= self.best.get("validation_elbo", -math.inf):
            return
        self.best = entry
        self._copy = [(tensor, tensor.detach().clone()) for tensor in self._tensors()]

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, copy in self._copy:
                tensor.copy_(copy)

    def all_finite(self) -> bool:
        return all(
            tensor.isfinite().all() for tensor in self._tensors() if tensor.is_floating_point()
        )

    def _tensors(self) -> list[Tensor]:
        tensors = dict(self.svi.parameters)
        for module in self.modules:
            tensors |= dict.fromkeys([*module.parameters(), *module.buffers()])
        return list(tensors)


def _stop_on_nan(
    pair: PairLike, batch: tuple[Tensor, ...], step: int, epoch: int, keeper: _Keeper
) -> None:
    culprit, x = _first_bad_site(pair, batch), batch[0]
    if keeper.all_finite():
        kept = "the weights of the step before are kept"
    else:
        kept = f"the weights are back at epoch {int(keeper.best.get('epoch', 0))}"
        keeper.restore()
    raise TrainingError(
        f"the loss is not finite at step {step + 1} (epoch {epoch}), batch of {len(x)} data with "
        f"values in [{x.min().item():g}, {x.max().item():g}]: {culprit}; {kept}. Try a lower "
        "learning rate, or look at the data of this batch"
    )


def _first_bad_site(pair: PairLike, batch: tuple[Tensor, ...]) -> str:
    with torch.no_grad(), pyro.validation_enabled(False):
        guide = poutine.trace(pair.guide).get_trace(*batch)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(*batch)
        for role, trace in (("guide", guide), ("model", model)):
            for name, node in trace.nodes.items():
                if node["type"] == "sample":
                    fn: Any = node["fn"]
                    if not torch.isfinite(fn.log_prob(node["value"])).all():
                        return f"site {name!r} of the {role} has a log density that is not finite"
    return "the sum over sites overflows, while each site's log density is finite"


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request to end in order; a second one interrupts at once."""
    requested = threading.Event()

    def handle(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, previous)
        requested.set()

    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set  # signals reach the main thread only
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress_bar(show: bool | None, total_steps: int) -> Iterator[Callable[..., None]]:
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.fields[rate]:,.0f} data/s"),
        TimeRemainingColumn(),
        TextColumn("ELBO {task.fields[elbo]:.2f} nats per datum"),
        console=console,
        transient=True,
        disable=not (console.is_terminal if show is None else show),
        refresh_per_second=4,
    )
    task = bar.add_task("", total=total_steps, epoch="", rate=0.0, elbo=math.nan)
    started, seen = time.perf_counter(), 0
    # What takes long beside the steps, such as compiling, is said above the bar.
    log, handler = logging.getLogger("pyro_vae"), RichHandler(
        console=console, show_time=False, show_level=False, show_path=False
    )  # fmt: skip
    level = log.level

    def report(num_data: int, epoch: int, epochs: int, elbo: float) -> None:
        nonlocal seen
        seen += num_data
        rate = seen / (time.perf_counter() - started)
        bar.update(task, advance=1, epoch=f"{epoch}/{epochs}", rate=rate, elbo=elbo)

    with bar:
        if not bar.disable:
            log.addHandler(handler)
            log.setLevel(logging.INFO)
        try:
            yield report
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
