"""A compiled training step: the bound, its gradients and the optimizer's update in one graph.

The update is recorded from torch's code: `optimizer.step` runs during the recording on stand-ins
for the parameters and the optimizer state, so this package contains no update rules. The compiled
step changes the real tensors in place, so `optimizer.state_dict()` is up to date after every step.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae.engine.backward_passes import Operations
from pyro_vae.engine.capture import Capture, same_strides
from pyro_vae.engine.cuda_graph import in_cuda_graph
from pyro_vae.engine.graph_optimizer import GraphOptimizer, optimizer_of, scheduled
from pyro_vae.engine.inductor import compile_graph, functional, share_scalars
from pyro_vae.engine.rounding import rounding_errors
from pyro_vae.engine.tolerances import rounding_unit
from pyro_vae.engine.value_reader import NotCompilable, ValueReader

Written: TypeAlias = list[tuple[Tensor, Tensor]]
BUFFERS = "buffers"
# Entries of a tensor on the CPU that is copied to a GPU in each step; larger ones are data.
LARGEST_SETTING = 1000


class CompiledStep:
    """One compiled step for arguments of the same shapes.

    Args:
        capture: Graph of the bound and its gradients.
        inputs: Tensors among the step's arguments.
        optimizers: Optimizer of each parameter of the capture. If None, the program computes
            gradients and updates nothing.
        tolerance: Relative tolerance of comparisons of the step.

    Raises:
        NotCompilable: If the update cannot be recorded, or the compiler fails.
    """

    def __init__(
        self,
        capture: Capture,
        inputs: list[Tensor],
        optimizers: list[GraphOptimizer] | None,
        tolerance: float,
    ) -> None:
        self.capture, self.optimizers, self._tolerance = capture, optimizers, tolerance
        self.runs = self.misses = 0
        # Clock of the last comparisons of everything and of the bound, the number of steps since
        # the first of these, and the backward passes of the bound in it.
        self.verified_at = self.bound_at = self.unverified = 0
        self.ran_at = 0  # clock of the last step
        self.backward: list[Operations] = []
        # Whether gradients of the program can differ from the derivatives of its loss.
        self.defines_gradients = capture.stops_gradients
        self.largest_loss = 0.0  # of the verified steps
        self.is_suspect = False  # whether the next step is to be compared in everything
        # One optimizer for each parameter group: its hyperparameters hold for the whole group.
        self._heads = list({id(opt.group): opt for opt in optimizers or ()}.values())
        self._groups = [opt.group for opt in self._heads]
        # Learning rate and betas of each group as tensors; `_follow_schedule` fills them.
        self._scheduled = [
            [opt.parameter.new_zeros((), dtype=torch.double) for _ in scheduled(opt.group)]
            for opt in self._heads
        ]
        self._last = [[math.nan for _ in values] for values in self._scheduled]
        self._follow_schedule()
        entries = [entry for opt in optimizers or () for entry in opt.state.items()]
        self._steps = [value for key, value in entries if key == "step"]
        moments = [value for key, value in entries if key != "step"]
        # Parameters with equal step counts share their bias corrections in the graph.
        self._leaders = _leaders(self._steps)
        # `_compile` relies on the scalars being last.
        self._scalars = [*self._steps, *itertools.chain(*self._scheduled)]
        self._tensors = [*capture.tensors, *moments, *self._scalars]
        self._written = {
            id(tensor)
            for tensor in [*capture.parameters, *moments, *self._steps]
            + [capture.tensors[i] for i in capture.mutated]
        }
        # What the program reads: the tensors themselves, and copies on the GPU of the settings that
        # are on the CPU, such as the weight of the KL divergence. `_follow_settings` fills these.
        self._read = [self._on_gpu(tensor) for tensor in self._tensors]
        self._settings = [
            (tensor, copy)
            for tensor, copy in zip(self._tensors, self._read, strict=True)
            if tensor is not copy
        ]
        self._versions: list[int] = []
        self._memory = self._written_memory()
        self._check_memory()
        self._compiled = self._compile(inputs)

    def is_current(self, optim: PyroOptim) -> bool:
        """Return whether the optimizer is the one that the program was compiled for."""
        return all(opt.has_same_group() for opt in self._heads) and all(
            optimizer_of(optim, opt.parameter) is opt.optimizer and opt.has_same_state()
            for opt in self.optimizers or ()
        )

    def in_step(self) -> bool:
        """Return whether parameters with equal step counts still have equal step counts."""
        if [step._version for step in self._steps] == self._versions:
            return True  # nothing but this program has changed them
        return _leaders(self._steps) == self._leaders

    def __call__(self, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Take the step; return its losses and, without optimizers, the gradients.

        If the loss is not finite or a guard has another value, the step changes nothing and
        returns NaN.
        """
        self._follow_schedule()
        self._follow_settings()
        for opt in self._heads:
            opt.note_step()
        with torch.no_grad():
            results = self._compiled(*map(self._apart, inputs), *self._read)
        self._versions = [step._version for step in self._steps]
        return self._split(results)

    def on_copies(self, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Written]:
        """Take the step on copies of the tensors that it changes.

        Returns:
            Losses, gradients if there are no optimizers, and the changed copies as pairs of the
            tensor and its copy. The program itself changes nothing but the random state.
        """
        self._follow_schedule()
        self._follow_settings()
        self._memory = self._written_memory()  # `Tensor.data` can give a parameter other memory
        flat = [same_strides(t) if id(t) in self._written else t for t in self._read]
        with torch.no_grad():
            losses, gradients = self._split(self._compiled(*inputs, *flat))
        changed = zip(self._read, flat, strict=True)
        return losses, gradients, [(t, copy) for t, copy in changed if t is not copy]

    def _written_memory(self) -> set[int]:
        """Return the addresses of the memory that the program changes."""
        return {_memory(tensor) for tensor in self._tensors if id(tensor) in self._written}

    def _check_memory(self) -> None:
        """Raise `NotCompilable` if two tensors share memory, and the step changes one of them.

        The compiler takes them for different: it reorders reads and writes.
        """
        written = [tensor for tensor in self._tensors if id(tensor) in self._written]
        starts = [tensor.data_ptr() for tensor in written if tensor.numel()]
        read = [tensor for tensor in self._tensors if id(tensor) not in self._written]
        if len({*starts}) < len(starts) or any(_memory(t) in self._memory for t in read):
            raise NotCompilable("it reads a tensor that shares memory with one that it changes")

    def _apart(self, value: Tensor) -> Tensor:
        """Return an argument, as a copy if it shares memory that the program changes."""
        return same_strides(value) if _memory(value) in self._memory else value

    def _split(self, results: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        num_gradients = 0 if self.optimizers else len(self.capture.parameters)
        num_losses = len(results) - num_gradients
        return list(results[:num_losses]), list(results[num_losses:])

    def _follow_schedule(self) -> None:
        """Copy the current learning rates and betas into the tensors that the program reads."""
        for group, tensors, last in zip(self._groups, self._scheduled, self._last, strict=True):
            for i, value in enumerate(scheduled(group)):
                if isinstance(value, Tensor):
                    tensors[i].copy_(value.detach().squeeze())
                elif value != last[i]:
                    tensors[i].fill_(value)
                    last[i] = value

    def _on_gpu(self, tensor: Tensor) -> Tensor:
        """Return a copy on the GPU of a setting on the CPU, if all parameters are on one GPU."""
        devices = {parameter.device for parameter in self.capture.parameters}
        is_setting = tensor.numel() <= LARGEST_SETTING and id(tensor) not in self._written
        if tensor.is_cuda or not is_setting or len(devices) != 1:
            return tensor
        (device,) = devices
        return tensor.detach().to(device) if device.type == "cuda" else tensor

    def _follow_settings(self) -> None:
        """Copy the settings that are on the CPU to the GPU, without waiting for it."""
        for tensor, copy in self._settings:
            if tensor.dim():
                # A copy from pinned memory could read it after the next change.
                copy.copy_(tensor, non_blocking=not tensor.is_pinned())
            else:
                copy.fill_(tensor.item())

    def _compile(self, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
        flat = [*inputs, *self._read]
        graph = functional(self._step, [same_strides(tensor) for tensor in flat])
        share_scalars(graph, range(len(flat) - len(self._scalars), len(flat)))
        compiled = compile_graph(graph, flat)
        if self.optimizers is not None and all(tensor.is_cuda for tensor in flat):
            return in_cuda_graph(compiled, inputs, self._read)
        return compiled

    @functools.cached_property
    def state_groups(self) -> dict[str, list[Tensor]]:
        """Optimizer states of the same name, and buffers, which are compared with each other."""
        groups: dict[str, list[Tensor]] = {}
        for opt in self.optimizers or ():
            for key, value in opt.state.items():
                groups.setdefault(f"the optimizer state {key!r}", []).append(value)
        groups[BUFFERS] = [self.capture.tensors[i] for i in self.capture.mutated]
        return groups

    def before(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return the tensors of a step, with copies of those that it changes."""
        written = self._written
        state = [same_strides(t) if id(t) in written else t for t in self._read]
        return [*inputs, *state]

    def without_compiler(self, flat: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Take the step with the graph as it was recorded; return losses and gradients.

        Args:
            flat: Inputs and tensors before the step, as of `before`; changed as by the step.
        """
        with torch.no_grad():
            return self._split(self._step_without_graph(*flat))

    def values_of(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """Return the values of some tensors of the step.

        Args:
            tensors: Tensors that the program reads or changes.
            values: Values of the inputs and all tensors, such as those of `before` or the errors
                of `rounding`. For an empty list, an empty list is returned.
        """
        places = {id(tensor): i for i, tensor in enumerate(self._tensors, -len(self._tensors))}
        return [values[places[id(tensor)]] for tensor in tensors] if values else []

    def rounding(self, flat: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the rounding errors of the results of a step, and of the tensors after it.

        Args:
            flat: Inputs and tensors before the step; not changed.
        """
        trained = {id(parameter) for parameter in self.capture.parameters}
        start = len(flat) - len(self._tensors)
        parameters = [i for i, t in enumerate(self._tensors, start) if id(t) in trained]
        unit = rounding_unit(self._tolerance)
        errors = rounding_errors(self._step_without_graph, flat, parameters, unit)
        num_results = len(errors) - len(flat)
        return errors[:num_results], errors[num_results:]

    def _stand_ins(self, flat: Sequence[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Split the inputs of a graph into arguments and other tensors; map these by identity."""
        num_inputs = len(flat) - len(self._tensors)
        return list(flat[:num_inputs]), dict(
            zip(map(id, self._tensors), flat[num_inputs:], strict=True)
        )

    def _step(self, *flat: Tensor) -> list[Tensor]:
        """Run the whole step on stand-ins for the tensors; the graph records this function."""
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
        # In memory; the compiler would compute a single value again for each weight.
        valid = torch.stack([valid, valid])[0]
        if self.optimizers is not None:
            new |= self._updated(self.optimizers, gradients, old)
            gradients = []
        for key, value in new.items():
            if value is not old[key]:
                old[key].copy_(torch.where(valid, value, old[key]))
        return [*(torch.where(valid, loss, torch.nan) for loss in losses), *gradients]

    def _updated(
        self, optimizers: list[GraphOptimizer], gradients: list[Tensor], old: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """Return parameters and optimizer state after the update, by identity."""
        new: dict[int, Tensor] = {}
        values = {
            id(group): [old[id(tensor)] for tensor in tensors]
            for group, tensors in zip(self._groups, self._scheduled, strict=True)
        }
        leader = {
            id(step): self._steps[i] for step, i in zip(self._steps, self._leaders, strict=True)
        }
        with ValueReader() as reader:
            for opt, gradient in zip(optimizers, gradients, strict=True):
                parameter = old[id(opt.parameter)].clone()
                state = {
                    key: old[id(leader.get(id(value), value))].clone()
                    for key, value in opt.state.items()
                }
                opt.update(parameter, gradient, state, [*values[id(opt.group)]])
                if state.keys() != opt.state.keys():
                    raise NotCompilable("the optimizer has no state for a parameter yet")
                new[id(opt.parameter)] = parameter
                new |= {id(value): state[key] for key, value in opt.state.items()}
        if reader.read:
            raise NotCompilable("the optimizer reads a tensor's value")
        return new

    def _step_without_graph(self, *flat: Tensor) -> list[Tensor]:
        """Run the whole step with the optimizer's code outside a graph, for comparison."""
        inputs, current = self._stand_ins(flat)
        tensors = [current[id(tensor)] for tensor in self.capture.tensors]
        losses, _, gradients = self.capture.graph(*inputs, *tensors)
        if self.optimizers is None:
            return [*losses, *gradients]
        for opt, gradient in zip(self.optimizers, gradients, strict=True):
            state = {key: current[id(value)] for key, value in opt.state.items()}
            opt.update(current[id(opt.parameter)], gradient, state, scheduled(opt.group))
        return losses


def _memory(tensor: Tensor) -> int:
    """Return the address of the memory of a tensor, which all its views share."""
    return tensor.untyped_storage().data_ptr()


def _leaders(steps: list[Tensor]) -> list[int]:
    """Return, for each step count, the position of the first equal step count."""
    counts = [step.item() for step in steps]
    return [counts.index(count) for count in counts]
