"""Verified steps: compare compiled steps with eager ones, and take wrong steps back.

In some steps, the eager bound is computed on the random numbers of the compiled step, and the two
are compared. In fewer steps, gradients, updates, optimizer state and buffers are compared too, and
the state of the run is kept. If a comparison fails, the run returns to the state that was kept.
"""

from collections.abc import Callable, Iterable
from enum import Enum

from torch import Tensor

from pyro_vae.engine.backward_passes import backward_passes, has_custom_functions
from pyro_vae.engine.comparison import Comparison, check_finite
from pyro_vae.engine.compiled_step import CompiledStep
from pyro_vae.engine.guards import GuardedState, GuardKey
from pyro_vae.engine.signatures import Call
from pyro_vae.engine.step import LossValue, StepProtocol, loss_values
from pyro_vae.engine.value_reader import NotCompilable
from pyro_vae.engine.verified_state import StepsSince, VerifiedState
from pyro_vae.runtime.random_state import TorchState

# Steps between two comparisons of the bound, and between two comparisons of everything.
STEPS_BETWEEN_BOUNDS = 50
STEPS_BETWEEN_CHECKS = 400


class Check(Enum):
    """The comparison in a step: none, of the bound, or of everything that a step changes."""

    NONE = 0
    BOUND = 1
    ALL = 2


class VerifiedSteps:
    """Decides which steps are compared, and takes steps back.

    Args:
        svi: Training step.
        guards: Guarded state of its programs.
        buffers: Function that returns the buffers of their modules.

    Attributes:
        clock: Number of steps taken, compiled or not.
        takes_again: Whether steps that are taken back are taken again eagerly.
        verifies_next: Whether the next compiled step is compared, whatever the last comparison.
    """

    def __init__(
        self, svi: StepProtocol, guards: GuardedState, buffers: Callable[[], list[Tensor]]
    ) -> None:
        self.svi, self.clock = svi, 0
        self.takes_again = self.verifies_next = False
        self._guards, self._buffers = guards, buffers
        self._kept = VerifiedState(svi)
        self._since = StepsSince(svi)
        # Clock of the last comparison after which another program still had unverified steps.
        self._closing: int | None = None

    def check_of(self, program: CompiledStep, runs: Iterable[int], share: float | None) -> Check:
        """Return the comparison in the next step of a program.

        Args:
            program: Compiled program of the step.
            runs: Runs of a program in which everything is compared.
            share: This process's share of the minibatch; None for a single process.
        """
        often = share is not None or program.defines_gradients
        everything = STEPS_BETWEEN_BOUNDS if often else STEPS_BETWEEN_CHECKS
        due, self.verifies_next = self.verifies_next, False
        if (
            due
            or program.is_suspect
            or program.runs in runs
            or self.clock - program.verified_at >= everything
            or (self._closing is None and not self._since.complete)
            # The other programs follow, so that at one time all of them are verified.
            or (self._closing is not None and program.unverified > 0
                and program.verified_at < self._closing)
        ):  # fmt: skip
            return Check.ALL
        if self.clock - program.bound_at >= STEPS_BETWEEN_BOUNDS:
            return Check.BOUND if self._kept.clock >= 0 else Check.ALL
        return Check.NONE

    def note(self, call: Call, before: TorchState) -> None:
        """Remember a step until the next verified one, if it is to be taken again."""
        if self.takes_again and self._kept.clock >= 0 and call.share is None:
            self._since.note(call, before)

    def eager_step(self, comparison: Comparison, call: Call) -> LossValue:
        """Take a step eagerly for a comparison; return its loss.

        Raises:
            Exception: The exceptions of the step.
        """
        program = comparison.program
        with backward_passes(run=True) as program.backward:
            loss = self.svi.eager_step(call.args, call.kwargs, call.share, comparison.observe)
        program.defines_gradients = program.capture.stops_gradients or has_custom_functions(
            program.backward
        )
        return loss

    def close(
        self,
        comparison: Comparison,
        loss: LossValue,
        key: GuardKey,
        programs: Iterable[CompiledStep],
    ) -> tuple[float, ...] | None:
        """Compare an eager step that was taken; keep the state if all programs are verified.

        Args:
            comparison: The step of the compiled program.
            loss: Loss of the eager step.
            key: Guards before the step.
            programs: All programs of the run.

        Returns:
            Losses of the compiled program, of which the run has all results; None if there is
            nothing to compare, because the program declined the step.

        Raises:
            NotCompilable: If the steps differ.
        """
        program = comparison.program
        if comparison.declined:
            return None  # the program is verified in another step
        check_finite(loss_values(loss))
        comparison.check()
        if self._guards.key() != key:
            name = self._guards.difference(key, self._guards.key())
            raise NotCompilable(
                f"it changes {name!r} in each step, so it can compute with numbers that differ "
                "from run to run"
            )
        values = comparison.adopt()
        program.verified_at = program.bound_at = self.clock
        program.unverified, program.is_suspect = 0, False
        # A program that has not run for long, because a setting has changed, does not run again.
        since = self.clock - STEPS_BETWEEN_CHECKS
        others = any(p.unverified and p.ran_at >= since for p in programs)
        self._closing = self.clock if others else None
        if not others:
            buffers = self._buffers()
            self._kept.keep(self.clock, buffers)
            known = {id(tensor) for tensor in (*buffers, *self.svi.parameters)}
            self._since.clear(t for t in self._guards.tensors if id(t) not in known)
        return values

    def take_back(
        self,
        error: NotCompilable,
        call: Call,
        loss: LossValue | None,
        programs: Iterable[CompiledStep],
    ) -> tuple[str, int, LossValue | None]:
        """Return to the last verified state, from which the step of `call` is to be taken eagerly.

        Args:
            error: The difference that was found.
            call: Arguments of the step in which it was found.
            loss: Loss of this step, if it was taken eagerly.
            programs: All programs of the run. If they took no steps that were not compared, only
                this step is wrong.

        Returns:
            The reason, for a warning; the number of steps that were taken back; and `loss`, or None
            if the step is to be taken now.
        """
        first, last = self._kept.clock + 1, self.clock - 1
        unverified = any(program.unverified for program in programs)
        reason = f"in step {self.clock} the compiled step is wrong: {error}"
        if loss is not None and (first > last or self._kept.clock < 0 or not unverified):
            return reason, 0, loss  # the eager step follows a verified one
        if call.share is not None:
            return (
                f"{reason}. Steps {first} to {last} were compiled and are not taken back, because "
                "several processes take them together"
            ), 0, loss  # fmt: skip
        again = self.takes_again and self._since.complete
        self._kept.restore()
        if again:
            self._since.take_again()
        if first > last:
            return reason, 0, None
        how = "are taken again eagerly" if again else "are taken back"
        return f"{reason}. Steps {first} to {last} {how}", last - first + 1, None

    def forget(self) -> None:
        """Release the memory of the state and the steps."""
        self._kept.forget()
        self._since.clear([])
