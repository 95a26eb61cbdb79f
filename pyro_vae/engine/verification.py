"""Verification: compare a recorded graph with Pyro's eager computation of loss and gradients."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.engine.capture import Capture
from pyro_vae.engine.guards import GuardedState, same_values
from pyro_vae.engine.rounding import rounding_errors
from pyro_vae.engine.signatures import gradient_hooks
from pyro_vae.engine.step import Arguments, Keywords, Loss, StepProtocol, loss_values
from pyro_vae.engine.tolerances import check_close, rounding_unit, tolerance_of
from pyro_vae.engine.value_reader import NotCompilable
from pyro_vae.runtime.random_state import (
    TorchState,
    equal_random_states,
    preserved_state,
    python_random_state,
    random_state,
    set_random_state,
)


class Reference(NamedTuple):
    """Result of an eager computation without an update.

    Attributes:
        loss: Loss as Pyro returned it.
        gradients: Gradient of each parameter that has one.
        random_state: States of torch's generators after the computation.
        creates: Whether it created parameters in Pyro's store.
    """

    loss: Loss
    gradients: dict[Tensor, Tensor]
    random_state: TorchState
    creates: bool

    @property
    def finite(self) -> bool:
        """Whether all losses are finite."""
        return all(map(math.isfinite, loss_values(self.loss)))


def _rounding_of_gradients(
    recorded: Capture, inputs: list[Tensor], tolerance: float
) -> list[Tensor]:
    """Return the rounding errors of each gradient of a graph."""

    def gradients(*tensors: Tensor) -> list[Tensor]:
        return list(recorded.graph(*tensors)[2])

    tensors = [*inputs, *recorded.tensors]
    known = {id(parameter) for parameter in recorded.parameters}
    positions = [i for i, tensor in enumerate(tensors) if id(tensor) in known]
    errors = rounding_errors(gradients, tensors, positions, rounding_unit(tolerance))
    return errors[: len(recorded.parameters)]


class Verifier:
    """Compares graphs with the eager computation; restores all state that a comparison changes.

    Args:
        svi: Training step that is compiled.
        guards: Guarded state of its programs, which knows their modules.
    """

    def __init__(self, svi: StepProtocol, guards: GuardedState) -> None:
        self.svi, self._guards = svi, guards

    def reference(self, args: Arguments, kwargs: Keywords) -> Reference:
        """Compute loss and gradients eagerly, without an update."""
        key, store = self._guards.key(), pyro.get_param_store()
        if self._guards.iterators:
            raise NotCompilable(
                f"it holds a {type(self._guards.iterators[0]).__name__}, which cannot be set back "
                "after a trial run"
            )
        if any(t.requires_grad and not t.is_leaf for t in self._guards.tensors):
            raise NotCompilable(
                "it reads a tensor that was computed with gradients outside of it: a trial run "
                "would take its gradients. Compute it in the program, as "
                "nn.utils.parametrizations.weight_norm does and nn.utils.weight_norm does not"
            )
        with self.restored() as copies:
            python = python_random_state()
            tables = dict(store._params)
            buffers = {id(buffer) for buffer in self.buffers()}
            loss, parameters = self.svi.gradients(args, kwargs)
            gradients = {p: p.grad for p in parameters if p.grad is not None}
            for parameter in parameters:
                parameter.grad = None
            if any(gradient.layout is not torch.strided for gradient in gradients.values()):
                raise NotCompilable("a parameter has sparse gradients")
            if python_random_state() != python:
                raise NotCompilable("it draws from Python's or numpy's random generator")
            if self._guards.key() != key:
                name = self._guards.difference(key, self._guards.key())
                raise NotCompilable(f"it changes {name!r} in each step")
            if any(store._params.get(name) is not value for name, value in tables.items()):
                raise NotCompilable("it changes entries of Pyro's parameter store in each step")
            if not all(same_values(*pair) for pair in copies if id(pair[0]) not in buffers):
                raise NotCompilable("it changes a tensor in place that is not a module's buffer")
            # `pyro.module` adds parameters of modules, which exist before.
            known = {id(p) for module in self._guards.modules for p in module.parameters(False)}
            new = [value for name, value in store._params.items() if name not in tables]
            creates = any(id(value) not in known for value in new)
            return Reference(loss, gradients, random_state(), creates)

    def compare(self, recorded: Capture, inputs: list[Tensor], reference: Reference) -> None:
        """Run the graph on the random numbers of the reference and compare the results.

        Raises:
            NotCompilable: If loss, gradients or random numbers differ.
        """
        with self.restored(), torch.no_grad():
            losses, guards, actual = recorded.graph(*inputs, *recorded.tensors)
            if any(bool((g != v).any()) for g, v in zip(guards, recorded.guards, strict=True)):
                return  # the compiled step will decline these arguments
            drawn = random_state()
        tolerance = self.tolerance(recorded)
        expected = [torch.tensor(x, dtype=torch.double) for x in loss_values(reference.loss)]
        check_close("the loss", losses, expected, tolerance)
        if set(reference.gradients) != set(recorded.parameters):
            raise NotCompilable("its parameters change from step to step")
        gradients = [reference.gradients[p] for p in recorded.parameters]

        def rounding() -> list[Tensor]:
            with self.restored():
                return _rounding_of_gradients(recorded, inputs, tolerance)

        check_close("the gradients", actual, gradients, tolerance, rounding=rounding)
        if not equal_random_states(drawn, reference.random_state):
            raise NotCompilable("it seeds torch's random generator, or draws from it irregularly")

    def check_hooks(self) -> None:
        """Check that no parameter has a hook on its gradient, which can do anything.

        Raises:
            NotCompilable: If one has.
        """
        self._guards.key()
        for tensor in (*self._guards.tensors, *self.svi.parameters):
            if gradient_hooks(tensor):
                raise NotCompilable("a parameter has a hook on its gradient, which can do anything")

    def check_mutations(self, recorded: Capture) -> None:
        """Check that a graph changes no tensors in place other than buffers of modules.

        Raises:
            NotCompilable: If it changes another tensor.
        """
        mutated = [recorded.tensors[i] for i in recorded.mutated]
        if any(tensor.requires_grad for tensor in mutated):
            raise NotCompilable("it changes a parameter in place")
        known = {id(buffer) for buffer in self.buffers()}
        if any(id(tensor) not in known for tensor in mutated):
            raise NotCompilable("it changes a tensor in place that is not a module's buffer")

    def tolerance(self, recorded: Capture) -> float:
        """Return the tolerance for a graph, by its parameters' dtypes and the step's precision."""
        return tolerance_of(recorded.parameters, self.svi.precision)

    def buffers(self) -> list[Tensor]:
        """Return the buffers of the programs' modules."""
        modules = self._guards.modules
        return [b for module in modules for b in module.buffers(recurse=False)]

    @contextlib.contextmanager
    def restored(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Restore random states, guarded values, tensors, gradients and the store on exit.

        Yields:
            The tensors with copies of their values.
        """
        self._guards.key()
        stored = pyro.get_param_store()._params.values()
        tensors = (*self._guards.tensors, *self.svi.parameters, *stored)
        with preserved_state(), self._guards.restored(tensors) as copies:
            state = random_state()
            leaves = dict.fromkeys(t for t in tensors if t.is_leaf)
            leaves |= dict.fromkeys(p for m in self._guards.modules for p in m.parameters(False))
            held = [(p, p.grad, None if p.grad is None else p.grad.clone()) for p in leaves]
            try:
                yield copies
            finally:
                set_random_state(state)
                for parameter, gradient, values in held:
                    parameter.grad = gradient
                    if gradient is not None and values is not None:
                        gradient.copy_(values)
