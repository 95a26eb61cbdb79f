"""A torch optimizer behind the interface of Pyro's optimizers."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.engine.optimizer_values import SelfChanges
from pyro_vae.runtime.files import CheckpointError

OptimizerFactory = Callable[[list[Tensor]], Optimizer]

# Optimizers whose update torch computes in one kernel on a CPU if `fused` is True, and parameter by
# parameter by default. The results differ by rounding.
FUSED_ON_CPU = (torch.optim.Adam, torch.optim.AdamW)


class TorchOptim(PyroOptim):
    """One torch optimizer for all parameters; `pyro.optim` keeps one for each, which is slower.

    Args:
        optim: Torch optimizer, or callable that makes one from a list of parameters, such as
            `functools.partial(torch.optim.Adam, lr=1e-3)`. The callable is called after the first
            bound has been computed, when the parameters of the programs are known. Parameters that
            appear later are added as a parameter group.

    Raises:
        ValueError: If the optimizer computes the loss itself, as `torch.optim.LBFGS` does.

    Attributes:
        optimizer: The torch optimizer; None until the callable has made it.
        additions: Lists of parameters that the callable made the optimizer of, and that were added
            to it later.
        changes: Settings and attributes that the optimizer changes in its steps.
        is_restored: Whether the next step is the first one with a restored state.
    """

    def __init__(self, optim: Optimizer | OptimizerFactory) -> None:
        self.optimizer = _without_closure(optim) if isinstance(optim, Optimizer) else None
        self._factory = None if isinstance(optim, Optimizer) else optim
        self._known: set[Tensor] = set()
        self.additions: list[list[Tensor]] = []
        self.changes = SelfChanges()
        self.is_restored = False

    def __call__(self, params: Iterable[Tensor], *args: object, **kwargs: object) -> None:
        """Update the parameters by their gradients."""
        self.add(params)
        if self.optimizer is None:
            return
        try:
            with self.changes.noted(self.optimizer), _right_kernels(self.optimizer):
                self.optimizer.step()
        except Exception as error:
            if self.is_restored:
                raise CheckpointError(
                    f"{type(self.optimizer).__name__} cannot use its state in the checkpoint: "
                    f"{error}: start again without resume"
                ) from error
            raise
        self.is_restored = False

    def add(self, params: Iterable[Tensor]) -> None:
        """Add parameters that the optimizer does not have yet."""
        if self._factory is None:
            return  # the caller of an existing optimizer chose its parameters
        new = [p for p in dict.fromkeys(params) if p not in self._known]
        if not new:
            return
        self._known.update(new)
        self.additions.append(new)
        if self.optimizer is None:
            self.optimizer = _without_closure(self._factory(new))
        else:
            self.optimizer.add_param_group({"params": new})


def _without_closure(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer; refuse one that computes the loss several times in a step."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"{type(optimizer).__name__} computes the loss several times in each step, by a "
            "closure, but SVI computes it once: expected an optimizer such as torch.optim.Adam"
        )
    return optimizer


@contextlib.contextmanager
def _right_kernels(optimizer: Optimizer) -> Iterator[None]:
    """For one step on a CPU, choose the fused kernel or the plain code for each parameter group.

    The fused kernel is chosen if the caller left the choice open. It reads parameters, gradients
    and states in the order of memory, without a check. If their strides differ, its results are
    wrong, so the plain code is used, also if the caller chose the fused kernel. On a GPU, the
    kernel raises an error then.
    """
    chosen = [(group, group["fused"]) for group in optimizer.param_groups if "fused" in group]
    for group, fused in chosen:
        if fused or (fused is None and type(optimizer) in FUSED_ON_CPU and _is_open(group)):
            group["fused"] = _fused_in_step(fused, list(_used(optimizer, group["params"])))
    try:
        yield
    finally:
        for group, fused in chosen:
            group["fused"] = fused


def _is_open(group: Mapping[str, object]) -> bool:
    """Return whether the caller chose none of the implementations of Adam."""
    return (
        group["foreach"] is None
        and not (group["capturable"] or group["differentiable"])
        and not isinstance(group["lr"], Tensor)
        and torch.get_default_dtype() == torch.float32  # of a new step count
    )


def _used(optimizer: Optimizer, parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield each parameter that has a gradient, with its gradient and its states."""
    for parameter in parameters:
        if parameter.grad is not None:
            states = optimizer.state.get(parameter, {}).values()
            tensors = (parameter, parameter.grad, *states)
            yield [x for x in tensors if isinstance(x, Tensor)]


def _fused_in_step(fused: bool | None, used: list[list[Tensor]]) -> bool | None:
    """Return the setting of one step for what the caller chose, True or None."""
    if not all(parameter.is_cpu for parameter, *_ in used):
        return fused
    if not all(map(_have_one_layout, used)):
        return False if fused else None
    return fused or all(x.dtype is torch.float32 for tensors in used for x in tensors) or None


def _have_one_layout(tensors: list[Tensor]) -> bool:
    """Return whether parameter, gradient and states have the same order in memory, without gaps."""
    if any(x.layout is not torch.strided for x in tensors):
        return False
    if all(x.is_contiguous() for x in tensors):
        return True
    parameter, *others = tensors
    same = [x for x in others if x.shape == parameter.shape]  # a step count has no layout
    return all(x.stride() == parameter.stride() for x in same) and _fills_memory(parameter)


def _fills_memory(x: Tensor) -> bool:
    """Return whether a tensor fills its memory, in any order of its dimensions."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def has_started(optim: PyroOptim) -> bool:
    """Return whether parameters and optimizer state exist, as in a resumed run."""
    if isinstance(optim, TorchOptim):
        return optim.optimizer is not None and bool(optim.optimizer.state)
    return bool(getattr(optim, "optim_objs", None))
