"""`ValueReader`: what a program that is recorded reads from its tensors."""

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from pyro_vae.engine.backward_passes import DATA, STOPS, is_called_by_user

READS = {
    Tensor.item,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.is_nonzero,
    torch.is_nonzero,
}
UNTRACEABLE = {Tensor.numpy, Tensor.tolist, Tensor.__array__, torch.allclose, Tensor.allclose}
SCALED: dict[object, Callable[..., Tensor]] = {
    Tensor.add_: lambda other: other,
    Tensor.addcdiv_: torch.div,
    Tensor.addcmul_: torch.mul,
}


class NotCompilable(Exception):  # noqa: N818 - a result of the checks, not a failure
    """The function cannot be replaced by one graph; the message completes "because ..."."""


class ValueReader(TorchFunctionMode):
    """Returns the values of tensors to a program that is being traced, and records the reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[Tensor, bool | float]] = []
        self.valid: list[Tensor] = []  # results of torch's validation, all true
        self.stops_gradients = False
        self._selected: dict[int, Selection] = {}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: Any = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in STOPS and is_called_by_user(sys._getframe(1)):
            self.stops_gradients = True
        if func is Tensor.item and args[0].is_floating_point():
            # A float that enters sums stays a tensor, in double precision like a Python float.
            return args[0].detach().double()
        if func in READS:
            with _disable_current_modes():
                value = func(*args, **kwargs)
            if (checked := _validated(sys._getframe(1))) is not None:
                if value and checked:
                    self.valid.append(args[0].detach())
            else:
                self.read.append((args[0].detach(), value))
            return value
        if func in (torch.equal, Tensor.equal):
            same_shape = args[0].shape == args[1].shape
            return same_shape and bool((args[0] == args[1]).all())
        if func in UNTRACEABLE:
            raise NotCompilable(f"it reads tensor values into Python by {func.__name__}()")
        if kwargs.get("generator") is not None:
            raise NotCompilable("it passes its own random generator to torch")
        if func is Tensor.register_hook:
            if is_called_by_user(sys._getframe(1)):
                raise NotCompilable("it registers a hook on a gradient, which can do anything")
            # It is called in the backward pass, outside this mode.
            return func(args[0], lambda gradient: self._run(args[1], gradient))
        if func is DATA:
            return args[0].detach()
        # `a[mask] = b[mask]`, as in Pyro's splines, is recorded as `torch.where`: the size of
        # `b[mask]` depends on the data. If `b[mask]` is used elsewhere too, it stays in the graph
        # and `_record` refuses it.
        if func is Tensor.__getitem__ and _is_mask(args[1], args[0]):
            part = func(*args)
            self._selected[id(part)] = Selection(part, *args)
            return part
        if func is Tensor.__setitem__ and id(args[2]) in self._selected:
            selection = self._selected[id(args[2])]
            if selection.fits(*args[:2]):
                args[0].copy_(torch.where(args[1], selection.source, args[0]))
                return None
        # Optimizers pass the learning rate as `alpha` or `value`. Here it is a tensor, which the
        # operations do not accept.
        scale = kwargs.get("alpha", kwargs.get("value"))
        if func in SCALED and isinstance(scale, Tensor):
            return args[0].add_(scale * SCALED[func](*args[1:]))
        if func is Tensor.lerp_ and isinstance(args[2], Tensor):
            return args[0].lerp_(args[1], args[2].to(args[0].dtype))
        return func(*args, **kwargs)

    def _run(self, hook: Callable[[Tensor], object], gradient: Tensor) -> object:
        with self:
            return hook(gradient)


class Selection:
    """A selection by a mask: `part = source[mask]`."""

    def __init__(self, part: Tensor, source: Tensor, mask: Tensor) -> None:
        self.part, self.source, self.mask = part, source, mask
        self._versions = self._current_versions()

    def fits(self, target: Tensor, mask: Tensor) -> bool:
        """Return whether `target[mask] = part` equals a `torch.where` on the unchanged source."""
        same = mask is self.mask and target.shape == self.source.shape
        return same and self._versions == self._current_versions()

    def _current_versions(self) -> tuple[int, ...]:
        return self.part._version, self.source._version, self.mask._version


def _is_mask(index: object, tensor: Tensor) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.shape == tensor.shape


def _validated(frame: FrameType) -> bool | None:
    """Return whether a read by torch's validation is to be repeated; None for other reads.

    The values of latent variables have gradients, or are drawn in their support.
    """
    if frame.f_code is Distribution.__init__.__code__:
        return True
    if frame.f_code is not Distribution._validate_sample.__code__:
        return None
    return not frame.f_locals["value"].requires_grad
