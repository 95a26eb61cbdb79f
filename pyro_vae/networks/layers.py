"""Neural networks: plain modules that return tensors, not distributions.

A network maps a tensor of shape `(*batch, *in_shape)` to one of shape `(*batch, *out_shape)`. It
accepts any number of leading batch dimensions, for the plates and particles of Pyro: they are
flattened before the layers and restored after them.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from torch import Tensor, nn

from pyro_vae.arguments import ArgumentError, Count, Instance
from pyro_vae.networks.blocks import (
    Activation,
    Block,
    ConvBlock,
    Norm,
    activation_named,
    gated_conv,
    hidden_layers,
    initialize,
    residual_conv,
)
from pyro_vae.part import Part, Role

Shape: TypeAlias = Count | Sequence[Count]
Module: TypeAlias = Annotated[nn.Module, Role("network", ("x",))]
Initial: TypeAlias = Annotated[Tensor, Instance((Tensor,), "a tensor")]


def shape_of(shape: Shape) -> tuple[int, ...]:
    """Convert a size or a sequence of sizes to a tuple; raise `ArgumentError` if it is empty.

    Args:
        shape: Size, or sizes.

    Returns:
        The sizes.

    Raises:
        ArgumentError: If the sequence is empty.

    Example:
        >>> from pyro_vae.networks import shape_of
        >>> shape_of(784), shape_of([1, 28, 28])
        ((784,), (1, 28, 28))

    See also: `MLP`.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if not sizes:
        raise ArgumentError(f"expected a shape with sizes of at least 1, got {shape!r}")
    return sizes


def image_shape_of(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Convert an image shape to a tuple; raise `ArgumentError` if it does not have three sizes."""
    sizes = shape_of(shape)
    if len(sizes) != 3:
        raise ArgumentError(f"expected an image shape (channels, height, width), got {shape!r}")
    return sizes


def check_finite(name: str, values: Tensor) -> None:
    """Check the initial values of a parameter.

    Raises:
        ArgumentError: If a value is NaN or infinite.
    """
    bad = int((~values.isfinite()).sum())
    if bad:
        raise ArgumentError(
            f"{name} has {bad} values that are NaN or infinite: leave missing entries of the data "
            "out of means, and probabilities between 0 and 1, as Dataset.mean() and "
            "Dataset.log_odds() do"
        )


class MLP(Part):
    """Fully connected layers, as in Appendix C of Kingma & Welling (2013).

    Maps `(*batch, *in_shape)` to `(*batch, *out_shape)`. With `hidden=[500]` and tanh it is the
    network of the paper. With `hidden=[]` it is linear.

    Args:
        in_shape: Event shape of the input, an integer or a tuple.
        hidden: Sizes of the hidden layers.
        out_shape: Event shape of the output.
        activation: Name of the activation in dense and residual blocks (a key of `ACTIVATIONS`).
            Gated blocks do not use it.
        output_bias: Initial bias of the last layer, shape `out_shape`. A decoder that starts at the
            mean of the data saves the first epochs.
        block: Kind of a hidden layer. `"dense"` is a linear layer and an activation; `"gated"` is
            h * sigmoid(g) with linear h and g (Dauphin et al. 2017), as in Tomczak & Welling
            (2018); `"residual"` is two linear layers with activations before them and a skip
            connection (He et al. 2016), after a linear layer if the size changes.
        norm: Normalization of the features in each hidden layer: `"layer"`, or `"batch"`. With
            `"batch"`, the output for a datum depends on the other data of its minibatch in
            training, and not in evaluation.

    Raises:
        ValueError: If a size is below 1, a name is unknown, or `output_bias` has another shape or
            is not finite.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import MLP
        >>> MLP((1, 4, 4), [8], 3)(torch.zeros(10, 1, 4, 4)).shape
        torch.Size([10, 3])

    See also: `ConvEncoder`, `ConvDecoder`.
    """

    def __init__(
        self,
        in_shape: Shape,
        hidden: Sequence[Count],
        out_shape: Shape,
        activation: Activation = "tanh",
        output_bias: Initial | None = None,
        block: Block = "dense",
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = shape_of(in_shape), shape_of(out_shape)
        sizes = [math.prod(self.in_shape), *(shape_of(hidden) if hidden else ())]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += hidden_layers(fan_in, fan_out, block, activation, norm)
        if hidden:
            layers += _activated(block, activation)
        output = nn.Linear(sizes[-1], math.prod(self.out_shape))
        self.layers = nn.Sequential(*layers, output)
        initialize(self)
        if output_bias is not None:
            if output_bias.shape != torch.Size(self.out_shape):
                raise ArgumentError(
                    f"output_bias has shape {tuple(output_bias.shape)}; expected {self.out_shape}"
                )
            check_finite("output_bias", output_bias)
            with torch.no_grad():
                output.bias.copy_(output_bias.flatten())

    def forward(self, values: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)` to `(*batch, *out_shape)`."""
        batch = batch_shape(values, self.in_shape)
        return self.layers(values.reshape(-1, math.prod(self.in_shape))).reshape(
            *batch, *self.out_shape
        )


class ConvEncoder(Part):
    """A residual convolutional encoder; each level halves height and width.

    Maps images `(*batch, channels, height, width)` of any size to `(*batch, *out_shape)`. A level
    is a convolution of stride 2, which rounds odd sizes up, and residual blocks (He et al. 2016,
    pre-activation) or gated convolutions. There is no batch normalization: the output for a datum
    does not depend on other data, in training and in evaluation.

    Args:
        in_shape: Shape `(channels, height, width)` of the images.
        channels: Number of channels at each level, from the image inwards.
        out_shape: Event shape of the output.
        activation: Name of the activation in residual blocks (a key of `ACTIVATIONS`). Gated blocks
            do not use it.
        block: Kind of the blocks: `"residual"`, or `"gated"` for convolutions h * sigmoid(g), as in
            Tomczak & Welling (2018).
        num_blocks: Number of blocks in a level.
        stem: Number of channels of a further level at the size of the images, before the
            first level. By default there is none.

    Raises:
        ValueError: If `in_shape` is not an image shape, there is no level, a size is below 1, or a
            name is unknown.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import ConvEncoder
        >>> ConvEncoder((1, 8, 8), [4, 8], 3)(torch.zeros(10, 1, 8, 8)).shape
        torch.Size([10, 3])

    See also: `ConvDecoder`, `MLP`.
    """

    def __init__(
        self,
        in_shape: Shape,
        channels: Sequence[Count],
        out_shape: Shape,
        activation: Activation = "silu",
        block: ConvBlock = "residual",
        num_blocks: Count = 1,
        stem: Count | None = None,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = image_shape_of(in_shape), shape_of(out_shape)
        sizes = shape_of(channels)
        strides = [2] * len(sizes) if stem is None else [1] + [2] * len(sizes)
        chain = [self.in_shape[0], *([] if stem is None else [stem]), *sizes]
        layers: list[nn.Module] = []
        for (inner, outer), stride in zip(itertools.pairwise(chain), strides, strict=True):
            gated = block == "gated"
            conv = gated_conv if gated else functools.partial(nn.Conv2d, kernel_size=3, padding=1)
            layers += [conv(inner, outer, stride=stride)]
            layers += _features(block, activation, num_blocks, outer)
        layers += _activated(block, activation)
        height, width = _halved(self.in_shape[1:], len(sizes))[-1]
        head = nn.Linear(sizes[-1] * height * width, math.prod(self.out_shape))
        self.layers = nn.Sequential(*layers, nn.Flatten(), head)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)` to `(*batch, *out_shape)`."""
        batch = batch_shape(images, self.in_shape)
        return self.layers(images.reshape(-1, *self.in_shape)).reshape(*batch, *self.out_shape)


class ConvDecoder(Part):
    """A residual convolutional decoder, the mirror image of `ConvEncoder`.

    Maps `(*batch, *in_shape)` to images `(*batch, channels, height, width)` of any size. A level is
    some blocks, nearest-neighbour upsampling, and a convolution. In contrast to transposed
    convolutions, this leaves no checkerboard artifacts (Odena et al. 2016).

    Args:
        in_shape: Event shape of the input.
        channels: Number of channels at each level, from the vector outwards: those of the
            `ConvEncoder` reversed.
        out_shape: Shape `(channels, height, width)` of the images.
        activation: Name of the activation in residual blocks (a key of `ACTIVATIONS`). Gated blocks
            do not use it.
        block: Kind of the blocks: `"residual"`, or `"gated"` for convolutions h * sigmoid(g), as in
            Tomczak & Welling (2018).
        num_blocks: Number of blocks in a level.
        stem: Number of channels of a further level at the size of the images, after the
            last level. By default there is none.

    Raises:
        ValueError: If `out_shape` is not an image shape, there is no level, a size is below 1, or a
            name is unknown.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import ConvDecoder
        >>> ConvDecoder(3, [8, 4], (1, 8, 8))(torch.zeros(10, 3)).shape
        torch.Size([10, 1, 8, 8])

    See also: `ConvEncoder`, `MLP`.
    """

    def __init__(
        self,
        in_shape: Shape,
        channels: Sequence[Count],
        out_shape: Shape,
        activation: Activation = "silu",
        block: ConvBlock = "residual",
        num_blocks: Count = 1,
        stem: Count | None = None,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = shape_of(in_shape), image_shape_of(out_shape)
        sizes = shape_of(channels)
        *larger, (height, width) = _halved(self.out_shape[1:], len(sizes))
        layers: list[nn.Module] = [
            nn.Linear(math.prod(self.in_shape), sizes[0] * height * width),
            nn.Unflatten(1, (sizes[0], height, width)),
        ]
        features = functools.partial(_features, block, activation, num_blocks)
        for (inner, outer), size in zip(
            itertools.pairwise([*sizes, stem or self.out_shape[0]]), reversed(larger), strict=True
        ):
            layers += [*features(inner), *_activated(block, activation)]
            layers += [nn.Upsample(size=size), nn.Conv2d(inner, outer, 3, padding=1)]
        if stem is not None:
            layers += [*features(stem), *_activated(block, activation)]
            layers.append(nn.Conv2d(stem, self.out_shape[0], 3, padding=1))
        self.layers = nn.Sequential(*layers)
        initialize(self)

    def forward(self, values: Tensor) -> Tensor:
        """Map `(*batch, *in_shape)` to `(*batch, *out_shape)`."""
        batch = batch_shape(values, self.in_shape)
        flat = values.reshape(-1, math.prod(self.in_shape))
        return self.layers(flat).reshape(*batch, *self.out_shape)


def _features(block: str, activation: str, num_blocks: int, channels: int) -> list[nn.Module]:
    """Return the blocks of a level."""
    if block == "gated":
        return [gated_conv(channels, channels) for _ in range(num_blocks)]
    return [residual_conv(channels, activation) for _ in range(num_blocks)]


def _activated(block: str, activation: str) -> list[nn.Module]:
    """Return the activation after the last residual block; gated blocks have none."""
    return [activation_named(activation)] if block == "residual" else []


def _halved(size: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Return height and width at each level, from the image inwards, with odd sizes rounded up."""
    height, width = size
    sizes = [(height, width)]
    for _ in range(times):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def batch_shape(values: Tensor, event_shape: tuple[int, ...]) -> torch.Size:
    """Return the leading dimensions of `values`; raise `ValueError` if the others do not fit."""
    if tuple(values.shape[-len(event_shape) :]) != event_shape:
        raise ValueError(
            f"the network takes inputs of shape (*batch, {', '.join(map(str, event_shape))}), "
            f"got {tuple(values.shape)}"
        )
    return values.shape[: -len(event_shape)]
