"""A network with a second input, for conditional models."""

import math

import torch
from torch import Tensor

from pyro_vae.arguments import ArgumentError
from pyro_vae.networks.layers import Module, Shape, batch_shape, shape_of
from pyro_vae.part import Part


class WithContext(Part):
    """A network of values and their context y: it appends y to the values.

    Maps values `(*batch, *in_shape)` and y `(*batch, context_size)` to `(*batch, *out_shape)`. If
    the network takes vectors, the values are flattened and y follows them. If it takes images, each
    number of y is a further channel, the same in all pixels. y may lack dimensions of the batch on
    the left.

    Args:
        network: Network with an in_shape of `(prod(in_shape) + context_size,)`, or of
            `(channels + context_size, height, width)` for an `in_shape` of three sizes.
        in_shape: Event shape of the values.

    Raises:
        ValueError: If the network has another in_shape.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import MLP, WithContext
        >>> network = WithContext(MLP(3 + 2, [8], 4), in_shape=3)
        >>> network(torch.zeros(10, 3), torch.ones(10, 2)).shape
        torch.Size([10, 4])

    See also: `pyro_vae.ConditionalVAE`, `WithMask`.
    """

    def __init__(self, network: Module, in_shape: Shape) -> None:
        super().__init__()
        self.in_shape = shape_of(in_shape)
        first, *rest = getattr(network, "in_shape", (0,))
        self.is_flat = not rest
        self.context_size = first - (math.prod(self.in_shape) if self.is_flat else self.in_shape[0])
        if self.context_size < 1 or not (self.is_flat or tuple(rest) == self.in_shape[1:]):
            raise ArgumentError(
                f"network must take values of shape {self.in_shape} and at least one number of y: "
                f"expected an in_shape of ({math.prod(self.in_shape)} + context_size,) or "
                f"({self.in_shape[0]} + context_size, *{self.in_shape[1:]}), got "
                f"{getattr(network, 'in_shape', None)}"
            )
        self.network = network
        if hasattr(network, "out_shape"):
            self.out_shape = network.out_shape

    def forward(self, values: Tensor, *context: Tensor) -> Tensor:
        """Map values and y, the only context, to `(*batch, *out_shape)`."""
        batch = batch_shape(values, self.in_shape)
        if len(context) != 1:
            raise ArgumentError(
                f"WithContext takes values and y, got {len(context)} tensors after the values: use "
                "it in the parts of a pyro_vae.ConditionalVAE"
            )
        (y,) = context
        if y.shape[-1:] != (self.context_size,) or not y.is_floating_point():
            raise ArgumentError(
                f"y must be floats of shape (*batch, {self.context_size}), got {y.dtype} of shape "
                f"{tuple(y.shape)}: convert classes by torch.nn.functional.one_hot(y, "
                f"{self.context_size}).float()"
            )
        y = y.to(values.dtype)
        if self.is_flat:
            flat = values.reshape(*batch, -1)
            return self.network(torch.cat([flat, y.expand(*batch, -1)], dim=-1))
        size = self.in_shape[1:]
        planes = y[(..., *(None,) * len(size))].expand(*batch, -1, *size)
        return self.network(torch.cat([values, planes], dim=len(batch)))
