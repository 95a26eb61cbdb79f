"""Layers between two sizes: dense, gated and residual blocks, their norms and initial weights."""

import math
from collections.abc import Callable
from typing import Annotated, TypeAlias

from torch import Tensor, nn
from torch.nn.functional import glu

from pyro_vae.arguments import OneOf

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
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}

Activation: TypeAlias = Annotated[str, OneOf(tuple(ACTIVATIONS))]
Norm: TypeAlias = Annotated[str, OneOf(tuple(NORMS))]
Block: TypeAlias = Annotated[str, OneOf(("dense", "gated", "residual"))]
ConvBlock: TypeAlias = Annotated[str, OneOf(("gated", "residual"))]


def activation_named(name: str) -> nn.Module:
    """Build the activation called `name`, a key of `ACTIVATIONS`."""
    return ACTIVATIONS[name]()


class Gated(nn.Module):
    """h * sigmoid(g): Dauphin et al. (2017), "Gated Convolutional Networks", eq. 1.

    Args:
        layer: Linear layer or convolution. The halves of its outputs are h and g.
        dim: Dimension of the outputs.
    """

    def __init__(self, layer: nn.Module, dim: int = -1) -> None:
        super().__init__()
        self.layer, self.dim = layer, dim

    def forward(self, values: Tensor) -> Tensor:
        """Map values to half as many outputs as the layer has."""
        return glu(self.layer(values), self.dim)


def gated_conv(inner: int, outer: int, stride: int = 1) -> Gated:
    """Build a gated convolution between two numbers of channels."""
    return Gated(nn.Conv2d(inner, 2 * outer, 3, stride=stride, padding=1), dim=-3)


class Residual(nn.Module):
    """(x + f(x)) / sqrt(2), with layers f (He et al. 2016).

    The sum of two signals of equal variance has twice that variance.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Map features to features of the same shape."""
        return (features + self.layers(features)) / math.sqrt(2)


def residual_conv(channels: int, activation: str) -> Residual:
    """Build two convolutions with activations before them, and their skip connection."""
    return Residual(
        activation_named(activation),
        nn.Conv2d(channels, channels, 3, padding=1),
        activation_named(activation),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


def hidden_layers(
    fan_in: int, fan_out: int, block: str, activation: str, norm: str | None
) -> list[nn.Module]:
    """Return the layers of one hidden size of an `MLP`."""

    def normed() -> list[nn.Module]:
        return [] if norm is None else [NORMS[norm](fan_out)]

    if block == "gated":
        return [Gated(nn.Linear(fan_in, 2 * fan_out)), *normed()]
    if block == "dense":
        return [nn.Linear(fan_in, fan_out), *normed(), activation_named(activation)]
    widened = [] if fan_in == fan_out else [nn.Linear(fan_in, fan_out)]
    inner: list[nn.Module] = []
    for _ in range(2):
        inner += [*normed(), activation_named(activation), nn.Linear(fan_out, fan_out)]
    return [*widened, Residual(*inner)]


def initialize(network: nn.Module) -> None:
    """Initialize the layers of a network to preserve the variance of signals, with zero biases.

    Linear layers use Glorot & Bengio (2010), derived for tanh; the default of torch is a third of
    it. Convolutions and gated layers use He et al. (2015), derived for rectifiers.
    """
    gated = {block.layer for block in network.modules() if isinstance(block, Gated)}
    for layer in network.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        if isinstance(layer, nn.Conv2d) or layer in gated:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
