"""Decide when a training step is compiled and which compiled program takes a step."""

import logging
import math
from collections.abc import Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from pyro_vae.engine.call_arguments import split
from pyro_vae.engine.capture import first_line
from pyro_vae.engine.comparison import Comparison, EagerBound
from pyro_vae.engine.compilation_warning import warn_of_eager_steps, warn_of_limit
from pyro_vae.engine.compiled_step import CompiledStep
from pyro_vae.engine.context import Context
from pyro_vae.engine.guarded_reads import LARGE
from pyro_vae.engine.guards import MAX_VALUES, GuardedState, GuardKey
from pyro_vae.engine.program_maker import ProgramMaker
from pyro_vae.engine.signatures import Call, LastStep, Signature, signature_of
from pyro_vae.engine.step import Arguments, Keywords, LossValue, StepProtocol, loss_values
from pyro_vae.engine.torch_optim import has_started
from pyro_vae.engine.value_reader import NotCompilable
from pyro_vae.engine.verified_steps import Check, VerifiedSteps
from pyro_vae.runtime.files import JSONObject
from pyro_vae.runtime.random_state import random_state, set_random_state

log = logging.getLogger("pyro_vae")

Batch: TypeAlias = tuple[Arguments, float | None]  # positional arguments, and a process's share

# Compiling takes as long as some thousand steps. Shapes that occur once an epoch, or in a run of a
# few steps, never repay it.
STEPS_BEFORE_COMPILING = 1000
MAX_PROGRAMS = 8
MAX_SIGNATURES = 100  # signatures with a count of steps; the oldest is dropped first
# Runs of a program that are compared with the eager step, to detect changes that neither guards nor
# signatures see. `VerifiedSteps` compares later ones too.
CHECKED_RUNS = {1, 2, 3, 5, 8, 13, 21, 34}
# The engine is switched off if a program declines more steps than this, and more than one in ten.
MISSES_ALLOWED, RUNS_PER_MISS = 10, 10
# Steps that follow each other, with nothing between them, read everything at one of so many.
STEPS_BETWEEN_READS = 10


class Compiler:
    """Compiles the training step and selects the compiled program for each step.

    Args:
        svi: Training step.
        loss: Objective, guarded together with model and guide.
        at_once: Whether to compile as soon as the parameters exist.

    Attributes:
        nothing_changed: Whether nothing but training steps has run since the last step.
    """

    def __init__(self, svi: StepProtocol, loss: object, at_once: bool) -> None:
        self.svi = svi
        self.enabled = True
        self.update_outside = False  # whether the optimizer updates outside of compiled programs
        self.num_steps = 0
        self._loss, self._at_once = loss, at_once
        self._reset()

    def _reset(self) -> None:
        """Start without programs."""
        svi = self.svi
        roots = [(getattr, svi, name) for name in ("model", "guide", "loss_and_grads")]
        self._guards = GuardedState([*roots, (getattr, self, "_loss")], named=True)
        self._maker = ProgramMaker(svi, self._guards)
        self.verified = VerifiedSteps(svi, self._guards, self._maker.verifier.buffers)
        self._is_first = True  # whether nothing was compiled yet
        self._announced_limit = False
        self._counts: dict[Signature, int] = {}
        self._programs: dict[Signature, CompiledStep] = {}
        self._context = Context(1 if self._at_once else STEPS_BEFORE_COMPILING)
        self._unstable = 0  # consecutive steps with new signatures
        self._last_guards: GuardKey = ()
        self.nothing_changed = False
        self._last_step: LastStep | None = None  # if it was compiled and not compared
        # The last compiled step: its program, and the random state before it.
        self._program: CompiledStep | None = None
        self._random = random_state()

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickled files have no programs; they compile again."""
        names = ("svi", "enabled", "update_outside", "num_steps", "_loss", "_at_once")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Start without programs."""
        vars(self).update(state)
        self._reset()

    # -- steps ------------------------------------------------------------------------------------

    def step(
        self, args: Arguments, kwargs: Keywords, share: float | None
    ) -> list[Tensor] | LossValue | None:
        """Take the step; return its loss or losses.

        Returns:
            None if no program takes the step; a list of tensors if a compiled program took it; the
            loss as numbers if it was a verified step, which is complete.

        Raises:
            Exception: In a verified step, the exceptions of the eager step. If the engine fails, it
                warns and switches itself off, and restores the random state for the eager step.
        """
        self.verified.clock += 1
        if not self.enabled or self._context.is_eager(self.svi.parameters):
            return None
        before = random_state()
        last, self._last_step = self._last_step if self.nothing_changed else None, None
        self.nothing_changed = False
        try:
            call = Call(args, kwargs, share, *split(args, kwargs))
            kinds = call.kinds
            if last is not None and last.remaining and last.inputs == kinds:
                program: CompiledStep | None = last.program
            else:
                program, last = self._find(call), None
            self.verified.note(call, before)
            if program is None:
                return None
            program.runs += 1
            check = self.verified.check_of(program, CHECKED_RUNS, share)
        except Exception as error:
            set_random_state(before)
            self._switch_off_for(error)
            return None
        self._random, self._program = before, program
        bound = self._eager_bound(program, call) if check is Check.BOUND else None
        if check is Check.ALL or (check is Check.BOUND and bound is None):
            return self._verified_step(program, call)
        remaining = STEPS_BETWEEN_READS if last is None else last.remaining
        step = self._compiled_step(program, call, bound)
        if bound is None and isinstance(step, list) and program.optimizers is not None:
            self._last_step = LastStep(program, kinds, remaining - 1)
        return step

    def _eager_bound(self, program: CompiledStep, call: Call) -> EagerBound | None:
        """Compute the eager bound; return None if all of the step must be compared."""
        try:
            bound = EagerBound(self.svi, program, call)
        except Exception:  # the eager step raises it again
            return None
        finally:
            set_random_state(self._random)
        return bound if bound.operations == program.backward else None

    def _compiled_step(
        self, program: CompiledStep, call: Call, bound: EagerBound | None
    ) -> list[Tensor] | LossValue | None:
        """Take a step with a program; return its losses, or None if the eager step follows."""
        try:
            losses, gradients = program(call.inputs)
        except Exception as error:
            set_random_state(self._random)
            self._switch_off_for(error)
            return None
        try:
            if bound is not None:
                program.is_suspect = bound.check(losses)
                program.bound_at = self.verified.clock
        except NotCompilable as finding:
            return self._take_back(finding, call, None)
        except Exception as error:  # in the comparison of a step that was taken
            self._switch_off_for(error)
        self.num_steps += 1
        program.unverified += 1
        program.ran_at = self.verified.clock
        if program.optimizers is None:
            losses = self._update(program, losses, gradients, call.share)
        return losses

    def _verified_step(self, program: CompiledStep, call: Call) -> LossValue | None:
        """Take a step eagerly and with a program; return the loss if they agree."""
        try:
            comparison = Comparison(self.svi, program, call.inputs)
        except Exception as error:
            set_random_state(self._random)
            self._switch_off_for(error)
            return None
        set_random_state(self._random)
        key = self._guards.key()
        loss = self.verified.eager_step(comparison, call)
        after = random_state()
        try:
            values = self.verified.close(comparison, loss, key, self._programs.values())
        except NotCompilable as finding:
            return self._take_back(finding, call, loss)
        except Exception as error:
            set_random_state(after)
            self._switch_off_for(error)
            return loss
        self.num_steps += values is not None  # else the program declined the step
        # The losses of several processes are averaged.
        return loss if values is None or call.share is not None else self.result(values)

    def _take_back(
        self, error: NotCompilable, call: Call, loss: LossValue | None
    ) -> LossValue | None:
        """Return to the last verified state; return the loss of the step if it was taken."""
        programs = self._programs.values()
        reason, num_steps, loss = self.verified.take_back(error, call, loss, programs)
        self.num_steps -= num_steps
        self._programs.clear()  # their steps are compared or taken back
        self._switch_off(reason)
        return loss

    def state(self, batches: Iterable[Batch]) -> JSONObject:
        """Return for which arguments there are programs, or after how many steps."""
        sizes: list[JSONObject] = []
        try:
            for args, share in batches if self.enabled else ():
                signature = self._signature(Call(args, {}, share, *split(args, {})))
                steps, compiled = self._counts.get(signature, -1) + 1, signature in self._programs
                sizes.append({"steps": steps, "compiled": compiled})
        except Exception as error:
            self._switch_off_for(error)
        return {"enabled": self.enabled, "started": not self._is_first, "sizes": sizes}

    def restore(self, batches: Iterable[Batch], state: JSONObject) -> None:
        """Compile for the arguments for which there were programs; count the other steps."""
        if not (self.enabled and self._at_once):
            return
        if not state["enabled"]:
            self._switch_off("compilation had ended before the checkpoint")
            return
        try:
            calls = [Call(args, {}, share, *split(args, {})) for args, share in batches]
            for call, entry in zip(calls, state["sizes"], strict=True):
                if entry["compiled"]:
                    self._make(call)
            for call, entry in zip(calls, state["sizes"], strict=True):
                if not entry["compiled"] and entry["steps"]:
                    self._counts[self._signature(call)] = entry["steps"] - 1
            self._is_first = not state["started"]
        except Exception as error:
            self._switch_off_for(error)

    def repeat_eagerly(self, args: Arguments, kwargs: Keywords, share: float | None) -> LossValue:
        """Take eagerly the step that a program declined, on the same random numbers."""
        program = self._program
        assert program is not None
        self.num_steps -= 1
        self._last_step = None
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
        return values if self._maker.several_losses else values[0]

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
        if num := sum(program.unverified for program in self._programs.values()):
            reason = f"{reason}. Its last {num} compiled steps were not compared with eager ones"
        self.enabled = False
        self._programs.clear()
        self._counts.clear()
        self.verified.forget()
        warn_of_eager_steps(reason)

    # -- which program ----------------------------------------------------------------------------

    def _find(self, call: Call) -> CompiledStep | None:
        """Return the program for these arguments, compiled now if it is time; else None."""
        signature = self._signature(call)
        program = self._programs.get(signature)
        if program is not None and not self._usable(program):
            del self._programs[signature]
            program = None
            self._counts[signature] = STEPS_BEFORE_COMPILING
        return self._consider(signature, call) if program is None else program

    def _signature(self, call: Call) -> Signature:
        return signature_of(
            call, self._maker.watched, self._maker.store.key(), self.svi, self._guards.key()
        )

    def _usable(self, program: CompiledStep) -> bool:
        if not program.is_current(self.svi.optim):
            self.update_outside = True  # a hyperparameter changed, or a state was loaded
            return False
        return program.in_step()

    def _consider(self, signature: Signature, call: Call) -> CompiledStep | None:
        """Count a step without a program; compile one if there were enough such steps."""
        if not self._guards.complete:
            raise NotCompilable(
                f"it can read more than {MAX_VALUES:,} Python values, or {LARGE:,} objects of a "
                "container, too many to compare before each step"
            )
        count = self._counts[signature] = self._counts.get(signature, -1) + 1
        if count == 0:
            self._unstable += 1
            known = [s._replace(watched=(), stored=(), settings=()) for s in self._counts]
            if self._unstable > STEPS_BEFORE_COMPILING:
                name = self._guards.difference(self._last_guards, signature.guards)
                raise NotCompilable(f"{name!r} changes from step to step")
            if len({s if self._at_once else s.guards for s in known}) > MAX_PROGRAMS:
                self._announce_limit(signature)
            if len(self._counts) > MAX_SIGNATURES:
                del self._counts[next(iter(self._counts))]
        else:
            self._unstable = 0
        self._last_guards = signature.guards
        needed = STEPS_BEFORE_COMPILING
        if self._is_first and self._at_once:
            needed = 0 if has_started(self.svi.optim) else 1
        if count < needed:
            return None
        if len(self._programs) >= MAX_PROGRAMS:
            self._announce_limit(signature)
            return None
        return self._make(call)

    def _make(self, call: Call) -> CompiledStep | None:
        program = self._maker.make(call, self.update_outside)
        if program is not None:
            self._programs[self._signature(call)] = program
            self._is_first = False
        return program

    def _announce_limit(self, signature: Signature) -> None:
        """Warn, once, that there are as many compiled programs as there can be."""
        if self._announced_limit:
            return
        self._announced_limit = True
        name = "the shapes or values of its arguments"
        if self._last_guards != signature.guards:
            name = repr(self._guards.difference(self._last_guards, signature.guards))
        warn_of_limit(name, STEPS_BEFORE_COMPILING, MAX_PROGRAMS)
