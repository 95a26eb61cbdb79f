"""What a training run has to remember so that it goes on bit for bit where it was left.

`Progress` is what counts along; `Run` adds the tensors, the optimizer, the schedule and the random
states, writes them all as a checkpoint and puts them back.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.checkpoints import CheckpointError
from pyro_vae.data import Dataset
from pyro_vae.parts import evaluating
from pyro_vae.runs import Checkpoints

Schedule = Callable[[Optimizer, int], LRScheduler]
OBJECTIVE_STATE = ("num_steps", "max_plate_nesting")  # what Beta counts, and what Pyro guesses


@dataclass
class Progress:
    """How far a run is. `total` is the objective summed over the `num_seen` data of the epoch."""

    epoch: int = 1
    batch: int = 0
    step: int = 0
    total: float = 0.0
    num_seen: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_checkpoint: str | None = None
    stopped: str | None = None
    seconds: float = 0.0
    epoch_seconds: float = 0.0


class Run:
    """A training run as it stands: counts, weights, the best ones, optimizer, random states.

    Args:
        svi: the step, an `SVI`; with checkpoints its optimizer is a `TorchOptim`.
        programs: model and guide, whose parameters and buffers are the weights.
        generator: draws the order of the data and their binarization.
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
        schedule: Schedule | None,
        total_steps: int,
        checkpoints: Checkpoints | None,
        checkpoint_seconds: float,
    ) -> None:
        self.svi, self.programs, self.generator = svi, programs, generator
        self.schedule, self.total_steps = schedule, total_steps
        self.checkpoints, self.checkpoint_seconds = checkpoints, checkpoint_seconds
        self.progress = Progress()
        self.settings: dict[str, Any] = {}
        self.started = self.epoch_started = self.saved = time.perf_counter()
        self.saved_step = 0
        self._scheduler: LRScheduler | None = None
        self._best: list[tuple[Tensor, Tensor]] = []
        self._order_state = generator.get_state()  # before the epoch's permutation was drawn
        self._met: dict[str, Tensor] = {}  # parameters that are not in a module

    @property
    def seconds(self) -> float:
        """How long the run has taken, pauses between its parts left out."""
        return time.perf_counter() - self.started

    def open(self, settings: dict[str, Any], resume: bool, batch: tuple[Tensor, ...]) -> None:
        """Begin a run that has checkpoints: at the newest one, or afresh.

        Args:
            settings: what has to be the same for the run to be resumed, as JSON has it.
            resume: whether to look for a checkpoint.
            batch: a few data, for the programs to show their parameters on.

        Raises:
            CheckpointError: when all are damaged, or the newest is of another run.
        """
        assert self.checkpoints is not None
        self.settings = json.loads(json.dumps(settings))
        self._meet_parameters(batch)
        if not resume:
            self.checkpoints.set_aside()
        elif (checkpoint := self.checkpoints.newest()) is not None:
            self.restore(*checkpoint)
        else:
            folder = self.checkpoints.path.parent
            print(f"{folder} has no checkpoint: training starts at step 0", file=sys.stderr)

    def start_epoch(self) -> None:
        """Start the clock of an epoch, or of what is left of it."""
        self.epoch_started = time.perf_counter() - self.progress.epoch_seconds

    def batches(self, num_data: int, batch_size: int) -> Iterator[Tensor]:
        """Return the indices of the epoch's minibatches that are still to come."""
        now = self.generator.get_state()
        under_way = self.progress.batch > 0
        if under_way:
            self.generator.set_state(self._order_state)
        else:
            self._order_state = now
        order = torch.randperm(num_data, generator=self.generator, device=self.generator.device)
        if under_way:
            self.generator.set_state(now)
        yield from order.split(batch_size)[self.progress.batch :]

    def count(self, loss: float, num_data: int) -> None:
        """Count a step that was taken, and step the schedule."""
        self.progress.step += 1
        self.progress.batch += 1
        self.progress.total -= loss * num_data
        self.progress.num_seen += num_data
        self._advance_schedule()

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
        if self.checkpoints is not None:
            progress.best_checkpoint = self.checkpoints.next_name()
        self._best = [(tensor, tensor.detach().clone()) for tensor in self.tensors().values()]

    def restore_best(self) -> None:
        """Give the pair the best weights and buffers so far."""
        with torch.no_grad():
            for tensor, copy in self._best:
                tensor.copy_(copy)

    def all_finite(self) -> bool:
        """Whether no parameter or buffer is NaN or infinite."""
        floats = [tensor for tensor in self.tensors().values() if tensor.is_floating_point()]
        return all(bool(tensor.isfinite().all()) for tensor in floats)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, each once."""
        named: dict[Tensor, str] = {}
        for role, program in zip(("model", "guide"), self.programs, strict=True):
            if isinstance(program, nn.Module):
                for name, tensor in [*program.named_parameters(), *program.named_buffers()]:
                    named.setdefault(tensor, f"{role}.{name}")
        store = {tensor: name for name, tensor in pyro.get_param_store().named_parameters()}
        met = {tensor: name for name, tensor in self._met.items()}
        for number, tensor in enumerate(self.svi.parameters):
            name = met.get(tensor, store.get(tensor, f"number {number}"))
            named.setdefault(tensor, f"param.{name}")
        return {name: tensor for tensor, name in named.items()}

    def save_if_due(self) -> None:
        """Write a checkpoint when the last one is `checkpoint_seconds` old."""
        if time.perf_counter() - self.saved >= self.checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """Write a checkpoint; where the disk refuses, warn and leave the older ones."""
        if self.checkpoints is None:
            return
        tensors, state = self._snapshot()
        try:
            self.checkpoints.write(tensors, state, self.progress.best_checkpoint)
            self.saved_step = self.progress.step
        except OSError as error:
            warnings.warn(
                f"the checkpoint of step {self.progress.step} cannot be written ({error}); "
                f"training goes on, the last one is of step {self.saved_step}",
                stacklevel=2,
            )
        self.saved = time.perf_counter()

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
            "versions": _versions(),
            "objective": [
                {key: getattr(objective, key) for key in OBJECTIVE_STATE if hasattr(objective, key)}
                for objective in _objectives(self.svi)
            ],
            "trained": [names[parameter] for parameter in self.svi.trained],
            "update_outside": self.svi.update_outside,
            "optimizer": {"groups": [], "numbers": {}},
        }
        if (optimizer := self.svi.optim.optimizer) is not None:
            state["optimizer"]["groups"] = [
                {"parameters": [names[p] for p in group["params"]], "settings": _plain(group)}
                for group in optimizer.param_groups
            ]
            for parameter, entries in optimizer.state.items():
                for key, value in entries.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimizer/{key}/{names[parameter]}"] = value
                    else:
                        numbers = state["optimizer"]["numbers"]
                        numbers.setdefault(names[parameter], {})[key] = value
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
        _refuse_other("settings", state["settings"], self.settings)
        if differences := _differences(state["versions"], _versions()):
            warnings.warn(f"resumed, but perhaps not bit for bit: {differences}", stacklevel=4)
        groups = state["optimizer"]["groups"]
        known = self.tensors() | {f"param.{name}": tensor for name, tensor in self._met.items()}
        for group in groups:
            parameters = [known[name] for name in group["parameters"]]
            self.svi.parameters |= dict.fromkeys(parameters)
            self.svi.optim.add(parameters)
        named = self.tensors()
        progress = Progress(**state["progress"])
        for kind in ("now", "best") if progress.best else ("now",):
            for name, tensor in named.items():
                _check_tensor(f"{kind}/{name}", tensor, saved.get(f"{kind}/{name}"))

        # A schedule is a function of the step: its steps are taken again, whatever it is made of.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(progress.step):
                self._advance_schedule()
        optimizer = self.svi.optim.optimizer
        if optimizer is not None and groups:
            now = [_plain(group) for group in optimizer.param_groups]
            for then, group in zip(groups, now, strict=True):
                _refuse_other("optimizer or schedule", then["settings"], group)
            optimizer.load_state_dict(self._optimizer_state(optimizer, saved, state))
        self.svi.update_outside = state["update_outside"]
        self.svi.trained.update(named[name] for name in state["trained"])
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(saved[f"now/{name}"])
        if progress.best:
            self._best = [(t, saved[f"best/{name}"].to(t.device)) for name, t in named.items()]
        for objective, entries in zip(_objectives(self.svi), state["objective"], strict=True):
            for key in OBJECTIVE_STATE:
                if key in entries:
                    setattr(objective, key, entries[key])
        torch.set_rng_state(saved["random/torch"])
        if self.generator.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random/cuda"], self.generator.device)
        self.generator.set_state(saved["random/data"])
        self._order_state = saved["random/order"]
        self.progress = progress
        self.started = time.perf_counter() - progress.seconds

    def _optimizer_state(
        self, optimizer: Optimizer, saved: dict[str, Tensor], state: dict[str, Any]
    ) -> dict[str, Any]:
        names = {tensor: name for name, tensor in self.tensors().items()}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        index = {names[parameter]: i for i, parameter in enumerate(parameters)}
        entries: dict[int, dict[str, Any]] = {}
        for name, numbers in state["optimizer"]["numbers"].items():
            entries.setdefault(index[name], {}).update(numbers)
        for name, tensor in saved.items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                key, _, parameter_name = rest.partition("/")
                parameter = parameters[index[parameter_name]]
                if tensor.shape not in ((), parameter.shape):
                    _check_tensor(name, parameter, tensor)
                entries.setdefault(index[parameter_name], {})[key] = tensor
        return {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}

    def _advance_schedule(self) -> None:
        if self.schedule is None:
            return
        if self._scheduler is None:
            # Made after the first step, when the optimizer has its parameters.
            self._scheduler = self.schedule(self.svi.optim.optimizer, self.total_steps)
        else:
            self._scheduler.step()

    def _random_states(self) -> dict[str, Tensor]:
        states = {
            "torch": torch.get_rng_state(),
            "data": self.generator.get_state(),
            "order": self._order_state,
        }
        if self.generator.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.generator.device)
        return states

    def _meet_parameters(self, batch: tuple[Tensor, ...]) -> None:
        """Run both programs once to learn which parameters they have and what these are called."""
        with (
            torch.random.fork_rng(),
            torch.no_grad(),
            evaluating(*self.programs),
            poutine.trace(param_only=True) as capture,
        ):
            guide = poutine.trace(self.svi.guide).get_trace(*batch)
            poutine.replay(self.svi.model, trace=guide)(*batch)
        sites: Any = capture.trace.nodes.items()
        self._met = {name: site["value"].unconstrained() for name, site in sites}


def describe(
    svi: Any,
    programs: tuple[Any, ...],
    total_steps: int,
    data: Dataset,
    validation: Dataset | None,
) -> dict[str, Any]:
    """Return what besides the plain settings makes a run this run: data, programs, objective."""
    model, guide = map(_describe_program, programs)
    return {
        "train_sha256": _fingerprint(data),
        "validation_sha256": None if validation is None else _fingerprint(validation),
        "model": model,
        "guide": guide,
        "objectives": [_describe_objective(item, total_steps) for item in _objectives(svi)],
    }


def _fingerprint(data: Dataset) -> str:
    """Return the SHA-256 of data and context, and of how they are fed."""
    kind = [(str(rows.dtype), tuple(rows.shape)) for rows in (data.values, *data.context)]
    digest = hashlib.sha256(repr((kind, data.binarization, data.seed)).encode())
    for rows in (data.values, *data.context):
        for chunk in rows.split(4096):
            digest.update(chunk.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _describe_program(program: Any) -> list[str]:
    if isinstance(program, nn.Module):
        return repr(program).splitlines()
    return [getattr(program, "__qualname__", type(program).__qualname__)]


def _describe_objective(objective: Any, total_steps: int) -> dict[str, Any]:
    public = {key: value for key, value in vars(objective).items() if not key.startswith("_")}
    entry = {k: v for k, v in _plain(public).items() if k not in (*OBJECTIVE_STATE, "beta")}
    entry["class"] = getattr(objective, "__name__", type(objective).__name__)
    if callable(schedule := getattr(objective, "schedule", None)):
        steps = range(0, total_steps + 1, max(total_steps // 16, 1))
        entry["beta"] = [schedule(step) for step in steps]
    return entry


def _objectives(svi: Any) -> list[Any]:
    """The objective, and what it is built around."""
    found, objective = [], svi.objective
    while objective is not None:
        found.append(objective)
        objective = getattr(objective, "objective", None)
    return found


def _plain(entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are numbers, strings or lists of them, as JSON gives them back."""
    items = {
        key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for key, value in entries.items()
    }
    kept = {
        key: value
        for key, value in items.items()
        if key != "params" and isinstance(value, bool | int | float | str | tuple | None)
    }
    return json.loads(json.dumps(kept))


def _versions() -> dict[str, str]:
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {
        name: importlib.metadata.version(name) for name in ("pyro-vae", "pyro-ppl", "torch")
    }


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    told = []
    for key in {**then, **now}:
        old, new = then.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old, new = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
        if isinstance(old, dict) and isinstance(new, dict):
            told.append(f"{key}: {_differences(old, new)}")
        else:
            told.append(f"{key} was {old!r} and is {new!r}")
    return "; ".join(told)


def _refuse_other(what: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    if differences := _differences(then, now):
        raise CheckpointError(
            f"the run cannot be resumed with other {what}: {differences}. Resume it as it was, "
            "or start another run in another folder (out=)"
        )


def _check_tensor(name: str, expected: Tensor, saved: Tensor | None) -> None:
    if saved is None:
        raise CheckpointError(f"the checkpoint lacks the tensor {name!r}")
    if saved.shape != expected.shape or saved.dtype != expected.dtype:
        raise CheckpointError(
            f"the checkpoint has {name!r} as {saved.dtype} of shape {tuple(saved.shape)}, this "
            f"run as {expected.dtype} of shape {tuple(expected.shape)}"
        )
