"""The arguments of a call as tensors and the rest, and the random numbers that it will draw."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.engine.capture import NotCompilable
from pyro_vae.engine.guards import ATOMS

DENSE = (Tensor, nn.Parameter)


def split(args: Any, kwargs: Any) -> tuple[list[Tensor], Any]:
    """Return the tensors among the arguments and, hashable, the rest.

    Raises:
        NotCompilable: If an argument is neither a dense tensor nor a Python value that can be
            compared, or a container of such.
    """
    inputs: list[Tensor] = []
    return inputs, (_fixed(args, inputs), _fixed(kwargs, inputs))


# A nested function that calls itself refers to itself: it would keep its tensors, a batch for each
# step, until Python next looks for such circles.
def _fixed(value: Any, inputs: list[Tensor]) -> Any:
    if type(value) in DENSE and value.layout is torch.strided and not value.is_nested:
        inputs.append(value)
        return Tensor
    if isinstance(value, tuple | list):
        return (type(value), *(_fixed(item, inputs) for item in value))
    if isinstance(value, dict):
        return (dict, *((k, _fixed(v, inputs)) for k, v in value.items()))
    if type(value) in ATOMS:
        return (type(value), value)
    kind = value.layout if isinstance(value, Tensor) else type(value).__name__
    raise NotCompilable(f"an argument is of type {kind}; a compiled step takes dense tensors")


def join(args: Any, kwargs: Any, inputs: Iterable[Tensor]) -> tuple[Any, Any]:
    """Return the arguments with other tensors in the places of theirs."""
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
