"""What a training run has to remember so that it goes on bit for bit where it was left.

`Progress` is what counts along; `RunState` adds the tensors, the optimizer, the schedule, random
states, writes them all as a checkpoint and puts them back.
"""

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.checkpointing import optimizer_state
from pyro_vae.checkpointing.checkpoint_store import Checkpoint, CheckpointStore
from pyro_vae.checkpointing.fingerprint import (
    OBJECTIVE_STATE,
    check_tensor,
    differences,
    refuse_other,
    versions,
)
from pyro_vae.data.dataset import Dataset
from pyro_vae.distributed import (
    check_same,
    copy_from_first,
    from_first,
    gather,
    is_first,
    rank,
    world_size,
)
from pyro_vae.objectives.nats_per_datum import objectives_of
from pyro_vae.runtime.devices import evaluating
from pyro_vae.runtime.files import CheckpointError
from pyro_vae.training.learning_rate import Rates, Schedule, scale_rates

MAX_BACKTRACKS = 5  # then the learning rate is 1/32 of what was asked for


@dataclass
class Progress:
    """How far a run is. `total` is the objective summed over the `num_seen` data of the epoch.

    `rate_factor` is what the learning rate is multiplied by: a half for each time that the run
    went back, a power of two, so that dividing by it is exact.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    total: float = 0.0
    num_seen: int = 0
    rate_factor: float = 1.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_checkpoint: str | None = None
    stopped: str | None = None
    seconds: float = 0.0
    epoch_seconds: float = 0.0


class RunState:
    """A training run as it stands: counts, weights, the best ones, optimizer, random states.

    Args:
        svi: the step, an `SVI`; with checkpoints its optimizer is a `TorchOptim`.
        programs: model and guide, whose parameters and buffers are the weights.
        generator: draws the order of the data and their binarization.
        batch: a few data, for the programs to show their parameters on.
        schedule: makes the learning rate schedule, of the optimizer and `total_steps`.
        total_steps: steps of the whole run.
        checkpoints: where they are written; None for a run that writes none.
        checkpoint_seconds: time between two of them within an epoch.
    """

    def __init__(
        self,
        svi: Any,
        programs: tuple[Any, ...],
        generator: torch.Generator,
        batch: tuple[Tensor, ...],
        schedule: Schedule | None,
        total_steps: int,
        checkpoints: CheckpointStore | None,
        checkpoint_seconds: float,
    ) -> None:
        self.svi, self.programs, self.generator = svi, programs, generator
        self.rates = Rates(schedule, total_steps)
        self.checkpoints, self.checkpoint_seconds = checkpoints, checkpoint_seconds
        self.progress = Progress()
        self.settings: dict[str, Any] = {}
        self.started = self.epoch_started = self.saved = time.perf_counter()
        self.saved_step = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pyro_vae")
        self._writing: tuple[int, Future[None]] | None = None
        self._order_state = generator.get_state()  # before the epoch's permutation was drawn
        self._met = self._meet_parameters(batch)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        check_same("parameters and buffers", shapes)
        copy_from_first(self.tensors().values())
        self._best = self._copies()

    @property
    def seconds(self) -> float:
        """How long the run has taken, pauses between its parts left out."""
        return time.perf_counter() - self.started

    def open(self, settings: dict[str, Any], resume: bool) -> None:
        """Begin a run that has checkpoints: at the newest one, or afresh.

        Args:
            settings: what has to be the same for the run to be resumed, as JSON has it.
            resume: whether to look for a checkpoint.

        Raises:
            CheckpointError: when all are damaged, or the newest is of another run.
        """
        self.settings = json.loads(json.dumps(settings))
        check_same("settings", self.settings)
        checkpoint = from_first(lambda: self._found(resume))
        if checkpoint is not None:
            self.restore(*checkpoint)

    def _found(self, resume: bool) -> Checkpoint | None:
        assert self.checkpoints is not None
        if not resume:
            self.checkpoints.set_aside()
            return None
        checkpoint = self.checkpoints.newest()
        if checkpoint is None:
            folder = self.checkpoints.path.parent
            print(f"{folder} has no checkpoint: training starts at step 0", file=sys.stderr)
        return checkpoint

    def start_epoch(self) -> None:
        """Start the clock of an epoch, or of what is left of it."""
        self.epoch_started = time.perf_counter() - self.progress.epoch_seconds

    def order(self, data: Dataset, batch_size: int) -> Iterator[Any]:
        """Return the epoch's minibatches that are still to come, for `data.batches`."""
        now = self.generator.get_state()
        under_way = self.progress.batch > 0
        if under_way:
            self.generator.set_state(self._order_state)
        else:
            self._order_state = now
        order = data.order(self.generator, batch_size, self.progress.batch)
        if under_way:
            self.generator.set_state(now)
        return order

    def count(self, loss: float, num_data: int) -> None:
        """Count a step that was taken, and step the schedule."""
        self.progress.step += 1
        self.progress.batch += 1
        self.progress.total -= loss * num_data
        self.progress.num_seen += num_data
        self.rates.advance(self.svi.optim.optimizer, self.progress.rate_factor)

    def end_epoch(self, entry: dict[str, float]) -> None:
        """Enter an epoch into the history; keep its weights where they are the best so far."""
        progress = self.progress
        progress.history.append(entry)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.total, progress.num_seen, progress.epoch_seconds = 0.0, 0, 0.0
        score, best = entry.get("validation_elbo", torch.inf), progress.best
        if best and not score >= best.get("validation_elbo", -torch.inf):
            return
        progress.best = entry
        self.finish_writing()  # the name of the next one depends on it
        if self.checkpoints is not None:
            progress.best_checkpoint = self.checkpoints.next_name()
        self._best = self._copies()

    def restore_best(self) -> None:
        """Give the pair the best weights and buffers so far."""
        with torch.no_grad():
            for tensor, copy in self._best:
                tensor.copy_(copy)

    def backtrack(self) -> bool:
        """Go back to the newest checkpoint of an earlier step, and halve the learning rate.

        Returns:
            Whether it did: not after `MAX_BACKTRACKS` times, nor where no step can be taken anew.
        """
        checkpoints, failed, started = self.checkpoints, self.progress, self.started
        assert checkpoints is not None
        self.finish_writing()
        if failed.rate_factor <= 0.5**MAX_BACKTRACKS:
            return False
        earlier = (c for c in checkpoints.intact() if c[1]["progress"]["step"] < failed.step)
        checkpoint = from_first(lambda: next(earlier, None))
        if checkpoint is None:
            return False
        self.restore(*checkpoint)
        self.started = started  # what was in vain has taken its time all the same
        rate_factor = failed.rate_factor / 2
        scale_rates(self.svi.optim.optimizer, rate_factor / self.progress.rate_factor)
        self.progress.rate_factor = rate_factor
        return True

    def not_finite(self) -> str | None:
        """Name a parameter that is not finite or a buffer with NaN (infinite ones are masks)."""
        for name, tensor in self.tensors().items():
            if tensor.is_floating_point():
                bad = ~tensor.isfinite() if tensor.requires_grad else tensor.isnan()
                if bad.any():
                    return name
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, each once."""
        named: dict[Tensor, str] = {}
        for role, program in zip(("model", "guide"), self.programs, strict=True):
            if isinstance(program, nn.Module):
                for name, tensor in [*program.named_parameters(), *program.named_buffers()]:
                    named.setdefault(tensor, f"{role}.{name}")
        store = {tensor: name for name, tensor in pyro.get_param_store().named_parameters()}
        met = {tensor: name for name, tensor in self._met.items()}
        for number, tensor in enumerate(dict.fromkeys(met) | self.svi.parameters):
            name = met.get(tensor, store.get(tensor, f"number {number}"))
            named.setdefault(tensor, f"param.{name}")
        return {name: tensor for tensor, name in named.items()}

    def share_buffers(self) -> None:
        """Give buffers, which each process changes by its own rows, those of the first process."""
        tensors = self.tensors().values()
        copy_from_first(tensor for tensor in tensors if not tensor.requires_grad)

    def is_due(self) -> bool:
        """Tell whether the last checkpoint is `checkpoint_seconds` old."""
        age = time.perf_counter() - self.saved
        return self.checkpoints is not None and age >= self.checkpoint_seconds

    def save(self) -> None:
        """Begin to write a checkpoint; where the disk refuses, warn and leave the older ones.

        It has the random states of all processes, and is for any number of them.
        """
        if self.checkpoints is None:
            return
        self.finish_writing()
        self.share_buffers()
        tensors, state = self._snapshot()
        self.saved, step = time.perf_counter(), self.progress.step
        if is_first():
            write, best = self.checkpoints.write, self.progress.best_checkpoint
            self._writing = step, self._writer.submit(write, tensors, state, best)
        else:
            self.saved_step = step

    def finish_writing(self) -> None:
        """Wait for the checkpoint that is being written, while steps are taken."""
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        try:
            writing.result()
            self.saved_step = step
        except OSError as error:
            warnings.warn(
                f"the checkpoint of step {step} cannot be written ({error}); training continues, "
                f"and the last checkpoint is of step {self.saved_step}",
                stacklevel=2,
            )

    def close(self) -> None:
        """End the writing of checkpoints."""
        self.finish_writing()
        self._writer.shutdown()

    def _snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.progress.seconds = self.seconds
        if self.progress.batch:
            self.progress.epoch_seconds = time.perf_counter() - self.epoch_started
        named = self.tensors()
        names = {tensor: name for name, tensor in named.items()}
        tensors = {f"now/{name}": tensor for name, tensor in named.items()}
        tensors |= {f"best/{names[tensor]}": copy for tensor, copy in self._best}
        tensors |= {f"random/{name}": state for name, state in self._random_states().items()}
        state: dict[str, Any] = {
            "progress": dataclasses.asdict(self.progress),
            "settings": self.settings,
            "versions": versions(),
            "objective": [
                {key: getattr(objective, key) for key in OBJECTIVE_STATE if hasattr(objective, key)}
                for objective in objectives_of(self.svi)
            ],
            "trained": [names[parameter] for parameter in self.svi.trained],
            "update_outside": self.svi.update_outside,
        }
        more, state["optimizer"] = optimizer_state.saved(self.svi.optim.optimizer, names)
        tensors |= more
        # Cloned, since safetensors takes no two tensors that share memory.
        copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        return copies, state

    def restore(self, saved: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Put a checkpoint back.

        Raises:
            CheckpointError: when it is of another run, with the difference named.
        """
        try:
            self._restore(saved, state)
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run: {error!r}") from error
        self.saved_step = self.progress.step

    def _restore(self, saved: dict[str, Tensor], state: dict[str, Any]) -> None:
        refuse_other("settings", state["settings"], self.settings)
        if told := differences(state["versions"], versions()):
            warnings.warn(f"resumed, but perhaps not bit for bit: {told}", stacklevel=4)
        groups = state["optimizer"]["groups"]
        named = self.tensors()
        for group in groups:
            parameters = [named[name] for name in group["parameters"]]
            self.svi.parameters |= dict.fromkeys(parameters)
            self.svi.optim.add(parameters)
        progress = Progress(**state["progress"])
        for kind in ("now", "best") if progress.best else ("now",):
            for name, tensor in named.items():
                check_tensor(f"{kind}/{name}", tensor, saved.get(f"{kind}/{name}"))

        if (optimizer := self.svi.optim.optimizer) is not None:  # None at step 0
            self.rates.reset(optimizer, progress.step, progress.rate_factor)
            names = {tensor: name for name, tensor in named.items()}
            optimizer_state.restore(optimizer, names, saved, state["optimizer"])
        self.svi.update_outside = state["update_outside"]
        self.svi.trained.update(named[name] for name in state["trained"])
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(saved[f"now/{name}"])
        best = {t: saved[f"best/{name}"] for name, t in named.items() if f"best/{name}" in saved}
        self._best = [(tensor, copy.to(tensor.device)) for tensor, copy in best.items()]
        for objective, entries in zip(objectives_of(self.svi), state["objective"], strict=True):
            for key in OBJECTIVE_STATE:
                if key in entries:
                    setattr(objective, key, entries[key])
        self._restore_noise(saved)
        self.generator.set_state(saved["random/data"])
        self._order_state = saved["random/order"]
        self.progress = progress
        self.started = time.perf_counter() - progress.seconds

    def _copies(self) -> list[tuple[Tensor, Tensor]]:
        return [(tensor, tensor.detach().clone()) for tensor in self.tensors().values()]

    def _random_states(self) -> dict[str, Tensor]:
        states = {"data": self.generator.get_state(), "order": self._order_state}
        for number, state in enumerate(gather(self._noise_states())):
            states |= {f"{name}{number or ''}": value for name, value in state.items()}
        return states

    def _noise_states(self) -> dict[str, Tensor]:
        """Return the random states that each process has for itself."""
        states = {"torch": torch.get_rng_state()}
        if self.generator.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.generator.device)
        return states

    def _restore_noise(self, saved: dict[str, Tensor]) -> None:
        number = rank() or ""
        if f"random/torch{number}" in saved:
            torch.set_rng_state(saved[f"random/torch{number}"])
            if self.generator.device.type == "cuda":
                state = saved[f"random/cuda{number}"]
                torch.cuda.set_rng_state(state, self.generator.device)
        else:  # of more processes than before
            torch.set_rng_state(saved["random/torch"])
            torch.manual_seed(int(torch.randint(2**62, (world_size(),))[rank()]))

    def _meet_parameters(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Run both programs once; return their parameters by the names that they have there."""
        with (
            torch.random.fork_rng(),
            torch.no_grad(),
            evaluating(*self.programs),
            poutine.trace(param_only=True) as capture,
        ):
            guide = poutine.trace(self.svi.guide).get_trace(*batch)
            poutine.replay(self.svi.model, trace=guide)(*batch)
        sites: Any = capture.trace.nodes.items()
        return {name: site["value"].unconstrained() for name, site in sites}
