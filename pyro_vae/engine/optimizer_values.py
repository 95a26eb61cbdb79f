"""Values of an optimizer beside the states of its parameters: settings of groups, attributes.

Optimizers such as `pyro.optim.clipped_adam.ClippedAdam` change a setting in each step; others count
their steps in a setting or an attribute. These values are part of the state of a run.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

Settings: TypeAlias = dict[str, object]

ATOMS = (int, float, bool, str, type(None))
LARGEST = 1000  # entries of a tensor among settings and attributes; larger ones are data
PARAMETERS = ("params", "param_names")


def settings_of(group: Mapping[str, object]) -> Settings:
    """Copy the hyperparameters of a parameter group. A learning rate may be a tensor."""
    return {key: _copied(value) for key, value in group.items() if key not in PARAMETERS}


def attributes_of(optimizer: Optimizer) -> Settings:
    """Copy the numbers, strings and small tensors among the attributes of a user's optimizer."""
    return {
        name: _copied(value)
        for name, value in vars(optimizer).items()
        if name not in _of_torch() and _is_value(value)
    }


@functools.cache
def _of_torch() -> set[str]:
    """Return the attributes of any optimizer of torch, with those that schedulers add."""
    # Not when the module is imported: the first optimizer loads torch's compiler.
    return {*vars(torch.optim.SGD([torch.zeros(1)])), "step", "_opt_called"}


def set_values(target: dict[str, object], values: Mapping[str, object]) -> None:
    """Set entries of a group or of the attributes of an optimizer; tensors in-place."""
    for key, value in values.items():
        current = target.get(key)
        if isinstance(value, Tensor) and isinstance(current, Tensor):
            current.copy_(value)
        else:
            target[key] = value


class SelfChanges:
    """The settings and attributes that an optimizer changes in its own steps.

    Changes by schedules, hooks and other code between two steps do not count.

    Attributes:
        settings: Names of settings of parameter groups.
        attributes: Names of attributes.
        first: Settings of each parameter group before its first step.
    """

    def __init__(self) -> None:
        self.first: list[Settings] = []
        self.settings: set[str] = set()
        self.attributes: set[str] = set()

    @contextlib.contextmanager
    def noted(self, optimizer: Optimizer) -> Iterator[None]:
        """Note the changes in a step of the optimizer.

        The hooks of the user do not count: values are compared before the first hook, and read
        again after the last one. A step that calls that of its base class has hooks inside. The
        optimizers of torch change nothing but parameters and their states.
        """
        self.first += map(settings_of, optimizer.param_groups[len(self.first) :])
        if type(optimizer).__module__.startswith("torch.optim."):
            yield
            return
        known: list[tuple[list[Settings], Settings]] = []

        def read(*_: object) -> None:
            known[:] = [_values_of(optimizer)]

        def compare(*_: object) -> None:
            groups, attributes = _values_of(optimizer)
            for old_groups, old_attributes in known:
                for old, new in zip(old_groups, groups, strict=False):
                    self.settings |= _changed(old, new)
                self.attributes |= _changed(old_attributes, attributes)

        if not hasattr(type(optimizer).step, "hooked"):
            # A wrapper of another optimizer, such as Lookahead, may not call torch's constructor,
            # which makes the step call hooks.
            read()
            yield
            compare()
            return
        first = [
            optimizer.register_step_pre_hook(compare),
            optimizer.register_step_post_hook(compare),
        ]
        last = [optimizer.register_step_pre_hook(read), optimizer.register_step_post_hook(read)]
        order: Any = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        for hooks, handle in zip(order, first, strict=True):
            hooks.move_to_end(handle.id, last=False)
        try:
            yield
        finally:
            for handle in (*first, *last):
                handle.remove()


def _values_of(optimizer: Optimizer) -> tuple[list[Settings], Settings]:
    return [*map(settings_of, optimizer.param_groups)], attributes_of(optimizer)


def _changed(old: Settings, new: Settings) -> set[str]:
    return {
        key for key in {**old, **new} if key not in old or not _same(old[key], new.get(key))
    } & new.keys()


def _same(a: object, b: object) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    plain = isinstance(a, (*ATOMS, list, tuple, dict))
    return plain and type(a) is type(b) and repr(a) == repr(b)


def _is_value(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() <= LARGEST and not value.requires_grad
    return isinstance(value, ATOMS)


def _copied(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() <= LARGEST else value
    return value.copy() if isinstance(value, list | dict) else value
