"""Backward passes of a program: their operations, and whether they follow from the loss.

Two programs with the same loss have the same gradients, if gradients are derivatives of the loss.
A program that detaches tensors, runs parts without gradients, registers hooks or defines an
`autograd.Function` can have other gradients. Then losses alone do not show a change.
"""

import contextlib
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

Operations = tuple[tuple[object, ...], ...]
HOOK: Operations = (("hook",),)  # registered on a tensor

DATA = Tensor.data.__get__  # type: ignore[attr-defined]
# Functions with which a program makes its gradients differ from the derivatives of its loss.
STOPS = {
    Tensor.detach,
    Tensor.detach_,
    torch.detach,
    DATA,
    Tensor.register_hook,
    torch._C._set_grad_enabled,
}
# Libraries in which these functions do not depend on settings of the user.
TRUSTED = ("torch", "pyro_vae")
GRAD_MODES = ("torch.autograd.grad_mode", "torch.utils._contextlib")  # the code of `no_grad`

_PATCHED = threading.RLock()  # held while methods of `Tensor` are patched


def is_trusted(module: str) -> bool:
    """Return whether a module belongs to a library that is trusted."""
    return module.partition(".")[0] in TRUSTED


def is_called_by_user(frame: FrameType | None) -> bool:
    """Return whether code outside the trusted libraries calls a function of `STOPS`.

    Args:
        frame: Frame of the caller.
    """
    while frame is not None and frame.f_globals.get("__name__") in GRAD_MODES:
        frame = frame.f_back
    return frame is not None and not is_trusted(frame.f_globals.get("__name__", ""))


@contextlib.contextmanager
def backward_passes(*, run: bool) -> Iterator[list[Operations]]:
    """Record the backward passes of this thread; yield the operations of each pass.

    A program that detaches a tensor has the same loss and another backward pass. The context
    patches functions of torch: a function mode would intercept every other operation too, at a
    cost of a millisecond.

    Args:
        run: Whether to run the passes, too.
    """
    passes: list[Operations] = []
    thread = threading.get_ident()
    with _PATCHED:
        original, register = torch.autograd.backward, Tensor.register_hook

        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:  # `Tensor.backward` calls it
            mine = threading.get_ident() == thread
            if mine:
                roots = (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)
                passes.append(_operations(roots))
            if run or not mine:
                original(tensors, *args, **kwargs)

        def register_hook(tensor: Tensor, hook: Any) -> object:
            if threading.get_ident() == thread:
                passes.append(HOOK)
            return register(tensor, hook)

        torch.autograd.backward = backward
        Tensor.register_hook = register_hook  # type: ignore[method-assign]
        try:
            yield passes
        finally:
            torch.autograd.backward = original
            Tensor.register_hook = register  # type: ignore[method-assign]


def _operations(losses: tuple[Any, ...]) -> Operations:
    """Return the operations of the backward pass of losses and their arguments, by position."""
    positions: dict[Any, int] = {}
    queue = [getattr(loss, "grad_fn", None) for loss in losses]
    while queue:
        node = queue.pop()
        if node is not None and node not in positions:
            positions[node] = len(positions)
            queue += [following for following, _ in node.next_functions]
    return tuple(
        (
            id(node.variable) if hasattr(node, "variable") else node.name(),
            *(positions.get(following) for following, _ in node.next_functions),
            _is_custom(node),
        )
        for node in positions
    )


def _is_custom(node: Any) -> bool:
    """Return whether an operation is an `autograd.Function` outside the trusted libraries."""
    return isinstance(node, BackwardCFunction) and not is_trusted(node._forward_cls.__module__)  # type: ignore[attr-defined]


def has_custom_functions(passes: list[Operations]) -> bool:
    """Return whether an `autograd.Function` of the user is part of a backward pass."""
    return any(operation[-1] is True for operations in passes for operation in operations)
