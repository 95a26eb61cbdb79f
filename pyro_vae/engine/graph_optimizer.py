"""The optimizer's update as part of a compiled graph."""

import inspect
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pyro.optim import PyroOptim
from pyro.optim.optim import is_scheduler
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.engine.capture import NotCompilable
from pyro_vae.engine.torch_optim import TorchOptim

# What schedules change from step to step, and optimizers also take as tensors: inputs of a graph.
SCHEDULED = ("lr", "betas")


def scheduled(group: dict[str, Any]) -> list[float | Tensor]:
    """Return the hyperparameters of a parameter group that a graph takes as inputs."""
    return [group["lr"], *group.get("betas", ())]


class GraphOptimizer:
    """The optimizer of one parameter, and what of it a graph takes as fixed or as an input."""

    def __init__(self, optimizer: Optimizer, parameter: Tensor) -> None:
        self.optimizer, self.parameter = optimizer, parameter
        groups = [g for g in optimizer.param_groups if any(p is parameter for p in g["params"])]
        if not groups:
            raise NotCompilable("a parameter that it uses is not the optimizer's")
        self.group: dict[str, Any] = groups[0]
        self.state: dict[str, Any] = optimizer.state.get(parameter, {})
        self._all_states = optimizer.state
        self._fixed = self._hyperparameters()

    def _hyperparameters(self) -> dict[str, Any]:
        others = ("params", "initial_lr", *SCHEDULED)
        return {key: value for key, value in self.group.items() if key not in others}

    def is_current(self) -> bool:
        """Tell whether state and hyperparameters are still those that a graph was made with."""
        return self.optimizer.state is self._all_states and self._hyperparameters() == self._fixed

    def note_step(self) -> None:
        """Mark the optimizer as stepped, else schedules warn that they go before it."""
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def traceable(self) -> bool:
        """Tell whether torch can run this update on tensors alone, without side effects."""
        hooks = (
            self.optimizer._optimizer_step_pre_hooks,
            self.optimizer._optimizer_step_post_hooks,
        )
        return (
            type(self.optimizer).__module__.startswith("torch.optim.")
            and not any(hooks)
            and all(isinstance(value, Tensor) for value in self.state.values())
        )

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        values: list[float | Tensor],
    ) -> None:
        """Let the optimizer's own code update `parameter` and `state`, its own ones untouched.

        Args:
            parameter: is changed in place.
            gradient: the parameter's.
            state: the optimizer's entries for the parameter; they are changed in place.
            values: the hyperparameters that `scheduled` names.
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


def owners_of(optim: PyroOptim, trained: Iterable[Tensor]) -> list[GraphOptimizer] | None:
    """Return the optimizer of each parameter, or None where one has to update outside a graph."""
    owners = []
    for parameter in trained:
        optimizer: Any
        if isinstance(optim, TorchOptim):
            optimizer = optim.optimizer
        elif type(optim).__call__ is PyroOptim.__call__ and not optim.grad_clip.get(parameter):
            optimizer = optim.optim_objs.get(parameter)
            optimizer = optimizer.optimizer if is_scheduler(optimizer) else optimizer
        else:
            return None
        if optimizer is None:
            return None
        owner = GraphOptimizer(optimizer, parameter)
        if not owner.traceable():
            return None
        owners.append(owner)
    return owners
