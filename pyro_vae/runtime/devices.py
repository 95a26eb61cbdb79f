"""Where modules are, and their evaluation mode."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(*callables: Any) -> Iterator[None]:
    """Put the modules among `callables` into evaluation mode and restore each one's mode after.

    BatchNorm then neither sees nor changes its running statistics, and dropout keeps everything.
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
    """Return the device called `device`; raise `ValueError` when it is not there."""
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {str(device)!r} is not there ({reason}); this machine has {there}"
        ) from error
    return resolved


def device_of(*callables: Any) -> torch.device:
    """Return where the parameters of the modules among `callables` are; the CPU without any."""
    for fn in callables:
        if isinstance(fn, nn.Module):
            for parameter in fn.parameters():
                return parameter.device
    return torch.device("cpu")
