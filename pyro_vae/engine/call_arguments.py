"""Split the arguments of a call into tensors and other values, and join them again."""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.engine.compared_values import ATOMS
from pyro_vae.engine.step import Arguments, Keywords
from pyro_vae.engine.value_reader import NotCompilable

DENSE = (Tensor, nn.Parameter)


def split(args: Arguments, kwargs: Keywords) -> tuple[list[Tensor], Hashable]:
    """Return the tensors among the arguments, and the other arguments as a hashable value.

    Raises:
        NotCompilable: If an argument is anything but a dense tensor, a number, a string, or a
            container of these.
    """
    inputs: list[Tensor] = []
    return inputs, (_fixed(args, inputs), _fixed(kwargs, inputs))


# Not a nested function: a nested recursive function is part of a reference cycle, which would keep
# the batch of each step alive until the garbage collector runs.
def _fixed(value: object, inputs: list[Tensor]) -> Hashable:
    if isinstance(value, Tensor) and _is_dense(value):
        if value.requires_grad and torch.is_grad_enabled():
            raise NotCompilable(
                "an argument requires a gradient: the backward pass continues outside of model and "
                "guide. Detach the argument to compile the step"
            )
        # Compiled code reads memory, in which a lazy conjugate or negative is not computed yet.
        inputs.append(value.resolve_conj().resolve_neg())
        return Tensor
    if isinstance(value, tuple | list):
        return (type(value), *(_fixed(item, inputs) for item in value))
    if isinstance(value, dict):
        return (dict, *((k, _fixed(v, inputs)) for k, v in value.items()))
    if type(value) in ATOMS:
        return (type(value), value)
    kind = type(value).__name__
    if isinstance(value, Tensor) and value.is_inference():
        kind = "Tensor of inference mode"
    elif isinstance(value, Tensor) and value.layout is not torch.strided:
        kind = f"{kind} with layout {value.layout}"
    elif isinstance(value, Tensor) and value.is_nested:
        kind = "nested tensor"
    raise NotCompilable(
        f"an argument is of type {kind}; expected dense tensors, numbers or strings"
    )


def _is_dense(tensor: Tensor) -> bool:
    is_strided = tensor.layout is torch.strided and not tensor.is_nested
    return type(tensor) in DENSE and is_strided and not tensor.is_inference()


def join(args: Arguments, kwargs: Keywords, inputs: Iterable[Tensor]) -> tuple[Arguments, Keywords]:
    """Return the arguments with their tensors replaced by `inputs`."""
    rest = iter(inputs)
    return _replaced(args, rest), _replaced(kwargs, rest)


def _replaced(value: Any, rest: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(rest)
    if isinstance(value, tuple | list):
        items = (_replaced(item, rest) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {k: _replaced(v, rest) for k, v in value.items()}
    return value
