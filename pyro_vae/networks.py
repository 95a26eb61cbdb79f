"""Tensor to tensor: the networks inside the parts. They have weights and know no probability.

A network maps an array of shape `(*batch, *in_shape)` to one of shape `(*batch, *out_shape)`, for
any number of leading batch dimensions: it flattens them before its layers and restores them after,
so that Pyro may put plates and particles on the left as it likes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.part import Part

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


def image_shape_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Turn `(channels, height, width)` into a tuple; raise `ValueError` for another shape."""
    sizes = shape_of(shape)
    if len(sizes) != 3:
        raise ValueError(f"an image's shape is (channels, height, width), got {shape!r}")
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
        initialize(self)
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


class ConvEncoder(Part):
    """Residual convolutions over an image, each level of half the height and width of the last.

    Maps images `(*batch, channels, height, width)` of any size to `(*batch, *out_shape)`. A level
    is a convolution of stride 2, which rounds odd sizes up, and a residual block (He et al. 2016,
    pre-activation). There is no normalization over the batch: a datum's output is its own, in
    training as in evaluation.

    Args:
        in_shape: `(channels, height, width)` of the images.
        channels: number of channels at each level, from the image inwards.
        out_shape: event shape of the output.
        activation: name of the nonlinearity (a key of `ACTIVATIONS`).

    Raises:
        ValueError: for an `in_shape` that is no image's, no level, a size below 1, or an unknown
            activation.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int],
        out_shape: Shape,
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = image_shape_of(in_shape), shape_of(out_shape)
        sizes = shape_of(channels)
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise([self.in_shape[0], *sizes]):
            layers += [
                nn.Conv2d(inner, outer, 3, stride=2, padding=1),
                _ResidualBlock(outer, activation),
            ]
        height, width = _halved(self.in_shape[1:], len(sizes))[-1]
        head = nn.Linear(sizes[-1] * height * width, math.prod(self.out_shape))
        self.layers = nn.Sequential(*layers, activation_named(activation), nn.Flatten(), head)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)` to `(*batch, *out_shape)`."""
        batch = batch_shape(images, self.in_shape)
        return self.layers(images.reshape(-1, *self.in_shape)).reshape(*batch, *self.out_shape)


class ConvDecoder(Part):
    """The mirror image of `ConvEncoder`: from a vector, level by level, to an image of any size.

    Maps `(*batch, *in_shape)` to images `(*batch, channels, height, width)`. A level is a residual
    block, an enlargement by copying pixels, and a convolution, which leaves no checkerboard as
    transposed convolutions do (Odena et al. 2016).

    Args:
        in_shape: event shape of the input.
        channels: number of channels at each level, from the vector outwards: those of the
            `ConvEncoder` reversed.
        out_shape: `(channels, height, width)` of the images.
        activation: name of the nonlinearity (a key of `ACTIVATIONS`).

    Raises:
        ValueError: for an `out_shape` that is no image's, no level, a size below 1, or an
            unknown activation.
    """

    def __init__(
        self,
        in_shape: Shape,
        channels: Sequence[int],
        out_shape: Sequence[int],
        activation: str = "silu",
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = shape_of(in_shape), image_shape_of(out_shape)
        sizes = shape_of(channels)
        *larger, (height, width) = _halved(self.out_shape[1:], len(sizes))
        layers: list[nn.Module] = [
            nn.Linear(math.prod(self.in_shape), sizes[0] * height * width),
            nn.Unflatten(1, (sizes[0], height, width)),
        ]
        for (inner, outer), size in zip(
            itertools.pairwise([*sizes, self.out_shape[0]]), reversed(larger), strict=True
        ):
            layers += [
                _ResidualBlock(inner, activation),
                activation_named(activation),
                nn.Upsample(size=size),
                nn.Conv2d(inner, outer, 3, padding=1),
            ]
        self.layers = nn.Sequential(*layers)
        initialize(self)

    def forward(self, values: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)` to `(*batch, *out_shape)`."""
        batch = batch_shape(values, self.in_shape)
        flat = values.reshape(-1, math.prod(self.in_shape))
        return self.layers(flat).reshape(*batch, *self.out_shape)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            activation_named(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation_named(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        # The sum of two signals of a size has twice its variance.
        return (features + self.layers(features)) / math.sqrt(2)


def _halved(size: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Return height and width at each level, from the image inwards, odd ones rounded up."""
    height, width = size
    sizes = [(height, width)]
    for _ in range(times):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def initialize(network: nn.Module) -> None:
    """Give a network's layers weights that keep the size of signals, and no bias.

    Linear layers get those of Glorot & Bengio (2010), made for tanh, where torch's default are a
    third of them; convolutions those of He et al. (2015), which put back what rectifiers and their
    smooth relatives take off.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


class WithMask(Part):
    """Tells a network which entries are missing: zeros for NaN, and which entries were observed.

    Maps `(*batch, *in_shape)` to `(*batch, *out_shape)`. The two arrays are stacked along the first
    dimension of the event, as more channels or more units.

    Args:
        network: a network whose in_shape is twice that of x along its first dimension.

    Raises:
        ValueError: when the network has no in_shape, or one whose first size is odd.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        doubled = getattr(network, "in_shape", None)
        if doubled is None or doubled[0] % 2:
            raise ValueError(
                "WithMask takes a network whose in_shape is (2 * event_shape[0], "
                "*event_shape[1:]), for x and for which of it was observed; got a "
                f"{type(network).__name__} with in_shape {doubled}"
            )
        self.network = network
        self.in_shape = (doubled[0] // 2, *doubled[1:])
        self.out_shape = network.out_shape

    def forward(self, values: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)`, with NaN where values are missing."""
        batch = batch_shape(values, self.in_shape)
        missing = values.isnan()
        zeroed = torch.where(missing, torch.zeros_like(values), values)
        return self.network(torch.cat([zeroed, (~missing).to(values.dtype)], dim=len(batch)))


def batch_shape(values: Tensor, event_shape: tuple[int, ...]) -> torch.Size:
    """Return the leading dimensions of `values`, whose last ones must be `event_shape`."""
    if tuple(values.shape[-len(event_shape) :]) != event_shape:
        raise ValueError(
            f"the network takes inputs of shape (*batch, {', '.join(map(str, event_shape))}), "
            f"got {tuple(values.shape)}"
        )
    return values.shape[: -len(event_shape)]
