"""Make the compiled program of a training step: record it, compare it, compile it."""

import logging
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor

from pyro_vae.engine.call_arguments import join
from pyro_vae.engine.capture import Capture, capture, same_strides
from pyro_vae.engine.comparison import Comparison
from pyro_vae.engine.compiled_step import CompiledStep
from pyro_vae.engine.graph_optimizer import GraphOptimizer, graph_optimizers
from pyro_vae.engine.guards import GuardedState
from pyro_vae.engine.inductor import try_out_processor
from pyro_vae.engine.parameter_store import StoreReads
from pyro_vae.engine.signatures import Call
from pyro_vae.engine.step import StepProtocol
from pyro_vae.engine.value_reader import NotCompilable
from pyro_vae.engine.verification import Verifier

log = logging.getLogger("pyro_vae")

MANY_CREATIONS = 10  # steps that create parameters; a parameter may appear late


class ProgramMaker:
    """Makes the compiled programs of a training step.

    Args:
        svi: Training step.
        guards: Guarded state of its programs.

    Attributes:
        verifier: Compares recorded graphs with the eager bound.
        store: What the programs read from Pyro's parameter store.
        watched: Tensors that the programs use.
        several_losses: Whether the objective has several losses.
    """

    def __init__(self, svi: StepProtocol, guards: GuardedState) -> None:
        self.svi, self.verifier, self.store = svi, Verifier(svi, guards), StoreReads()
        self.watched: list[Tensor] = []
        self.several_losses = False
        self._creations = 0

    def make(self, call: Call, update_outside: bool) -> CompiledStep | None:
        """Record, verify and compile the step.

        Returns:
            The program; None if the loss is not finite, or if the step creates parameters.

        Args:
            call: Arguments of the step.
            update_outside: Whether the optimizer updates outside of the program.

        Raises:
            NotCompilable: If the step cannot be compiled, or the program differs from it.
        """
        try_out_processor()
        verifier = self.verifier
        verifier.check_hooks()
        copies = map(same_strides, call.inputs)  # a program may change its arguments in place
        reference = verifier.reference(*join(call.args, call.kwargs, copies))
        self._creations += reference.creates
        if self._creations > MANY_CREATIONS:
            raise NotCompilable("it creates parameters in Pyro's store in each step")
        if reference.creates or not reference.finite:
            return None  # a later step is recorded
        self.several_losses = isinstance(reference.loss, tuple)
        with verifier.restored():
            recorded = self._record(call)
        verifier.check_mutations(recorded)
        self.svi.trained.update(reference.gradients)
        self.watched = list({id(t): t for t in [*self.watched, *recorded.tensors]}.values())
        verifier.compare(recorded, call.inputs, reference)
        with verifier.restored():
            return self._compile(recorded, call, update_outside)

    def _record(self, call: Call) -> Capture:
        validates = dist.is_validation_enabled()

        def traced(*stand_ins: Tensor) -> tuple[Sequence[float | Tensor], list[Tensor]]:
            # The graph has the checks of torch's distributions. Those of Pyro's traces take as long
            # as the bound; verified steps have them.
            with (
                pyro.validation_enabled(False),
                dist.validation_enabled(validates),
                self.store.recorded(),
            ):
                args, kwargs = join(call.args, call.kwargs, stand_ins)
                loss, parameters = self.svi.gradients(args, kwargs)
            return loss if isinstance(loss, tuple) else (loss,), parameters

        return capture(traced, [same_strides(x) for x in call.inputs])

    def _compile(self, recorded: Capture, call: Call, update_outside: bool) -> CompiledStep:
        """Compile the graph, with the optimizer's update if the update can be recorded."""
        optimizers = None
        if not update_outside and call.share is None:
            optimizers = graph_optimizers(self.svi.optim, recorded.parameters)
        if optimizers is not None:
            try:
                return self._checked(recorded, call, optimizers)
            except NotCompilable as finding:
                log.info("the optimizer runs outside of the compiled step: %s", finding)
        return self._checked(recorded, call, None)

    def _checked(
        self, recorded: Capture, call: Call, optimizers: list[GraphOptimizer] | None
    ) -> CompiledStep:
        """Compile the graph; compare the compiled code with it."""
        tolerance = self.verifier.tolerance(recorded)
        program = CompiledStep(recorded, call.inputs, optimizers, tolerance)
        Comparison(self.svi, program, call.inputs).check_compiler()
        return program
