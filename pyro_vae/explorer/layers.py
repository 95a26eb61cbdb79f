"""Networks as lists of layers, for an interpreter outside of Python.

A layer is a dictionary with its operation `"op"`, its settings, and the numbers of its tensors. All
operations take one datum, without batch dimensions: a vector, or channels x height x width. The
interpreter is in `explorer.js`.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder, Standardized, WithContext
from pyro_vae.networks.blocks import Gated, Residual
from pyro_vae.pairs.pair import PairError

Layer: TypeAlias = dict[str, object]
Shape: TypeAlias = tuple[int, ...]


class Layers:
    """The layers of a network and their tensors, in the order of computation.

    Args:
        shape: Shape of the input of the network.

    Attributes:
        shape: Shape of the output of the layers so far.
        tensors: Tensors of the layers, which refer to them by number.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.tensors: list[Tensor] = []

    def of(self, module: object) -> list[Layer]:
        """Return the layers of a module and update `shape`.

        Raises:
            PairError: If the module has no equivalent among the layers.
        """
        export = EXPORTS.get(type(module))
        if export is None or not isinstance(module, nn.Module):
            raise PairError(
                f"the explorer cannot run a {type(module).__name__} in the page; expected a chain "
                f"of {', '.join(sorted({kind.__name__ for kind in EXPORTS} - HIDDEN))}"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise PairError(
                f"the explorer cannot run a {type(module).__name__} with hooks in the page: remove "
                "them, for example by torch.nn.utils.remove_weight_norm"
            )
        return export(self, module)

    def number(self, tensor: Tensor | None) -> int | None:
        """Add a tensor and return its number; None for None."""
        if tensor is None:
            return None
        self.tensors.append(tensor.detach().cpu().float())
        return len(self.tensors) - 1

    def expect(self, module: nn.Module, fits: bool) -> None:
        """Check a condition on the shape of the input of a module.

        Raises:
            PairError: If it does not hold.
        """
        if not fits:
            raise PairError(
                f"the explorer cannot run {module} on an input of shape {self.shape} in the page"
            )


def _linear(layers: Layers, module: nn.Linear) -> list[Layer]:
    layers.expect(module, layers.shape == (module.in_features,))
    layers.shape = (module.out_features,)
    return [_weighted(layers, "linear", module)]


def _weighted(layers: Layers, op: str, module: nn.Module, **settings: object) -> Layer:
    numbers = {name: layers.number(getattr(module, name)) for name in ("weight", "bias")}
    return {"op": op, **numbers, **settings}


def _convolution(layers: Layers, module: nn.Conv2d | nn.ConvTranspose2d) -> list[Layer]:
    transposed = isinstance(module, nn.ConvTranspose2d)
    plain = module.groups == 1 and module.padding_mode == "zeros"
    plain = plain and not isinstance(module.padding, str)
    layers.expect(module, plain and len(layers.shape) == 3)
    layers.expect(module, layers.shape[0] == module.in_channels)
    settings = {name: list(getattr(module, name)) for name in ("stride", "padding", "dilation")}
    sizes = []
    for i, size in enumerate(layers.shape[1:]):
        stride, padding, dilation = (settings[name][i] for name in settings)
        reach = dilation * (module.kernel_size[i] - 1)
        if transposed:
            extra = module.output_padding[i]
            sizes.append((size - 1) * stride - 2 * padding + reach + extra + 1)
        else:
            sizes.append((size + 2 * padding - reach - 1) // stride + 1)
    layers.shape = (module.out_channels, *sizes)
    op = "conv_transpose" if transposed else "conv"
    return [_weighted(layers, op, module, **settings, shape=list(layers.shape))]


def _upsample(layers: Layers, module: nn.Upsample) -> list[Layer]:
    layers.expect(module, module.mode == "nearest" and len(layers.shape) == 3)
    channels, *sides = layers.shape
    given: Any = module.scale_factor if module.size is None else module.size
    pair = given if isinstance(given, tuple) else (given, given)
    layers.expect(module, all(number == int(number) for number in pair))
    if module.size is None:
        pair = tuple(side * factor for side, factor in zip(sides, pair, strict=True))
    layers.shape = (channels, *map(int, pair))
    return [{"op": "upsample", "shape": list(layers.shape)}]


def _unflatten(layers: Layers, module: nn.Unflatten) -> list[Layer]:
    sizes = tuple(module.unflattened_size)
    layers.expect(module, module.dim in (1, -1) and len(layers.shape) == 1)
    layers.expect(module, math.prod(sizes) == layers.shape[0])
    return _reshape(layers, sizes)


def _flatten(layers: Layers, module: nn.Flatten) -> list[Layer]:
    layers.expect(module, module.start_dim == 1 and module.end_dim == -1)
    return _reshape(layers, (math.prod(layers.shape),))


def _reshape(layers: Layers, shape: Shape) -> list[Layer]:
    layers.shape = shape
    return [{"op": "reshape", "shape": list(shape)}]


def _normalized(layers: Layers, module: nn.BatchNorm1d | nn.BatchNorm2d) -> list[Layer]:
    mean, variance = module.running_mean, module.running_var
    layers.expect(module, mean is not None and layers.shape[0] == module.num_features)
    assert mean is not None
    assert variance is not None
    scale = (variance + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight
    shift = -mean * scale if module.bias is None else module.bias - mean * scale
    return [{"op": "affine", "scale": layers.number(scale), "shift": layers.number(shift)}]


def _standardized(layers: Layers, module: Standardized) -> list[Layer]:
    layers.expect(module, len(layers.shape) == 1)
    scale = (1 / module.unit).expand(layers.shape)
    shift = (-module.shift / module.unit).expand(layers.shape)
    affine: Layer = {"op": "affine", "scale": layers.number(scale), "shift": layers.number(shift)}
    return [affine, *layers.of(module.network)]


def _with_context(layers: Layers, module: WithContext) -> list[Layer]:
    # The input of the layers of a ConditionalVAE is z and y, concatenated.
    size = math.prod(module.in_shape) + module.context_size
    layers.expect(module, module.is_flat and layers.shape == (size,))
    return layers.of(module.network)


def _network(layers: Layers, module: MLP | ConvDecoder | ConvEncoder) -> list[Layer]:
    layers.expect(module, math.prod(module.in_shape) == math.prod(layers.shape))
    # MLP and ConvDecoder take vectors.
    taken = module.in_shape if isinstance(module, ConvEncoder) else (math.prod(module.in_shape),)
    before = [] if layers.shape == taken else _reshape(layers, taken)
    inner = layers.of(module.layers)
    after = [] if layers.shape == module.out_shape else _reshape(layers, tuple(module.out_shape))
    return [*before, *inner, *after]


def _chain(layers: Layers, module: nn.Sequential) -> list[Layer]:
    return [layer for inner in module for layer in layers.of(inner)]


def _gated(layers: Layers, module: Gated) -> list[Layer]:
    inner = layers.of(module.layer)
    outputs, *sides = layers.shape
    layers.expect(module, len(layers.shape) == -module.dim and outputs % 2 == 0)
    layers.shape = (outputs // 2, *sides)
    return [*inner, {"op": "glu", "shape": list(layers.shape)}]


def _layer_normalized(layers: Layers, module: nn.LayerNorm) -> list[Layer]:
    layers.expect(module, tuple(module.normalized_shape) == layers.shape)
    return [_weighted(layers, "layer_norm", module, eps=module.eps)]


def _residual(layers: Layers, module: Residual) -> list[Layer]:
    return [{"op": "residual", "layers": layers.of(module.layers), "divisor": math.sqrt(2)}]


def _function(name: str, *settings: str) -> Callable[[Layers, nn.Module], list[Layer]]:
    """Return the export of an elementwise function with some attributes of its module."""

    def export(_: Layers, module: nn.Module) -> list[Layer]:
        return [{"op": name, **{setting: getattr(module, setting) for setting in settings}}]

    return export


def _nothing(_: Layers, __: nn.Module) -> list[Layer]:
    return []


HIDDEN = {"Gated", "Residual"}  # parts of MLP and ConvDecoder

# To support another module, add its export here and its operation in explorer.js.
EXPORTS: dict[type, Callable[[Layers, Any], list[Layer]]] = {
    MLP: _network,
    ConvDecoder: _network,
    ConvEncoder: _network,
    Standardized: _standardized,
    WithContext: _with_context,
    Gated: _gated,
    Residual: _residual,
    nn.Sequential: _chain,
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.Upsample: _upsample,
    nn.Unflatten: _unflatten,
    nn.Flatten: _flatten,
    nn.LayerNorm: _layer_normalized,
    nn.BatchNorm1d: _normalized,
    nn.BatchNorm2d: _normalized,
    nn.ELU: _function("elu", "alpha"),
    nn.GELU: _function("gelu", "approximate"),
    nn.LeakyReLU: _function("leaky_relu", "negative_slope"),
    nn.ReLU: _function("relu"),
    nn.Sigmoid: _function("sigmoid"),
    nn.SiLU: _function("silu"),
    nn.Softplus: _function("softplus", "beta"),
    nn.Tanh: _function("tanh"),
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
    nn.Identity: _nothing,
}
