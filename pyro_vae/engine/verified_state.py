"""The state of a run after a verified step, and the steps since then."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from pyro.optim import PyroOptim
from pyro.optim.optim import is_scheduler
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.engine.optimizer_values import set_values, settings_of
from pyro_vae.engine.signatures import Call
from pyro_vae.engine.step import StepProtocol
from pyro_vae.engine.torch_optim import TorchOptim
from pyro_vae.runtime.random_state import TorchState, random_state, set_random_state

# Memory of the arguments that are kept, in bytes. More steps are not kept.
MAX_BYTES = 512 * 2**20


class Step(NamedTuple):
    """A step that can be taken again.

    Attributes:
        call: Arguments.
        random: Random state before the step.
        settings: Hyperparameters of each parameter group.
        scalars: Values of tensors that schedules change, such as beta.
    """

    call: Call
    random: TorchState
    settings: list[dict[str, object]]
    scalars: list[Tensor]


class VerifiedState:
    """Parameters, buffers, optimizer state and random state after the last verified step.

    Args:
        svi: Training step.

    Attributes:
        clock: Number of steps before this state; -1 if no state was kept.
    """

    def __init__(self, svi: StepProtocol) -> None:
        self.svi, self.clock = svi, -1
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}
        self._states: list[tuple[Optimizer, dict[Tensor, dict[str, object]]]] = []
        self._random: TorchState = (torch.empty(0), None)

    def keep(self, clock: int, buffers: Iterable[Tensor]) -> None:
        """Keep the current state; `clock` is the number of steps taken so far."""
        self._states = [
            (optimizer, {p: dict(entry) for p, entry in optimizer.state.items()})
            for optimizer in optimizers_of(self.svi.optim)
        ]
        moments = [
            value
            for _, states in self._states
            for entry in states.values()
            for value in entry.values()
            if isinstance(value, Tensor)
        ]
        former, self._copies = self._copies, {}
        for tensor in (*self.svi.parameters, *buffers, *moments):
            _, copy = former.get(id(tensor), (None, None))
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = tensor.detach().clone()
            else:
                copy.copy_(tensor.detach())
            self._copies[id(tensor)] = tensor, copy
        self._random, self.clock = random_state(), clock

    def restore(self) -> None:
        """Return to the state that was kept."""
        with torch.no_grad():
            for tensor, copy in self._copies.values():
                if tensor.shape == copy.shape:
                    tensor.copy_(copy)
        for optimizer, states in self._states:
            optimizer.state.clear()
            for parameter, entry in states.items():
                optimizer.state[parameter] = dict(entry)
        set_random_state(self._random)

    def forget(self) -> None:
        """Release the copies."""
        self._copies, self._states, self.clock = {}, [], -1


class StepsSince:
    """The steps since a verified one, to be taken again if they turn out to be wrong.

    Args:
        svi: Training step.
    """

    def __init__(self, svi: StepProtocol) -> None:
        self.svi = svi
        self._scalars: list[Tensor] = []
        self.clear([])

    def clear(self, tensors: Iterable[Tensor]) -> None:
        """Forget the steps; of `tensors`, those with one entry are noted with further steps."""
        self._steps: list[Step] = []
        self._storages: dict[int, int] = {}
        self.complete = True
        self._scalars = [t for t in tensors if not t.dim()]

    def note(self, call: Call, random: TorchState) -> None:
        """Note a step before it is taken; `complete` is False if that takes too much memory."""
        for tensor in call.inputs:
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = storage.nbytes()
        self.complete = self.complete and sum(self._storages.values()) <= MAX_BYTES
        if not self.complete:
            self._steps.clear()
            return
        scalars = [tensor.detach().clone() for tensor in self._scalars]
        self._steps.append(Step(call, random, [*map(settings_of, self._groups())], scalars))

    def take_again(self) -> None:
        """Take the steps eagerly, except the last one, which the caller takes."""
        for step in self._steps:
            set_random_state(step.random)
            with torch.no_grad():
                for tensor, value in zip(self._scalars, step.scalars, strict=True):
                    tensor.copy_(value)
            for group, settings in zip(self._groups(), step.settings, strict=False):
                set_values(group, settings)
            if step is not self._steps[-1]:
                self.svi.eager_step(step.call.args, step.call.kwargs, None)

    def _groups(self) -> list[dict[str, object]]:
        return [g for optimizer in optimizers_of(self.svi.optim) for g in optimizer.param_groups]


def optimizers_of(optim: PyroOptim) -> list[Optimizer]:
    """Return the torch optimizers of a Pyro optimizer."""
    if isinstance(optim, TorchOptim):
        return [] if optim.optimizer is None else [optim.optimizer]
    found = getattr(optim, "optim_objs", {}).values()
    return [o.optimizer if is_scheduler(o) else o for o in found]
