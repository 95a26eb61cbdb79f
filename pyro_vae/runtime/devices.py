"""Devices of modules, and their evaluation mode."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Annotated, TypeAlias

import torch
from torch import nn

from pyro_vae.arguments import IsDevice, checked

Device: TypeAlias = Annotated[str | torch.device, IsDevice()]


@contextlib.contextmanager
def evaluating(*callables: object) -> Iterator[None]:
    """Set the modules among `callables` to evaluation mode; restore the mode of each on exit.

    In evaluation mode, BatchNorm does not update its running statistics, and dropout is off.
    """
    were_training = [module for module in _with_children(callables) if module.training]
    for module in were_training:
        module.training = False
    try:
        yield
    finally:
        for module in were_training:
            module.training = True


def _with_children(values: Iterable[object]) -> Iterator[nn.Module]:
    """Yield the modules among some values and in them, each once.

    The time is linear in their number. `nn.Module.modules` passes each module through a generator
    of every level above it, and would visit a module again for each of its parents in `values`.
    """
    left, seen = [value for value in values if isinstance(value, nn.Module)], set[nn.Module]()
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            left.extend(module.children())
            yield module


@checked
def resolve_device(device: Device) -> torch.device:
    """Return a device if it is available.

    Args:
        device: Name of a device, such as `"cuda"` or `"cuda:1"`, or a `torch.device`.

    Returns:
        The device.

    Raises:
        ValueError: If the device is not available.

    Example:
        >>> import pyro_vae as pv
        >>> pv.resolve_device("cpu")
        device(type='cpu')

    See also: `pyro_vae.fit` and its argument `device`.
    """
    return torch.device(device)


def device_of(*callables: object) -> torch.device:
    """Return the device of the first parameter of the modules among `callables`; else the CPU."""
    for fn in callables:
        if isinstance(fn, nn.Module):
            for parameter in fn.parameters():
                return parameter.device
    return torch.device("cpu")


def dtype_of(*callables: object) -> torch.dtype | None:
    """Return the floating-point type of all parameters, or None if it is unknown or not unique."""
    dtypes = set()
    for fn in callables:
        if not isinstance(fn, nn.Module):
            return None  # a function may use any module
        dtypes |= {p.dtype for p in fn.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None
