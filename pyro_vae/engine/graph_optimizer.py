"""Record the optimizer's update as part of a compiled graph."""

import inspect
import operator
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pyro.optim import PyroOptim
from pyro.optim.optim import is_scheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from pyro_vae.engine.torch_optim import TorchOptim
from pyro_vae.engine.value_reader import NotCompilable

# Hyperparameters that schedules change. Optimizers accept tensors for them, so they are inputs of
# the graph.
SCHEDULED = ("lr", "betas")


def scheduled(group: dict[str, Any]) -> list[float | Tensor]:
    """Return the hyperparameters of a parameter group that a graph takes as inputs."""
    return [group["lr"], *group.get("betas", ())]


class GraphOptimizer:
    """The optimizer of one parameter: its state, its fixed and its scheduled hyperparameters.

    Args:
        optimizer: Torch optimizer that updates the parameter.
        parameter: Parameter in one of the optimizer's groups.

    Raises:
        NotCompilable: If the optimizer has no such parameter.
    """

    def __init__(self, optimizer: Optimizer, parameter: Tensor) -> None:
        self.optimizer, self.parameter = optimizer, parameter
        groups = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
        if not groups:
            raise NotCompilable("it uses a parameter that the optimizer does not have")
        self.group: dict[str, Any] = groups[0]
        self.state: dict[str, Tensor] = optimizer.state.get(parameter, {})
        self._members = list(self.group["params"])
        self._all_states, self._entries = optimizer.state, dict(self.state)
        self._code, self._fixed = _code(optimizer), self._hyperparameters()

    def _hyperparameters(self) -> dict[str, object]:
        others = ("params", "initial_lr", *SCHEDULED)
        return {key: value for key, value in self.group.items() if key not in others}

    def has_same_group(self) -> bool:
        """Return whether code, parameter group and fixed hyperparameters are unchanged."""
        members = self.group["params"]
        return (
            self.optimizer.state is self._all_states
            and any(group is self.group for group in self.optimizer.param_groups)
            and len(members) == len(self._members)
            and all(map(operator.is_, members, self._members))
            and _code(self.optimizer) == self._code
            and not _hooks(self.optimizer)
            and self._hyperparameters() == self._fixed
        )

    def has_same_state(self) -> bool:
        """Return whether the optimizer state of the parameter consists of the same tensors."""
        state = self._all_states.get(self.parameter)
        return (
            (state is self.state or (state is None and not self._entries))
            and len(self.state) == len(self._entries)
            and all(map(operator.is_, map(self.state.get, self._entries), self._entries.values()))
        )

    def note_step(self) -> None:
        """Mark the optimizer as stepped; otherwise schedulers warn about the order of calls."""
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def traceable(self) -> bool:
        """Return whether the update is torch's code on tensors alone, without side effects."""
        step = vars(self.optimizer).get("step")
        return (
            type(self.optimizer).__module__.startswith("torch.optim.")
            and not _hooks(self.optimizer)
            # Schedulers wrap the method of the object to count its calls.
            and (step is None or hasattr(step, "_wrapped_by_lr_sched"))
            and all(isinstance(value, Tensor) for value in self.state.values())
            # A step count on the CPU would be copied from the GPU in every step.
            and all(value.device == self.parameter.device for value in self.state.values())
        )

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        values: list[float | Tensor],
    ) -> None:
        """Run the optimizer's code on stand-ins; the optimizer itself does not change.

        Args:
            parameter: Stand-in for the parameter, changed in place.
            gradient: Gradient of the parameter.
            state: Stand-ins for the optimizer state of the parameter, changed in place.
            values: Values of the hyperparameters that `scheduled` returns.
        """
        stand_in = object.__new__(type(self.optimizer))
        stand_in.__dict__.update(self.optimizer.__dict__)
        parameter.grad = gradient
        plain = {"foreach": False, "fused": False, "capturable": False}
        rate, *betas = values
        now = {"params": [parameter], "lr": rate} | ({"betas": tuple(betas)} if betas else {})
        stand_in.param_groups = [{**self.group, **plain, **now}]
        stand_in.state = defaultdict(dict, {parameter: state})
        inspect.unwrap(type(self.optimizer).step)(stand_in)  # without the profiler's wrapper
        parameter.grad = None


def _code(optimizer: Optimizer) -> tuple[object, object]:
    return type(optimizer).step, vars(optimizer).get("step")


def _hooks(optimizer: Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def optimizer_of(optim: PyroOptim, parameter: Tensor) -> Optimizer | None:
    """Return the torch optimizer of a parameter, if the update is this optimizer's step."""
    optimizer: Any
    if isinstance(optim, TorchOptim):
        optimizer = optim.optimizer
    elif type(optim).__call__ is PyroOptim.__call__ and not optim.grad_clip.get(parameter):
        optimizer = optim.optim_objs.get(parameter)
        optimizer = optimizer.optimizer if is_scheduler(optimizer) else optimizer
    else:
        return None
    return optimizer


def graph_optimizers(optim: PyroOptim, trained: Iterable[Tensor]) -> list[GraphOptimizer] | None:
    """Return the optimizer of each parameter; None if an update cannot be part of a graph."""
    optimizers = []
    for parameter in trained:
        optimizer = optimizer_of(optim, parameter)
        if optimizer is None:
            return None
        candidate = GraphOptimizer(optimizer, parameter)
        if not candidate.traceable():
            return None
        optimizers.append(candidate)
    return optimizers
