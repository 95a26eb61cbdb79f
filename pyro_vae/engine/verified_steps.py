"""Verified steps: compare compiled steps with eager ones, and take wrong steps back.

A verified step is an eager step of the run. The compiled program takes the same step on copies of
the tensors that it changes and on the same random numbers. If the results agree, the run has the
results of the compiled program, and the state after the step is kept. If not, the run returns to
the last state that was kept.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.optim import is_scheduler
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.engine.capture import NotCompilable
from pyro_vae.engine.compiled_step import CompiledStep, Written
from pyro_vae.engine.step import LossValue, StepProtocol
from pyro_vae.engine.tolerances import FLOOR, check_close, largest, tolerance_of
from pyro_vae.engine.torch_optim import TorchOptim
from pyro_vae.runtime.random_state import (
    TorchState,
    equal_random_states,
    random_state,
    set_random_state,
)

# Norm of the difference of two updates, relative to the norm of the update. Adam and its relatives
# turn the rounding error of a gradient near zero into an update as large as any other.
UPDATE_TOLERANCE = 0.1
MOMENT_TOLERANCE = 10  # relative to the tolerance of losses and gradients


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
            for optimizer in _optimizers(self.svi.optim)
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


def _optimizers(optim: PyroOptim) -> list[Optimizer]:
    if isinstance(optim, TorchOptim):
        return [] if optim.optimizer is None else [optim.optimizer]
    found: Any = getattr(optim, "optim_objs", {}).values()
    return [o.optimizer if is_scheduler(o) else o for o in found]


class Comparison:
    """The step of a compiled program on copies, to be compared with the eager step.

    Args:
        svi: Training step.
        program: Compiled program of the step.
        inputs: Tensors among the arguments of the step.
    """

    def __init__(self, svi: StepProtocol, program: CompiledStep, inputs: list[Tensor]) -> None:
        self.program = program
        parameters = program.capture.parameters
        self._tolerance = tolerance_of(parameters, svi.precision)
        self._old = [p.detach().clone() for p in parameters]
        self._losses, self._gradients, self._written = program.on_copies(inputs)
        self._random = random_state()
        self._eager: dict[Tensor, Tensor] = {}
        self._finding: NotCompilable | None = None

    def observe(self, parameters: list[Tensor]) -> None:
        """Note the gradients of the eager step, before its update.

        If the program has no optimizers and its gradients agree, the update uses them, so that the
        run does not depend on the steps that are verified.
        """
        self._eager = {p: p.grad.clone() for p in parameters if p.grad is not None}
        ours = self.program.capture.parameters
        if self.program.optimizers is not None or self.declined or set(self._eager) != set(ours):
            return
        try:
            eager = [self._eager[p] for p in ours]
            check_close("the gradients", self._gradients, eager, self._tolerance)
        except NotCompilable as finding:
            self._finding = finding
            return
        for parameter, gradient in zip(ours, self._gradients, strict=True):
            parameter.grad = gradient

    def adopt(self) -> tuple[float, ...]:
        """Give the run the results of the compiled program; return its losses.

        A resumed run verifies other steps, and has the same numbers nevertheless.
        """
        if self.program.optimizers is not None:
            with torch.no_grad():
                for tensor, copy in self._written:
                    tensor.copy_(copy)
        return tuple(x.item() for x in self._losses)

    @property
    def declined(self) -> bool:
        """Whether the program declined the step: a guard or a loss that is not finite."""
        return not all(map(math.isfinite, (x.item() for x in self._losses)))

    def check(self, loss: LossValue) -> None:
        """Compare with the eager step, which has been taken.

        Args:
            loss: Loss of the eager step.

        Raises:
            NotCompilable: If losses, gradients, updates or random numbers differ.
        """
        program, tolerance = self.program, self._tolerance
        values = loss if isinstance(loss, tuple) else (loss,)
        expected = [torch.tensor(x, dtype=torch.double) for x in values]
        # The loss of a density can pass through zero while its terms are large.
        program.largest_loss = max(program.largest_loss, *map(abs, values))
        check_close("the loss", self._losses, expected, tolerance, FLOOR * program.largest_loss)
        if set(self._eager) != set(program.capture.parameters):
            raise NotCompilable("its parameters change from step to step")
        if self._finding is not None:
            raise self._finding
        if program.optimizers is not None:
            self._check_update(self._written)
        if not equal_random_states(self._random, random_state()):
            raise NotCompilable("it seeds torch's random generator, or draws from it irregularly")

    def _check_state(self, copies: dict[int, Tensor]) -> bool:
        """Compare optimizer state and buffers; return whether there are moments."""
        groups = defaultdict(list)
        for opt in self.program.optimizers or ():
            for key, value in opt.state.items():
                groups[key].append(value)
        capture = self.program.capture
        groups["buffers"] = [capture.tensors[i] for i in capture.mutated]
        for key, values in groups.items():
            ours = [copies[id(value)] for value in values]
            what = "buffers" if key == "buffers" else f"the optimizer state {key!r}"
            check_close(what, ours, values, MOMENT_TOLERANCE * self._tolerance)
        return any(value.dim() for key, values in groups.items() if key != "buffers"
                   for value in values)  # fmt: skip

    def _check_update(self, written: Written) -> None:
        parameters = {id(p): p for p in self.program.capture.parameters}
        copies = {id(tensor): copy for tensor, copy in written}
        moments = self._check_state(copies)
        linear = not moments  # without moments, the update is a multiple of the gradient
        squares = changes = 0.0
        for (key, parameter), old in zip(parameters.items(), self._old, strict=True):
            change = (parameter.detach() - old).double()
            error = (copies[key] - parameter.detach()).double()
            rounding = 8 * torch.finfo(old.dtype).eps * largest([old])
            limit = MOMENT_TOLERANCE * self._tolerance * largest([change]) + rounding
            if (linear or not largest([change])) and not largest([error]) <= limit:
                raise NotCompilable("the updates of the graph and of the program differ")
            squares += float(error.square().sum()) - old.numel() * rounding**2
            changes += float(change.square().sum())
        if squares > UPDATE_TOLERANCE**2 * changes:
            raise NotCompilable("the updates of the graph and of the program differ")
