"""Linear and convolutional layers in bfloat16, everything else in float32."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class LayersInBFloat16(TorchFunctionMode):
    """Computes linear and convolutional layers in bfloat16 and returns their results in float32.

    With `torch.autocast`, log densities and sums would receive bfloat16 tensors.
    """

    def __torch_function__(
        self,
        func: Callable[..., Tensor],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func not in LAYERS or args[0].dtype is not torch.float32:
            return func(*args, **kwargs)
        narrow = [_narrow(value) for value in args]
        return func(*narrow, **{k: _narrow(v) for k, v in kwargs.items()}).float()


LAYERS = {
    torch.nn.functional.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
}


def _narrow(value: object) -> object:
    return value.bfloat16() if isinstance(value, Tensor) else value
