"""Comparisons of a compiled step with Pyro's eager step on the same random numbers.

`Comparison` compares losses, gradients, updates, optimizer state and buffers. It costs about two
steps. `EagerBound` compares the losses, and how they depend on the parameters. It costs a forward
pass.
"""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.engine.backward_passes import backward_passes
from pyro_vae.engine.capture import NotCompilable
from pyro_vae.engine.compiled_step import BUFFERS, CompiledStep, Written
from pyro_vae.engine.signatures import Call
from pyro_vae.engine.step import LossValue, StepProtocol, loss_values
from pyro_vae.engine.tolerances import FLOOR, check_close, largest, tolerance_of
from pyro_vae.runtime.random_state import equal_random_states, random_state, set_random_state

# Norm of the difference of two updates, relative to the norm of the update. Adam and its relatives
# turn the rounding error of a gradient near zero into an update as large as any other.
UPDATE_TOLERANCE = 0.1
MOMENT_TOLERANCE = 10  # relative to the tolerance of losses and gradients


class EagerBound:
    """The bound of Pyro's eager step, computed without a backward pass.

    Buffers that the program changes are restored.

    Args:
        svi: Training step.
        program: Compiled program of the step.
        call: Arguments of the step.

    Raises:
        Exception: The exceptions of the eager step.
    """

    def __init__(self, svi: StepProtocol, program: CompiledStep, call: Call) -> None:
        self._program, self._tolerance = program, tolerance_of(svi.parameters, svi.precision)
        capture = program.capture
        mutated = [capture.tensors[i] for i in capture.mutated]
        former = [tensor.clone() for tensor in mutated]
        try:
            with backward_passes(run=False) as self.operations:
                self._losses = loss_values(svi.bound(call.args, call.kwargs))
            self._random = random_state()
        finally:
            with torch.no_grad():
                for tensor, values in zip(mutated, former, strict=True):
                    tensor.copy_(values)

    def check(self, losses: Sequence[Tensor]) -> None:
        """Compare with the losses of the program, after its step on the same random numbers.

        Raises:
            NotCompilable: If losses or random numbers differ.
        """
        if not all(map(math.isfinite, (*self._losses, *(x.item() for x in losses)))):
            return
        _check_losses(self._program, losses, self._losses, self._tolerance)
        _check_random(equal_random_states(self._random, random_state()))


def _check_losses(
    program: CompiledStep, actual: Sequence[Tensor], values: tuple[float, ...], tolerance: float
) -> None:
    # The loss of a density can pass through zero while its terms are large.
    program.largest_loss = max(program.largest_loss, *map(abs, values))
    expected = [torch.tensor(x, dtype=torch.double) for x in values]
    check_close("the loss", actual, expected, tolerance, FLOOR * program.largest_loss)


def _check_random(equal: bool) -> None:
    if not equal:
        raise NotCompilable("it seeds torch's random generator, or draws from it irregularly")


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
        self._before, self._random_before = program.before(inputs), random_state()
        self._old = program.values_of(parameters, self._before)
        self._losses, self._gradients, self._written = program.on_copies(inputs)
        self._random = random_state()
        self._trained: set[Tensor] = set()  # parameters with a gradient in the eager step
        self._finding: NotCompilable | None = None

    def observe(self, parameters: list[Tensor]) -> None:
        """Note which parameters have gradients in the eager step, before its update.

        If the program has no optimizers and its gradients agree, the update uses them, so that the
        run does not depend on the steps that are verified.
        """
        gradients = {p: p.grad for p in parameters if p.grad is not None}
        self._trained = set(gradients)
        ours = self.program.capture.parameters
        if self.program.optimizers is not None or self.declined or self._trained != set(ours):
            return
        try:
            eager = [gradients[p] for p in ours]
            check_close("the gradients", self._gradients, eager, self._tolerance,
                        rounding=self._rounding_of_gradients)  # fmt: skip
        except NotCompilable as finding:
            self._finding = finding
            return
        for parameter, gradient in zip(ours, self._gradients, strict=True):
            parameter.grad = gradient

    @functools.cached_property
    def _rounding(self) -> tuple[list[Tensor], list[Tensor]]:
        """Rounding errors of the results of the step, and of its tensors."""
        now = random_state()
        set_random_state(self._random_before)
        try:
            return self.program.rounding(self._before)
        finally:
            set_random_state(now)

    def _rounding_of_gradients(self) -> list[Tensor]:
        results, _ = self._rounding
        return results[len(self._losses) :]

    def _rounding_of(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self.program.values_of(tensors, self._rounding[1])

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
        _check_losses(program, self._losses, loss_values(loss), tolerance)
        if self._trained != set(program.capture.parameters):
            raise NotCompilable("its parameters change from step to step")
        if self._finding is not None:
            raise self._finding
        if program.optimizers is not None:
            self._check_update(self._written)
        _check_random(equal_random_states(self._random, random_state()))

    def _check_state(self, copies: dict[int, Tensor]) -> bool:
        """Compare optimizer state and buffers; return whether there are moments."""
        groups = self.program.state_groups
        for what, values in groups.items():
            ours = [copies[id(value)] for value in values]
            check_close(what, ours, values, MOMENT_TOLERANCE * self._tolerance,
                        rounding=functools.partial(self._rounding_of, values))  # fmt: skip
        states = (values for what, values in groups.items() if what != BUFFERS)
        return any(value.dim() for values in states for value in values)

    def _check_update(self, written: Written) -> None:
        parameters = {id(p): p for p in self.program.capture.parameters}
        copies = {id(tensor): copy for tensor, copy in written}
        moments = self._check_state(copies)
        linear = not moments  # without moments, the update is a multiple of the gradient
        updated = [parameter.detach() for parameter in parameters.values()]
        errors = [*torch._foreach_sub([copies[key] for key in parameters], updated)]
        changes = [*torch._foreach_sub(updated, self._old)]
        if self._update_agrees(errors, changes, linear):
            return
        rounding = self._rounding_of([*parameters.values()])
        errors = [
            (error.abs() - part.to(error.dtype)).clamp(min=0)
            for error, part in zip(errors, rounding, strict=False)
        ]
        if not errors or not self._update_agrees(errors, changes, linear):
            raise NotCompilable("the updates of the graph and of the program differ")

    def _update_agrees(self, errors: list[Tensor], changes: list[Tensor], linear: bool) -> bool:
        """Return whether errors of updates are small.

        Args:
            errors: Differences of the updates, for each parameter.
            changes: Updates of the eager step.
            linear: Whether an update is a multiple of the gradient, so that each tensor is compared
                by its own size.
        """
        largest_old, largest_change = map(_largest, (self._old, changes))
        excess = total = 0.0
        for i, old in enumerate(self._old):
            rounding = 8 * torch.finfo(old.dtype).eps * largest_old[i]
            limit = MOMENT_TOLERANCE * self._tolerance * largest_change[i] + rounding
            if (linear or not largest_change[i]) and not largest([errors[i]]) <= limit:
                return False
            excess += _squares(errors[i]) - old.numel() * rounding**2
            total += _squares(changes[i])
        return excess <= UPDATE_TOLERANCE**2 * total


def _largest(tensors: Sequence[Tensor]) -> list[float]:
    """Return the largest absolute entry of each tensor."""
    return [largest([tensor]) for tensor in tensors]


def _squares(tensor: Tensor) -> float:
    """Return the sum of squares."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.double).square())
