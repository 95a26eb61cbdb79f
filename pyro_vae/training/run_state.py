"""The state of a training run: counters, weights, random states, clocks."""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.checkpointing.checkpoint_store import CheckpointWriter
from pyro_vae.checkpointing.fingerprint import describe_objectives
from pyro_vae.checkpointing.identity import Identity
from pyro_vae.checkpointing.resumable import Progress
from pyro_vae.checkpointing.snapshot import BUFFER
from pyro_vae.data.dataset import Dataset
from pyro_vae.distributed import copy_from_first, own_rows, world_size
from pyro_vae.engine.guards import modules_of
from pyro_vae.pairs.inputs import program_error
from pyro_vae.pairs.pair import Program
from pyro_vae.pairs.sites import Node
from pyro_vae.pairs.state import restored, unchanged
from pyro_vae.runtime.files import JSONObject
from pyro_vae.svi import SVI
from pyro_vae.training import averaging
from pyro_vae.training.averaging import Kind, Weights
from pyro_vae.training.learning_rate import Rates

Report = Callable[[int, int, int, float], None]


@dataclass
class Clocks:
    """Times of `time.perf_counter`.

    Attributes:
        run: Start of the run, moved by its pauses.
        epoch: Start of the epoch, moved by its pauses.
        saved: Time of the last checkpoint.
    """

    run: float = field(default_factory=time.perf_counter)
    epoch: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.perf_counter)


@dataclass
class RunState:
    """Everything of a training run that changes.

    Attributes:
        svi: Training step.
        programs: Model and guide. Their parameters and buffers are the weights of the run.
        train: Training data.
        generator: Generator of the order of the data and of their binarization.
        rates: Learning rate schedule.
        named: Parameters by the names that the programs give them.
        order_state: State of the generator before the order of the epoch was drawn.
        writer: Writes checkpoints; None for a run without checkpoints.
        interrupted: Returns the signal that asks the run to end, or None.
        report: Updates the progress bar.
        best: Parameters and buffers in the best epoch, by name.
        average: Parameters and buffers, each with its average over training steps.
        progress: Counters and history.
        settings: Settings and fingerprint of the run, in their JSON form.
        identity: Settings, constants and code that the programs read.
        late: Names of restored parameters that have not yet appeared in the programs.
        awaited: Their constraints; None if all have appeared.
        batches: Remaining batches of the epoch; None between two epochs.
        loader_at_start: States of the generators of a `DataLoader` at the start of the epoch.
        sizes: Sizes of the minibatches so far.
        compilation_then: State of compilation in the checkpoint that the run was restored from.
        clocks: Start times of the run and the epoch.
        annealed: Last epoch in which the beta of the objective changes.
    """

    svi: SVI
    programs: tuple[Program, Program]
    train: Dataset
    generator: torch.Generator
    rates: Rates
    named: dict[str, Tensor]
    order_state: Tensor
    writer: CheckpointWriter | None
    interrupted: Callable[[], int | None]
    report: Report
    best: dict[str, Tensor] = field(default_factory=dict)
    average: Weights = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    settings: JSONObject = field(default_factory=dict)
    identity: Identity = field(default_factory=lambda: Identity({}, {}))
    late: set[str] = field(default_factory=set)
    awaited: "LateConstraints | None" = None
    batches: Iterator[tuple[Tensor, ...]] | None = None
    loader_at_start: JSONObject = field(default_factory=dict)
    sizes: dict[int, None] = field(default_factory=dict)
    compilation_then: JSONObject | None = None
    clocks: Clocks = field(default_factory=Clocks)
    annealed: int = 0

    @property
    def seconds(self) -> float:
        """Duration of the run, without pauses."""
        return time.perf_counter() - self.clocks.run

    @property
    def epoch_seconds(self) -> float:
        """Duration of the epoch, without pauses."""
        return time.perf_counter() - self.clocks.epoch

    def settings_of(self, then: JSONObject) -> JSONObject:
        """Return the settings as those of a shorter run that this one extends.

        Its number of epochs and its annealing are comparable. It may have had another `patience`,
        and its number of steps may have decided whether to compile.

        Args:
            then: Settings of the shorter run.
        """
        steps = self.rates.total_steps // self.settings["epochs"] * then["epochs"]
        objectives = json.loads(json.dumps(describe_objectives(self.svi, steps)))
        free = {name: then[name] for name in ("epochs", "patience", "compile")}
        return self.settings | free | {"objectives": objectives}

    def start_epoch(self) -> None:
        """Start the clock of an epoch, or of the rest of an epoch."""
        self.clocks.epoch = time.perf_counter() - self.progress.epoch_seconds

    @property
    def loader_state(self) -> JSONObject:
        """States of the generators of a `DataLoader` from which the epoch can be read again."""
        if self.progress.batch:
            return self.loader_at_start
        return {} if self.train.loader is None else self.train.loader.state()

    @loader_state.setter
    def loader_state(self, states: JSONObject) -> None:
        if self.train.loader is not None:
            self.train.loader.set_state(states)

    def draw_batches(self, batch_size: int, num_batches: int) -> Iterator[tuple[Tensor, ...]]:
        """Draw the order of an epoch, or draw it again, and return its remaining batches."""
        now = self.generator.get_state()
        is_resumed = self.progress.batch > 0
        if is_resumed:
            self.generator.set_state(self.order_state)
        else:
            self.order_state = now
        if self.train.loader is not None:
            self.loader_at_start = self.train.loader.state()
        order = self.train.order(self.generator, batch_size, self.progress.batch)
        if self.train.loader is None:  # a loader ends by itself
            # Without the rows that `drop_last` leaves out, also if no step of the epoch is left.
            order = itertools.islice(order, num_batches - self.progress.batch)
        if is_resumed:
            self.generator.set_state(now)
        return self.train.batches(order, self.generator)

    def count(self, loss: float, num_data: int) -> None:
        """Count a training step and step the learning rate schedule."""
        if self.progress.step == 0:
            self.progress.first = -loss
        self.progress.step += 1
        self.progress.batch += 1
        self.progress.total -= loss * num_data
        self.progress.num_seen += num_data
        self.sizes[num_data] = None
        if self.awaited is not None and self.awaited.keep():
            self.awaited = None
        optim = self.svi.optim
        self.rates.advance(optim.optimizer, self.progress.rate_factor, optim.changes.first)

    def add_to_average(self, kind: Kind) -> None:
        """Add the weights after a step to their average."""
        progress = self.progress
        if kind is None:
            return
        if kind == "last" and progress.step <= averaging.first_step(self.rates.total_steps):
            self.average, progress.num_averaged = [], 0
            return
        tensors = self.svi.parameters if self.average else self.tensors().values()
        known = {tensor for tensor, _ in self.average}
        new = [tensor for tensor in tensors if tensor not in known]
        averaging.add(self.average, new, kind, progress.num_averaged)
        progress.num_averaged += 1

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the weights are their averages, if there are any."""
        return averaging.swapped_in(self.average)

    def end_epoch(self, entry: dict[str, float]) -> None:
        """Append an epoch to the history; copy its weights if it is the best so far."""
        progress = self.progress
        progress.history.append(entry)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.total, progress.num_seen, progress.epoch_seconds = 0.0, 0, 0.0
        score, best = entry.get("validation_elbo", torch.inf), progress.best
        if best and not score >= best.get("validation_elbo", -torch.inf):
            return
        progress.best = entry
        if self.writer is not None:
            self.writer.wait()  # the next name depends on it
            progress.best_checkpoint = self.writer.store.next_name()
        self.keep_weights()

    def keep_weights(self) -> None:
        """Copy the weights as the best ones."""
        self.best = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}

    def restore_best(self) -> None:
        """Set parameters and buffers to their values in the best epoch."""
        # By name: programs may replace their buffers.
        tensors = self.tensors()
        averaging.set_to([(tensors[name], x) for name, x in self.best.items() if name in tensors])

    def not_finite(self) -> str | None:
        """Return the name of a non-finite parameter or of a buffer with NaN.

        Infinite buffers are allowed, because they are used as masks.
        """
        for name, tensor in self.tensors().items():
            if tensor.is_floating_point():
                bad = ~tensor.isfinite() if tensor.requires_grad else tensor.isnan()
                if bad.any():
                    return name
        return None

    def compilation(self) -> JSONObject:
        """Return for which sizes of minibatches there are compiled programs."""
        # A loader would be read again for batches that are larger than its usual ones.
        sizes = [n for n in self.sizes if n <= self.train.training_batch_size(n)]
        state = self.svi.compilation(own_batch(self.train.batch(slice(n))) for n in sizes)
        for rows, entry in zip(sizes, state["sizes"], strict=False):
            entry["rows"] = rows
        return state

    def restore_compilation(self, batch_size: int) -> None:
        """Compile the programs of the checkpoint; those of an older version have one size."""
        one = {"rows": batch_size, "steps": 0, "compiled": True}
        then = self.compilation_then or {"enabled": True, "started": True, "sizes": [one]}
        self.sizes = {entry["rows"]: None for entry in then["sizes"]}
        batches = (own_batch(self.train.batch(slice(n))) for n in self.sizes)
        self.svi.restore_compilation(batches, then)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, each once."""
        names: dict[Tensor, str] = {}
        for role, program in zip(("model", "guide"), self.programs, strict=True):
            if isinstance(program, nn.Module):
                for name, tensor in [*program.named_parameters(), *program.named_buffers()]:
                    names.setdefault(tensor, f"{role}.{name}")
        store = {tensor: name for name, tensor in pyro.get_param_store().named_parameters()}
        named = {tensor: name for name, tensor in self.named.items()}
        for number, tensor in enumerate(dict.fromkeys(named) | self.svi.parameters):
            name = named.get(tensor, store.get(tensor, f"number {number}"))
            names.setdefault(tensor, f"param.{name}")
        # Modules that functions and methods refer to.
        for number, module in enumerate(modules_of(*self.programs)):
            for name, tensor in module.named_buffers(recurse=False):
                names.setdefault(tensor, f"{BUFFER}{number}.{name}")
        return {name: tensor for tensor, name in names.items()}

    def share_buffers(self) -> None:
        """Copy buffers from the first process, since each process updates them by its own rows."""
        pairs = [(tensor, tensor) for tensor in self.tensors().values()] + self.average
        copy_from_first(value for tensor, value in pairs if not tensor.requires_grad)


def own_batch(batch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], float | None]:
    """Return this process's rows of a minibatch, and their share; None for a single process."""
    return (batch, None) if world_size() == 1 else own_rows(batch)


class LateConstraints(Messenger):
    """Sets the constraints of restored parameters when the programs give them.

    Args:
        names: Names of the parameters. `keep` removes those that have appeared.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names
        self._found: dict[str, constraints.Constraint] = {}
        self.context = ExitStack()

    def _pyro_param(self, msg: Node) -> None:
        if msg["name"] in self.names:
            found = msg["kwargs"].get("constraint", constraints.real)
            self._found[msg["name"]] = found
            pyro.get_param_store()._constraints[msg["name"]] = found

    def keep(self) -> bool:
        """Set the constraints for good, since trial runs restore the store.

        Returns:
            Whether all parameters have appeared. The context is then left, since programs are not
            compiled in a handler.
        """
        pyro.get_param_store()._constraints.update(self._found)
        self.names -= self._found.keys()
        self._found.clear()
        if not self.names:
            self.context.close()
        return not self.names


def register_parameters(
    programs: tuple[Program, Program], batch: tuple[Tensor, ...], known: Iterable[Tensor]
) -> None:
    """Give known parameters their names in Pyro's store, as steps of the programs have done.

    Compiled programs depend on the entries that they read. All else that the trial run changes is
    restored.
    """
    store, (model, guide) = pyro.get_param_store(), programs
    ids, found = set(map(id, known)), []
    with contextlib.suppress(Exception), torch.no_grad(), restored(*programs):  # steps raise it
        trace = poutine.trace(guide).get_trace(*batch)
        poutine.replay(model, trace=trace)(*batch)
        found = [(*entry, store._constraints[entry[0]]) for entry in store._params.items()]
    for name, tensor, constraint in found:
        if name not in store._params and id(tensor) in ids:
            store._params[name], store._constraints[name] = tensor, constraint
            store._param_to_name[tensor] = name


def named_parameters(
    svi: SVI, programs: tuple[Program, Program], batch: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Run guide and model once; return their unconstrained parameters by name.

    Raises:
        PairError: If they fail on a batch of this size, as with rows chosen by the program.
    """
    with (
        torch.no_grad(),
        unchanged(*programs),
        poutine.trace(param_only=True) as capture,
    ):
        try:
            guide = poutine.trace(svi.guide).get_trace(*batch)
            poutine.replay(svi.model, trace=guide)(*batch)
        except IndexError as error:
            raise program_error("pair", batch[0], error, *programs) from error
    nodes: dict[str, Node] = capture.trace.nodes
    return {name: site["value"].unconstrained() for name, site in nodes.items()}
