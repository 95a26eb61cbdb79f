"""Decide when a training step is compiled and which compiled program takes a step."""

import logging
import math
import operator
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from pyro_vae.engine.call_arguments import join, split
from pyro_vae.engine.capture import Capture, NotCompilable, capture, first_line
from pyro_vae.engine.compiled_step import CompiledStep
from pyro_vae.engine.graph_optimizer import graph_optimizers
from pyro_vae.engine.guards import MAX_VALUES, GuardedState, GuardKey
from pyro_vae.engine.inductor import try_out_processor
from pyro_vae.engine.step import Arguments, Keywords, LossValue, StepProtocol, loss_values
from pyro_vae.engine.torch_optim import TorchOptim
from pyro_vae.engine.verification import Verifier
from pyro_vae.runtime.random_state import random_state, set_random_state

log = logging.getLogger("pyro_vae")

# Compiling takes as long as some thousand steps. Shapes that occur once an epoch, or in a run of a
# few steps, never repay it.
STEPS_BEFORE_COMPILING = 1000
MAX_PROGRAMS = 8
MAX_SIGNATURES = 100  # signatures with a count of steps; the oldest is dropped first
# Runs of a program that are compared with Pyro's eager computation, to detect changes that neither
# guards nor signatures see.
CHECKED_RUNS = {2, 3, *(10**k for k in range(1, 10))}
# The engine is switched off if a program declines more steps than this, and more than one in ten.
MISSES_ALLOWED, RUNS_PER_MISS = 10, 10

# Properties of a tensor that is not an argument, on which a compiled program depends.
_kind = operator.attrgetter("requires_grad", "dtype")


class CompilationWarning(UserWarning):
    """A program that should be compiled runs eagerly; the message gives the reason."""


class Signature(NamedTuple):
    """Everything that selects a compiled program; hashable.

    Attributes:
        fixed: Arguments that are not tensors, from `split`.
        shapes: Shape, dtype, device, strides and `requires_grad` of each tensor argument.
        watched: Dtype and `requires_grad` of each tensor that a graph uses.
        stored: Identities of the parameters in Pyro's parameter store.
        settings: Global settings, and whether several processes take the step together.
        guards: Python values that the programs can read.
    """

    fixed: object
    shapes: tuple[object, ...]
    watched: tuple[object, ...]
    stored: tuple[int, ...]
    settings: tuple[object, ...]
    guards: GuardKey


class Call(NamedTuple):
    """The arguments of one step.

    Attributes:
        args: Positional arguments of model and guide.
        kwargs: Keyword arguments of model and guide.
        share: This process's share of the minibatch; None for a single process.
        inputs: Tensors among the arguments.
        fixed: The other arguments, hashable.
    """

    args: Arguments
    kwargs: Keywords
    share: float | None
    inputs: list[Tensor]
    fixed: object


class Compiler:
    """Compiles the training step and selects the compiled program for each step.

    Args:
        svi: Training step.
        loss: Objective, guarded together with model and guide.
        at_once: Whether to compile as soon as the parameters exist.
    """

    def __init__(self, svi: StepProtocol, loss: object, at_once: bool) -> None:
        self.svi = svi
        self.enabled = True
        self.update_outside = False  # whether the optimizer updates outside of compiled programs
        self.num_steps = 0
        self._guards = GuardedState(svi.model, svi.guide, loss, svi.loss_and_grads)
        self._verifier = Verifier(svi, self._guards)
        self._at_once = at_once
        self._counts: dict[Signature, int] = {}
        self._programs: dict[Signature, CompiledStep] = {}
        self._watched: list[Tensor] = []
        self._several_losses = False
        # Consecutive steps with new signatures, and the guards of the last step considered.
        self._unstable = 0
        self._last_guards: GuardKey = ()
        # The last compiled step: its program, and the random state before it.
        self._program: CompiledStep | None = None
        self._random = random_state()
        self._previous: CompiledStep | None = None  # program of the step before, if compiled

    # -- steps ------------------------------------------------------------------------------------

    def step(self, args: Arguments, kwargs: Keywords, share: float | None) -> list[Tensor] | None:
        """Take the step with a compiled program and return its losses; None without a program.

        No exception leaves this method. If the engine fails, it warns and switches itself off, and
        restores the random state for the eager step that follows.
        """
        previous, self._previous = self._previous, None
        if not self.enabled or am_i_wrapped() or not torch.is_grad_enabled():
            return None
        before = random_state()
        try:
            call = Call(args, kwargs, share, *split(args, kwargs))
            program = self._find(previous, call)
            if program is None:
                return None
            losses, gradients = program(call.inputs)
        except Exception as error:
            set_random_state(before)
            self._switch_off_for(error)
            return None
        self._random = before
        self._program = self._previous = program
        if program.optimizers is None:
            losses = self._update(program, losses, gradients, share)
        self.num_steps += 1
        return losses

    def prepare(self, args: Arguments, kwargs: Keywords, share: float | None) -> None:
        """Compile for arguments of these shapes, as the first step of a resumed run would."""
        if not (self.enabled and self._at_once and self._has_started()):
            return
        try:
            call = Call(args, kwargs, share, *split(args, kwargs))
            self._consider(self._signature(call), call)
        except Exception as error:
            self._switch_off_for(error)

    def repeat_eagerly(self, args: Arguments, kwargs: Keywords, share: float | None) -> LossValue:
        """Take eagerly the step that a program declined, on the same random numbers."""
        program = self._program
        assert program is not None
        self._previous = None
        self.num_steps -= 1
        self.svi.any_process(True, share)
        set_random_state(self._random)
        loss = self.svi.eager_step(args, kwargs, share)
        if all(map(math.isfinite, loss_values(loss))):
            program.misses += 1
            if program.misses > max(MISSES_ALLOWED, program.runs // RUNS_PER_MISS):
                self._switch_off(
                    "the program cannot be compiled: it branches too often on the values of tensors"
                )
        return loss

    @property
    def must_check_loss(self) -> bool:
        """Whether a NaN loss of the last step can mean that the step must be repeated."""
        return self._program is not None and self._program.capture.branches

    def result(self, values: tuple[float, ...]) -> LossValue:
        """Return losses as Pyro's loss returned them: a number, or a tuple of several."""
        return values if self._several_losses else values[0]

    def _update(
        self,
        program: CompiledStep,
        losses: list[Tensor],
        gradients: list[Tensor],
        share: float | None,
    ) -> list[Tensor]:
        """Update with an optimizer that is not part of the graph; return the losses."""
        parameters = program.capture.parameters
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        values = self.svi.update(loss_values(tuple(losses)), parameters, share)
        return [torch.tensor(value, dtype=torch.double) for value in values]

    def _switch_off_for(self, error: Exception) -> None:
        """Run eagerly from now on because of an error in the program, the compiler or here."""
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
            f"training continues without compilation, because {reason}. Pass compile=False to "
            "silence this warning",
            CompilationWarning,
            stacklevel=6,
        )

    # -- which program ----------------------------------------------------------------------------

    def _find(self, previous: CompiledStep | None, call: Call) -> CompiledStep | None:
        """Return the program for these arguments, compiled now if it is time; else None."""
        signature = self._signature(call)
        program = self._programs.get(signature)
        if program is not None and not self._usable(program, program is previous):
            del self._programs[signature]
            program = None
            self._counts[signature] = STEPS_BEFORE_COMPILING
        if program is None:
            program = self._consider(signature, call)
        if program is not None:
            program.runs += 1
            if program.runs in CHECKED_RUNS:
                self._verifier.check_again(program.capture, call.inputs, call.args, call.kwargs)
        return program

    def _signature(self, call: Call) -> Signature:
        return Signature(
            call.fixed,
            tuple([(x.shape, x.dtype, x.device, x.stride(), x.requires_grad) for x in call.inputs]),
            tuple(map(_kind, self._watched)),
            tuple([id(p) for _, p in pyro.get_param_store().named_parameters()]),
            (
                len(self.svi.trained),
                torch.get_default_dtype(),
                torch.is_autocast_enabled("cpu"),
                torch.is_autocast_enabled("cuda"),
                call.share is None,
            ),
            self._guards.key(),
        )

    def _usable(self, program: CompiledStep, consecutive: bool) -> bool:
        if not program.is_current():
            self.update_outside = True  # a hyperparameter changed, or a state was loaded
            return False
        if any(p.grad is not None for p in program.capture.parameters):
            return False
        return consecutive or program.in_step()

    def _consider(self, signature: Signature, call: Call) -> CompiledStep | None:
        """Count a step without a program; compile one if there were enough such steps."""
        if not self._guards.complete:
            raise NotCompilable(
                f"it can read more than {MAX_VALUES:,} Python values, too many to compare before "
                "each step"
            )
        count = self._counts[signature] = self._counts.get(signature, -1) + 1
        if count == 0:
            self._unstable += 1
            if self._unstable > STEPS_BEFORE_COMPILING:
                name = self._guards.difference(self._last_guards, signature.guards)
                raise NotCompilable(f"{name!r} changes from step to step")
            if len(self._counts) > MAX_SIGNATURES:
                del self._counts[next(iter(self._counts))]
        else:
            self._unstable = 0
        self._last_guards = signature.guards
        needed = STEPS_BEFORE_COMPILING
        if not self._programs and self._at_once:
            needed = 0 if self._has_started() else 1
        if count < needed or len(self._programs) >= MAX_PROGRAMS:
            return None
        program = self._make(call)
        if program is not None:
            self._programs[self._signature(call)] = program
        return program

    def _has_started(self) -> bool:
        """Return whether parameters and optimizer state exist, as in a resumed run."""
        optim = self.svi.optim
        if isinstance(optim, TorchOptim):
            return optim.optimizer is not None and bool(optim.optimizer.state)
        return bool(getattr(optim, "optim_objs", None))

    # -- compilation ------------------------------------------------------------------------------

    def _make(self, call: Call) -> CompiledStep | None:
        """Record, verify and compile the step; return None if its loss is not finite."""
        try_out_processor()
        verifier = self._verifier
        reference = verifier.reference(call.args, call.kwargs)
        if reference.foreign_randomness:
            raise NotCompilable("it draws from Python's or numpy's random generator")
        if not reference.finite:
            return None  # a later step is recorded
        self._several_losses = isinstance(reference.loss, tuple)
        with verifier.restored():
            recorded = self._record(call)
        verifier.check_mutations(recorded)
        self.svi.trained.update(reference.gradients)
        self._watched = list({id(t): t for t in [*self._watched, *recorded.tensors]}.values())
        verifier.compare(recorded, call.inputs, reference)
        with verifier.restored():
            return self._compile(recorded, call)

    def _record(self, call: Call) -> Capture:
        def traced(*stand_ins: Tensor) -> tuple[Sequence[float | Tensor], list[Tensor]]:
            # Pyro's validation takes as long as the bound. The checked runs validate.
            with pyro.validation_enabled(False):
                args, kwargs = join(call.args, call.kwargs, stand_ins)
                loss, parameters = self.svi.gradients(args, kwargs)
            return loss if isinstance(loss, tuple) else (loss,), parameters

        return capture(traced, [x.detach() for x in call.inputs])

    def _compile(self, recorded: Capture, call: Call) -> CompiledStep:
        """Compile the graph, with the optimizer's update if the update can be recorded."""
        tolerance = self._verifier.tolerance(recorded)
        optimizers = None
        if not self.update_outside and call.share is None:
            optimizers = graph_optimizers(self.svi.optim, recorded.parameters)
        if optimizers is not None:
            try:
                return CompiledStep(recorded, call.inputs, optimizers, tolerance)
            except NotCompilable as finding:
                log.info("the optimizer runs outside of the compiled step: %s", finding)
        return CompiledStep(recorded, call.inputs, None, tolerance)
