"""Comparisons of a compiled step with Pyro's eager step on the same random numbers.

`Comparison` compares losses, gradients, updates, optimizer state and buffers. It costs about two
steps. `EagerBound` compares the losses, and how they depend on the parameters. It costs a forward
pass.
"""

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.engine.backward_passes import backward_passes
from pyro_vae.engine.capture import same_strides
from pyro_vae.engine.compiled_step import BUFFERS, CompiledStep
from pyro_vae.engine.signatures import Call
from pyro_vae.engine.step import StepProtocol, loss_values
from pyro_vae.engine.tolerances import (
    COMPILED,
    DIRECT,
    FLOOR,
    PROGRAM,
    Pair,
    check_close,
    largest,
    rounding_unit,
    tolerance_of,
)
from pyro_vae.engine.value_reader import NotCompilable
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

    def check(self, losses: Sequence[Tensor]) -> bool:
        """Compare with the losses of the program, after its step on the same random numbers.

        Returns:
            Whether they differ by more than usual rounding errors. A small change of a large loss
            can be a large one of the gradients, so everything is to be compared then.

        Raises:
            NotCompilable: If losses or random numbers differ.
        """
        if not all(math.isfinite(x.item()) for x in losses):
            return False  # the program declined the step, which is repeated
        check_finite(self._losses)
        _check_losses(self._program, losses, self._losses, self._tolerance)
        _check_random(equal_random_states(self._random, random_state()))
        unit = rounding_unit(self._tolerance)
        pairs = zip(losses, self._losses, strict=True)
        return any(abs(actual.item() - loss) > unit * abs(loss) for actual, loss in pairs)


def check_finite(losses: tuple[float, ...]) -> None:
    """Check the losses of the program in a step in which those of the compiled step are finite.

    Raises:
        NotCompilable: If one is not finite.
    """
    if not all(map(math.isfinite, losses)):
        raise NotCompilable(
            "the loss of the compiled step is finite, and that of the program is not: the program "
            "depends on something that the graph does not see"
        )


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


class Outcome(NamedTuple):
    """What one computation of a step gave.

    Attributes:
        gradients: Gradient of each parameter, if the optimizer is not part of the program.
        after: Function that returns the values of some tensors after the step.
        losses: Losses, if they are compared as tensors.
        same_noise: Whether it drew as many random numbers as the compiled program.
    """

    gradients: list[Tensor]
    after: Callable[[Sequence[Tensor]], list[Tensor]]
    losses: Sequence[Tensor] = ()
    same_noise: bool = True


_losses, _gradients = operator.attrgetter("losses"), operator.attrgetter("gradients")


class Comparison:
    """The step of a compiled program on copies, to be compared with the eager step.

    If the two differ, the graph runs without the compiler. Its operations are those of the program,
    so it must agree with the eager step closely; if it does not, the program has changed. What is
    left is the difference of the compiled code from the graph, which only rounding may explain.

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
        self._losses, gradients, self._written = program.on_copies(inputs)
        copies = {id(tensor): copy for tensor, copy in self._written}
        self._compiled = Outcome(
            gradients, lambda tensors: [copies[id(t)] for t in tensors], self._losses
        )
        self._random = random_state()
        self._trained: set[Tensor] = set()  # parameters with a gradient in the eager step
        self._eager_losses: tuple[float, ...] = ()
        self._finding: NotCompilable | None = None

    def observe(self, parameters: list[Tensor], losses: tuple[float, ...]) -> None:
        """Note the losses of the eager step, and which parameters have gradients.

        It is called before the update, in which several processes average losses and gradients.

        If the program has no optimizers and its gradients agree, the update uses them, so that the
        run does not depend on the steps that are verified.
        """
        self._eager_losses = losses
        gradients = {p: p.grad for p in parameters if p.grad is not None}
        self._trained = set(gradients)
        ours = self.program.capture.parameters
        if self.program.optimizers is not None or self.declined or self._trained != set(ours):
            return
        try:
            self._check(self._check_gradients, Outcome([gradients[p] for p in ours], list))
        except NotCompilable as finding:
            self._finding = finding
            return
        for parameter, gradient in zip(ours, self._compiled.gradients, strict=True):
            parameter.grad = gradient

    def _check(self, compare: Callable[..., None], eager: Outcome) -> None:
        """Compare the compiled step with the eager one or, if they differ, both with the graph."""
        try:
            compare(self._compiled, eager, DIRECT)
        except NotCompilable:
            compare(self._graph, eager, PROGRAM)
            compare(self._compiled, self._graph, COMPILED)

    def check_compiler(self) -> None:
        """Compare the compiled code with the graph that it was compiled from.

        Raises:
            NotCompilable: If losses, gradients, updates or random numbers differ.
        """
        graph = self._graph
        self._check_close("the losses", _losses, self._compiled, graph, COMPILED, self._tolerance)
        self._check_gradients(self._compiled, graph, COMPILED)
        self._check_update(self._compiled, graph, COMPILED)
        if not graph.same_noise:
            raise NotCompilable("the compiled program draws other random numbers")

    @functools.cached_property
    def _graph(self) -> Outcome:
        """The step of the graph without the compiler."""
        flat = [same_strides(tensor) for tensor in self._before]
        with self._random_numbers():
            losses, gradients = self.program.without_compiler(flat)
            same_noise = equal_random_states(self._random, random_state())
        return Outcome(
            gradients, lambda tensors: self.program.values_of(tensors, flat), losses, same_noise
        )

    @functools.cached_property
    def _rounding(self) -> Outcome:
        """Rounding errors of the gradients of the step, and of its tensors; empty if not known."""
        with self._random_numbers():
            results, tensors = self.program.rounding(self._before)
        num_losses = len(self._losses)
        return Outcome(
            results[num_losses:],
            lambda asked: self.program.values_of(asked, tensors),
            results[:num_losses],
        )

    @contextlib.contextmanager
    def _random_numbers(self) -> Iterator[None]:
        """Draw the random numbers of the step, and restore the state of the generators."""
        now = random_state()
        set_random_state(self._random_before)
        try:
            yield
        finally:
            set_random_state(now)

    def adopt(self) -> tuple[float, ...]:
        """Give the run the results of the compiled program; return its losses.

        A resumed run verifies other steps, and has the same numbers nevertheless.
        """
        outside = self.program.capture.parameters if self.program.optimizers is None else ()
        updated = set(map(id, outside))  # by the optimizer, with the gradients of `observe`
        with torch.no_grad():
            for tensor, copy in self._written:
                if id(tensor) not in updated:
                    tensor.copy_(copy)
        return tuple(x.item() for x in self._losses)

    @property
    def declined(self) -> bool:
        """Whether the program declined the step: a guard or a loss that is not finite."""
        return not all(map(math.isfinite, (x.item() for x in self._losses)))

    def check(self) -> None:
        """Compare with the eager step, which has been taken.

        Raises:
            NotCompilable: If losses, gradients, updates or random numbers differ.
        """
        program, tolerance = self.program, self._tolerance
        _check_losses(program, self._losses, self._eager_losses, tolerance)
        if self._trained != set(program.capture.parameters):
            raise NotCompilable("its parameters change from step to step")
        if self._finding is not None:
            raise self._finding
        eager = Outcome([], lambda tensors: [tensor.detach() for tensor in tensors])
        self._check(self._check_update, eager)
        _check_random(equal_random_states(self._random, random_state()))

    def _check_close(
        self,
        what: str,
        pick: Callable[[Outcome], Sequence[Tensor]],
        actual: Outcome,
        expected: Outcome,
        pair: Pair,
        tolerance: float,
    ) -> None:
        """Compare a part of two outcomes."""
        check_close(
            what, pick(actual), pick(expected), tolerance,
            rounding=lambda: pick(self._rounding), pair=pair,
        )  # fmt: skip

    def _check_gradients(self, actual: Outcome, expected: Outcome, pair: Pair) -> None:
        """Compare gradients."""
        self._check_close("the gradients", _gradients, actual, expected, pair, self._tolerance)

    def _check_update(self, actual: Outcome, expected: Outcome, pair: Pair) -> None:
        """Compare buffers and, if the program has the optimizer, its state and its updates."""
        groups = self.program.state_groups
        for what, values in groups.items():
            self._check_close(
                what, operator.methodcaller("after", values), actual, expected, pair,
                MOMENT_TOLERANCE * self._tolerance,
            )  # fmt: skip
        if self.program.optimizers is None:
            return
        states = (values for what, values in groups.items() if what != BUFFERS)
        moments = any(value.dim() for values in states for value in values)
        linear = not moments  # without moments, the update is a multiple of the gradient
        parameters = self.program.capture.parameters
        updated = expected.after(parameters)
        errors = [*torch._foreach_sub(actual.after(parameters), updated)]
        changes = [*torch._foreach_sub(updated, self._old)]
        if self._update_agrees(errors, changes, linear):
            return
        rounding = [] if pair.share == 0 else self._rounding.after(parameters)
        explained = [
            (error.abs() - part.to(error.dtype)).clamp(min=0)
            for error, part in zip(errors, rounding, strict=bool(rounding))
        ]
        if not explained or not self._update_agrees(explained, changes, linear):
            raise NotCompilable(f"the updates {pair.finding.format(largest(errors))}")

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
