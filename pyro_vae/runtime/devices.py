"""Devices of modules, and their evaluation mode."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(*callables: object) -> Iterator[None]:
    """Set the modules among `callables` to evaluation mode; restore the mode of each on exit.

    In evaluation mode, BatchNorm does not update its running statistics, and dropout is off.
    """
    modules = [module for fn in callables if isinstance(fn, nn.Module) for module in fn.modules()]
    were_training = [module for module in modules if module.training]
    for module in were_training:
        module.training = False
    try:
        yield
    finally:
        for module in were_training:
            module.training = True


def resolve_device(device: str | torch.device) -> torch.device:
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
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        available = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(device)!r} is not available ({reason}); expected one of {available}"
        ) from error
    return resolved


def device_of(*callables: object) -> torch.device:
    """Return the device of the first parameter of the modules among `callables`; else the CPU."""
    for fn in callables:
        if isinstance(fn, nn.Module):
            for parameter in fn.parameters():
                return parameter.device
    return torch.device("cpu")
