"""When a training step is compiled, and by which program each step is taken."""

import contextlib
import logging
import math
import operator
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_vae.engine.call_arguments import join, split
from pyro_vae.engine.capture import Capture, NotCompilable, capture, first_line
from pyro_vae.engine.compiled_step import BF16_TOLERANCE, TOLERANCE, CompiledStep, check_close
from pyro_vae.engine.graph_optimizer import owners_of
from pyro_vae.engine.guards import MAX_VALUES, GuardedState
from pyro_vae.engine.inductor import try_out_processor
from pyro_vae.engine.torch_optim import TorchOptim
from pyro_vae.runtime.random_state import python_random_state, random_state, set_random_state

log = logging.getLogger("pyro_vae")

# Compiling costs about as much as some thousand steps: a shape that comes up once an epoch, or a
# run of a few steps, never earns it back.
STEPS_BEFORE_COMPILING = 1000
MAX_PROGRAMS = 8
MAX_SIGNATURES = 100  # whose steps are counted; the oldest is forgotten first
# Every so often a compiled step is checked against Pyro's own, for what nothing else has seen.
CHECKED_RUNS = {2, 3, *(10**k for k in range(1, 10))}


# What a compiled program takes as given of a tensor that is no argument of the step.
_kind = operator.attrgetter("requires_grad", "dtype")


class CompilationWarning(UserWarning):
    """A program that was to be compiled runs eagerly; the message says why."""


class Compiler:
    """Decides for each step whether a compiled program stands for it, and makes the programs."""

    def __init__(self, svi: Any, loss: Any, at_once: bool) -> None:
        self.svi = svi
        self.enabled = True
        self._surroundings = GuardedState(svi.model, svi.guide, loss, svi.loss_and_grads)
        self._at_once = at_once
        self._counts: dict[Any, int] = {}
        self._programs: dict[Any, CompiledStep] = {}
        self._watched: list[Tensor] = []
        self.update_outside = False
        self._unstable = 0
        self._seen: tuple[Any, ...] = ()
        self.num_steps = 0
        self._program: CompiledStep | None = None
        self._random = random_state()
        self._tuple: type | None = None
        self._previous: CompiledStep | None = None

    # -- steps ------------------------------------------------------------------------------------

    def step(self, args: Any, kwargs: Any) -> list[Tensor] | None:
        """Take the step with a compiled program and return its losses; None if there is none.

        The engine raises nothing: if it fails, it is switched off with a warning, and the eager
        step that follows draws the random numbers that the compiled one would have drawn.
        """
        previous, self._previous = self._previous, None
        if not self.enabled or am_i_wrapped() or not torch.is_grad_enabled():
            return None
        before = random_state()
        try:
            inputs, fixed = split(args, kwargs)
            program = self._find(previous, inputs, fixed, args, kwargs)
            if program is None:
                return None
            losses, gradients = program(inputs)
        except Exception as error:
            set_random_state(before)
            self._switch_off_for(error)
            return None
        self._random = before
        self._program = self._previous = program
        if program.owners is None:
            losses = self._update(program, losses, gradients)
        self.num_steps += 1
        return losses

    def prepare(self, args: Any, kwargs: Any) -> None:
        """Compile for arguments of these shapes, as the first step of a resumed run would."""
        if not (self.enabled and self._at_once and self._has_started()):
            return
        try:
            inputs, fixed = split(args, kwargs)
            self._consider((fixed, self._signature(inputs)), inputs, args, kwargs)
        except Exception as error:
            self._switch_off_for(error)

    def _find(
        self,
        previous: CompiledStep | None,
        inputs: list[Tensor],
        fixed: Any,
        args: Any,
        kwargs: Any,
    ) -> CompiledStep | None:
        """Return the program for these arguments, compiled now if it is time; None for none."""
        signature = (fixed, self._signature(inputs))
        program = self._programs.get(signature)
        if program is not None and not self._usable(program, program is previous):
            del self._programs[signature]
            program = None
            self._counts[signature] = STEPS_BEFORE_COMPILING
        if program is None:
            program = self._consider(signature, inputs, args, kwargs)
        if program is not None:
            program.runs += 1
            if program.runs in CHECKED_RUNS:
                self._check_again(program, inputs, args, kwargs)
        return program

    def _switch_off_for(self, error: Exception) -> None:
        """Run eagerly from now on, whatever failed: the program, torch's compiler, this package."""
        if isinstance(error, NotCompilable):
            self._switch_off(f"the program cannot be compiled: {error}")
        else:
            self._switch_off(
                f"the compiled step fails: {type(error).__name__}: {first_line(error)}"
            )

    def _switch_off(self, reason: str) -> None:
        self.enabled = False
        self._programs.clear()
        self._counts.clear()
        warnings.warn(
            f"training goes on without compilation, because {reason}. Pass compile=False to leave "
            "it at that",
            CompilationWarning,
            stacklevel=5,
        )

    def repeat_eagerly(self, args: Any, kwargs: Any) -> Any:
        """Take eagerly the step that a program declined, on the random numbers that it had."""
        program = self._program
        assert program is not None
        self._previous = None
        self.num_steps -= 1
        self.svi.any_process(True)
        set_random_state(self._random)
        loss = self.svi._eager_step(args, kwargs)
        if all(map(math.isfinite, numbers(loss))):
            program.misses += 1
            if program.misses > 10 and program.misses * 10 > program.runs:
                self._switch_off(
                    "the program cannot be compiled: what it runs depends too often on the values "
                    "of tensors"
                )
        return loss

    @property
    def must_look(self) -> bool:
        """Whether the last step's loss tells if it has to be repeated."""
        return self._program is not None and self._program.capture.branches

    def result(self, values: tuple[float, ...]) -> Any:
        """Return losses in the form in which Pyro's loss returned them."""
        return values[0] if self._tuple is None else self._tuple(values)

    def _update(
        self, program: CompiledStep, losses: list[Tensor], gradients: list[Tensor]
    ) -> list[Tensor]:
        """Let an optimizer that is not in the graph update, as Pyro does; return the losses."""
        parameters = program.capture.parameters
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        values = self.svi.update(numbers(tuple(losses)), parameters)
        return [torch.tensor(value, dtype=torch.double) for value in values]

    # -- which program ----------------------------------------------------------------------------

    def _signature(self, inputs: list[Tensor]) -> Any:
        shapes = [(x.shape, x.dtype, x.device, x.stride(), x.requires_grad) for x in inputs]
        watched = map(_kind, self._watched)
        stored = [id(p) for _, p in pyro.get_param_store().named_parameters()]
        settings = (
            len(self.svi.trained),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
        )
        return (
            tuple(shapes), tuple(watched), tuple(stored), settings, self._surroundings.key()
        )  # fmt: skip

    def _usable(self, program: CompiledStep, consecutive: bool) -> bool:
        if not program.is_current():
            self.update_outside = True  # hyperparameters that change, or a state that was loaded
            return False
        if any(p.grad is not None for p in program.capture.parameters):
            return False
        return consecutive or program.in_step()

    def _consider(self, signature: Any, inputs: Any, args: Any, kwargs: Any) -> CompiledStep | None:
        if not self._surroundings.complete:
            raise NotCompilable(
                f"it can read more than {MAX_VALUES:,} Python values, too many to compare before "
                "each step"
            )
        count = self._counts[signature] = self._counts.get(signature, -1) + 1
        if count == 0:
            self._unstable += 1
            if self._unstable > STEPS_BEFORE_COMPILING:
                name = self._surroundings.difference(self._seen, signature[1][-1])
                raise NotCompilable(f"{name!r} changes from step to step")
            if len(self._counts) > MAX_SIGNATURES:
                del self._counts[next(iter(self._counts))]
        else:
            self._unstable = 0
        self._seen = signature[1][-1]
        needed = STEPS_BEFORE_COMPILING
        if not self._programs and self._at_once:
            needed = 0 if self._has_started() else 1
        if count < needed or len(self._programs) >= MAX_PROGRAMS:
            return None
        program = self._make(inputs, args, kwargs)
        if program is not None:
            fixed, _ = signature
            self._programs[fixed, self._signature(inputs)] = program
        return program

    # -- making and checking programs -------------------------------------------------------------

    def _make(self, inputs: list[Tensor], args: Any, kwargs: Any) -> CompiledStep | None:
        try_out_processor()
        with self._restored():
            python = python_random_state()
            loss, gradients = self._reference(args, kwargs)
            after = torch.get_rng_state()
            if python_random_state() != python:
                raise NotCompilable("it draws from Python's or numpy's random generator")
        if not all(map(math.isfinite, numbers(loss))):
            return None  # another step will tell
        self._tuple = type(loss) if isinstance(loss, tuple) else None

        def traced(*stand_ins: Tensor) -> tuple[list[Any], list[Tensor]]:
            # Checks of every value cost as much as the bound; Pyro makes them in the checked runs.
            with pyro.validation_enabled(False):
                loss, parameters = self.svi.gradients(*join(args, kwargs, stand_ins))
            return list(loss) if isinstance(loss, tuple) else [loss], parameters

        with self._restored():
            recorded = capture(traced, [x.detach() for x in inputs])
        if any(recorded.tensors[i].requires_grad for i in recorded.mutated):
            raise NotCompilable("it changes a parameter in place")
        known = {id(buffer) for buffer in self._buffers()}
        if any(id(recorded.tensors[i]) not in known for i in recorded.mutated):
            raise NotCompilable("it changes a tensor in place that is not a module's buffer")
        self.svi.trained.update(gradients)
        self._watched = list({id(t): t for t in [*self._watched, *recorded.tensors]}.values())
        tolerance = self._tolerance(recorded.parameters)
        self._compare(recorded, inputs, loss, gradients, tolerance, after)
        with self._restored():
            outside = self.update_outside or self.svi.share is not None
            owners = None if outside else owners_of(self.svi.optim, recorded.parameters)
            try:
                return CompiledStep(recorded, inputs, owners, tolerance)
            except NotCompilable as finding:
                if owners is None:
                    raise
                log.info("the optimizer stays outside of the compiled step: %s", finding)
            # The bound can be compiled, the update cannot: it stays the optimizer's own.
            return CompiledStep(recorded, inputs, None, tolerance)

    def _reference(self, args: Any, kwargs: Any) -> tuple[Any, dict[Tensor, Tensor]]:
        """Return the loss and gradients that Pyro computes, and update nothing."""
        loss, parameters = self.svi.gradients(args, kwargs)
        gradients = {p: p.grad for p in parameters if p.grad is not None}
        for parameter in parameters:
            parameter.grad = None
        return loss, gradients

    def _compare(
        self,
        recorded: Capture,
        inputs: Any,
        loss: Any,
        gradients: Any,
        tolerance: float,
        after: Tensor,
    ) -> None:
        """Raise `NotCompilable` unless the graph, on the noise that Pyro had, gives the same."""
        with self._restored(), torch.no_grad():
            losses, guards, actual = recorded.graph(*inputs, *recorded.tensors)
            if any(bool((g != v).any()) for g, v in zip(guards, recorded.guards, strict=True)):
                return  # a step that the program declines
            drawn = torch.get_rng_state()
        expected = [torch.tensor(x, dtype=torch.double) for x in numbers(loss)]
        check_close("the loss", losses, expected, tolerance)
        if set(gradients) != set(recorded.parameters):
            raise NotCompilable("its parameters change from step to step")
        check_close("the gradients", actual, [gradients[p] for p in recorded.parameters], tolerance)
        if not torch.equal(drawn, after):
            raise NotCompilable("it seeds torch's random generator, or draws from it irregularly")

    def _check_again(self, program: CompiledStep, inputs: Any, args: Any, kwargs: Any) -> None:
        """Raise `NotCompilable` if the program no longer gives what Pyro's own step gives."""
        tolerance = self._tolerance(program.capture.parameters)
        with self._restored():
            loss, gradients = self._reference(args, kwargs)
            after = torch.get_rng_state()
        if all(map(math.isfinite, numbers(loss))):  # else the program will decline the step
            self._compare(program.capture, inputs, loss, gradients, tolerance, after)

    def _tolerance(self, parameters: list[Tensor]) -> float:
        if self.svi.precision == "bf16":
            return BF16_TOLERANCE
        return max((TOLERANCE.get(p.dtype, 1e-2) for p in parameters), default=1e-4)

    def _has_started(self) -> bool:
        """Tell whether parameters and optimizer exist, as in a run that is resumed."""
        optim = self.svi.optim
        if isinstance(optim, TorchOptim):
            return optim.optimizer is not None and bool(optim.optimizer.state)
        return bool(getattr(optim, "optim_objs", None))

    def _buffers(self) -> list[Tensor]:
        modules = self._surroundings.modules
        return [b for module in modules for b in module.buffers(recurse=False)]

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        """Undo what running a program changes: random states, buffers, and gradients."""
        state, buffers = random_state(), self._buffers()
        modules = self._surroundings.modules
        parameters = dict.fromkeys(self.svi.parameters)
        parameters |= dict.fromkeys(p for module in modules for p in module.parameters(False))
        gradients = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's
        copies = [buffer.clone() for buffer in buffers]
        try:
            yield
        finally:
            set_random_state(state)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            with torch.no_grad():
                for buffer, copy in zip(buffers, copies, strict=True):
                    buffer.copy_(copy)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def numbers(loss: Any) -> tuple[float, ...]:
    """Return the value of a loss, or the values of several, as Python floats."""
    losses = loss if isinstance(loss, tuple) else (loss,)  # reweighted wake-sleep has two
    return tuple(x.detach().item() if isinstance(x, Tensor) else float(x) for x in losses)
