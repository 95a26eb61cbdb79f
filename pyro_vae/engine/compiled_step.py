"""A compiled training step: the bound, its gradients and the optimizer's update in one graph.

The update is torch's own: `optimizer.step` runs while the graph is recorded, on stand-ins for the
parameters and the optimizer's state, so that no update rule is written here. The compiled step
then changes the real ones in place: `optimizer.state_dict()` is right after every step.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.engine.capture import Capture, NotCompilable, ValueReader, same_strides
from pyro_vae.engine.graph_optimizer import GraphOptimizer, scheduled
from pyro_vae.engine.inductor import compile_graph, functional, share_scalars

# Rounding: between a graph and its compiled form, sums are taken in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
BF16_TOLERANCE = 0.05  # where a product's rounding to 8 bits is among what differs


def check_close(
    what: str, actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float
) -> None:
    """Raise `NotCompilable` unless two lists of tensors agree to `tolerance` of their largest."""
    for a, b in zip(actual, expected, strict=True):
        if b.numel() == 0 or torch.equal(a, b):
            continue
        scale = max(1.0, float(b.abs().max()))
        error = float((a.double() - b.double()).abs().max())
        if not error <= tolerance * scale:
            raise NotCompilable(
                f"{what} of the graph and of the program differ by {error:.3g}: it depends on "
                "something that the graph does not see"
            )


class CompiledStep:
    """One compiled step for arguments of the same shapes.

    Args:
        capture: the record of the bound and its gradients.
        inputs: the tensors among the step's arguments.
        owners: the optimizer of each of the capture's parameters; or None, and the program only
            computes gradients.
        tolerance: of the checks of the compiled program against the graph.

    Raises:
        NotCompilable: when the compiled program does not do what the optimizer's own code does.
    """

    def __init__(
        self,
        capture: Capture,
        inputs: list[Tensor],
        owners: list[GraphOptimizer] | None,
        tolerance: float,
    ) -> None:
        self.capture, self.owners = capture, owners
        self.runs = self.misses = 0
        # One owner for each parameter group: what it says holds for all of the group.
        self._heads = list({id(owner.group): owner for owner in owners or ()}.values())
        self._groups = [owner.group for owner in self._heads]
        # Each group's learning rate and betas, by position; see `_follow_schedule`.
        self._scheduled = [
            [torch.zeros((), dtype=torch.double) for _ in scheduled(group)]
            for group in self._groups
        ]
        self._last = [[math.nan for _ in values] for values in self._scheduled]
        self._follow_schedule()
        entries = [entry for owner in owners or () for entry in owner.state.items()]
        self._steps = [value for key, value in entries if key == "step"]
        moments = [value for key, value in entries if key != "step"]
        # Parameters that have taken as many steps share their bias corrections in the graph.
        self._leaders = _leaders(self._steps)
        # The scalars come last; see `_compile`.
        self._scalars = [*self._steps, *itertools.chain(*self._scheduled)]
        self._tensors = [*capture.tensors, *moments, *self._scalars]
        self._compiled = self._compile(inputs, tolerance)

    def is_current(self) -> bool:
        """Tell whether the optimizer is as it was when the program was made."""
        return all(owner.is_current() for owner in self._heads)

    def in_step(self) -> bool:
        """Tell whether the parameters that had taken as many steps still have."""
        return _leaders(self._steps) == self._leaders

    def __call__(self, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Take the step; return its losses and, without owners, the gradients.

        A step whose loss is not finite, or which read other values than the program was made for,
        changes nothing and returns NaN.
        """
        self._follow_schedule()
        for owner in self._heads:
            owner.note_step()
        with torch.no_grad():
            results = self._compiled(*inputs, *self._tensors)
        return self._parted(results)

    def _parted(self, results: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        num_gradients = 0 if self.owners else len(self.capture.parameters)
        num_losses = len(results) - num_gradients
        return list(results[:num_losses]), list(results[num_losses:])

    def _follow_schedule(self) -> None:
        for group, tensors, last in zip(self._groups, self._scheduled, self._last, strict=True):
            for i, value in enumerate(scheduled(group)):
                if isinstance(value, Tensor):
                    tensors[i].copy_(value.detach().squeeze())
                elif value != last[i]:
                    tensors[i].fill_(value)
                    last[i] = value

    def _compile(self, inputs: list[Tensor], tolerance: float) -> Callable[..., Any]:
        flat = [*inputs, *self._tensors]
        graph = functional(self._step, [same_strides(tensor) for tensor in flat])
        share_scalars(graph, range(len(flat) - len(self._scalars), len(flat)))
        compiled = compile_graph(graph, flat)
        random = torch.get_rng_state()
        outcomes = []
        for run in (self._step_without_graph, graph, compiled):
            torch.set_rng_state(random)
            copies = [same_strides(tensor) for tensor in flat]
            with torch.no_grad():
                results = list(run(*copies))
            outcomes.append((results, copies, torch.get_rng_state()))
        (results, state, drawn), *others = outcomes
        for other_results, other_state, other_drawn in others:
            check_close("the losses and gradients", other_results, results, tolerance)
            check_close("the updates", other_state, state, tolerance)
            if not torch.equal(other_drawn, drawn):
                raise NotCompilable("the compiled program draws other random numbers")
        return compiled

    def _stand_ins(self, flat: Sequence[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Split what a graph is called with into arguments and, by identity, other tensors."""
        num_inputs = len(flat) - len(self._tensors)
        return list(flat[:num_inputs]), dict(
            zip(map(id, self._tensors), flat[num_inputs:], strict=True)
        )

    def _step(self, *flat: Tensor) -> list[Tensor]:
        """The whole step on stand-ins for the tensors: this is what the graph records."""
        inputs, old = self._stand_ins(flat)
        new = dict(old)
        for i in self.capture.mutated:
            key = id(self.capture.tensors[i])
            new[key] = old[key].clone()
        tensors = [new[id(tensor)] for tensor in self.capture.tensors]
        losses, guards, gradients = self.capture.graph(*inputs, *tensors)
        valid = torch.stack([torch.isfinite(loss) for loss in losses]).all()
        for value, expected in zip(guards, self.capture.guards, strict=True):
            valid = valid & (value == expected).all()
        if self.owners is not None:
            new |= self._updated(self.owners, gradients, old)
            gradients = []
        for key, value in new.items():
            if value is not old[key]:
                old[key].copy_(torch.where(valid, value, old[key]))
        return [*(torch.where(valid, loss, torch.nan) for loss in losses), *gradients]

    def _updated(
        self, owners: list[GraphOptimizer], gradients: list[Tensor], old: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """Return the parameters and the optimizers' states after the update, by identity."""
        new: dict[int, Tensor] = {}
        values = {
            id(group): [old[id(tensor)] for tensor in tensors]
            for group, tensors in zip(self._groups, self._scheduled, strict=True)
        }
        leader = {
            id(step): self._steps[i] for step, i in zip(self._steps, self._leaders, strict=True)
        }
        with ValueReader() as reader:
            for owner, gradient in zip(owners, gradients, strict=True):
                parameter = old[id(owner.parameter)].clone()
                state = {
                    key: old[id(leader.get(id(value), value))].clone()
                    for key, value in owner.state.items()
                }
                owner.update(parameter, gradient, state, [*values[id(owner.group)]])
                if state.keys() != owner.state.keys():
                    raise NotCompilable("the optimizer has no state for a parameter yet")
                new[id(owner.parameter)] = parameter
                new |= {id(value): state[key] for key, value in owner.state.items()}
        if reader.read:
            raise NotCompilable("the optimizer looks at a tensor's value")
        return new

    def _step_without_graph(self, *flat: Tensor) -> list[Tensor]:
        """The same, with the optimizer's code as it runs without a graph: to check against."""
        inputs, current = self._stand_ins(flat)
        tensors = [current[id(tensor)] for tensor in self.capture.tensors]
        losses, _, gradients = self.capture.graph(*inputs, *tensors)
        if self.owners is None:
            return [*losses, *gradients]
        for owner, gradient in zip(self.owners, gradients, strict=True):
            state = {key: current[id(value)] for key, value in owner.state.items()}
            owner.update(current[id(owner.parameter)], gradient, state, scheduled(owner.group))
        return losses


def _leaders(steps: list[Tensor]) -> list[int]:
    """Return for each step count the position of the first one that is equal."""
    counts = [step.item() for step in steps]
    return [counts.index(count) for count in counts]
