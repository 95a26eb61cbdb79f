"""Tensor to tensor: the networks inside the parts. They have weights and know no probability.

A network maps an array of shape `(*batch, *in_shape)` to one of shape `(*batch, *out_shape)`, for
any number of leading batch dimensions: it flattens them before its layers and restores them after,
so that Pyro may put plates and particles on the left as it likes.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_vae.parts import Part

Shape = int | Sequence[int]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activation_named(name: str) -> nn.Module:
    """Build the activation called `name`; raise `ValueError` naming those there are."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown; choose one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def shape_of(shape: Shape) -> tuple[int, ...]:
    """Turn a size or a sequence of sizes into a tuple; raise `ValueError` below 1."""
    sizes = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"a network's shape needs sizes of at least 1, got {shape!r}")
    return sizes


class MLP(Part):
    """Fully connected layers, as in Appendix C of Kingma & Welling (2013).

    Maps `(*batch, *in_shape)` to `(*batch, *out_shape)`. With `hidden=[500]` and tanh it is the
    paper's network; `hidden=[]` makes it linear.

    Args:
        in_shape: event shape of the input, an integer or a tuple.
        hidden: sizes of the hidden layers.
        out_shape: event shape of the output.
        activation: name of the nonlinearity between layers (a key of `ACTIVATIONS`).
        output_bias: starting value of the last layer's bias, of shape `out_shape`: a decoder that
            starts at the data's mean is spared the first epochs.

    Raises:
        ValueError: for a size below 1, an unknown activation, or an `output_bias` of another shape.
    """

    def __init__(
        self,
        in_shape: Shape,
        hidden: Sequence[int],
        out_shape: Shape,
        activation: str = "tanh",
        output_bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = shape_of(in_shape), shape_of(out_shape)
        sizes = [math.prod(self.in_shape), *(shape_of(hidden) if hidden else ())]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation_named(activation)]
        output = nn.Linear(sizes[-1], math.prod(self.out_shape))
        self.layers = nn.Sequential(*layers, output)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                # Glorot & Bengio (2010): keeps the variance of activations and gradients alike,
                # which torch's default (a third of it) does not for tanh.
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        if output_bias is not None:
            if output_bias.shape != torch.Size(self.out_shape):
                raise ValueError(
                    f"output_bias has shape {tuple(output_bias.shape)}, but the network's output "
                    f"has shape {self.out_shape}"
                )
            with torch.no_grad():
                output.bias.copy_(output_bias.flatten())

    def forward(self, values: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)` to `(*batch, *out_shape)`."""
        batch = batch_shape(values, self.in_shape)
        return self.layers(values.reshape(-1, math.prod(self.in_shape))).reshape(
            *batch, *self.out_shape
        )


def batch_shape(values: Tensor, event_shape: tuple[int, ...]) -> torch.Size:
    """Return the leading dimensions of `values`, whose last ones must be `event_shape`."""
    if tuple(values.shape[-len(event_shape) :]) != event_shape:
        raise ValueError(
            f"the network takes inputs of shape (*batch, {', '.join(map(str, event_shape))}), "
            f"got {tuple(values.shape)}"
        )
    return values.shape[: -len(event_shape)]
