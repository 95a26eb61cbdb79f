"""Matrix products of float32 by whichever library uses all of the processor."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# oneDNN takes some 12 us to begin: smaller products are done by then.
LARGE_PRODUCT = 2**21
# Where gradients are asked for, a function mode has to earn what it costs, some 0.2 ms a step.
LARGE_LAYER = 2**24


@functools.cache
def has_half_speed_blas() -> bool:
    """Tell whether torch's BLAS leaves half of this processor idle, where oneDNN does not.

    MKL's float32 products use AVX-512 on Intel's processors only: on AMD's, oneDNN takes half the
    time (107 against 230 GFLOP/s of a core). Known from the processor and not measured, since a
    run that is resumed must go on with the same rounding.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # an operation that torch may rename
        return False
    processor = torch.cpu.get_capabilities()
    return bool(processor.get("avx512_f")) and "AMD" in str(processor.get("cpu_name"))


def _onednn_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(a, b.t(), bias, "none", [], "")


def _product_shape(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(len(a), b.shape[1])


# torch's compiler takes oneDNN's product for constant weights only, but any operation of ours.
_library = torch.library.Library("pyro_vae", "DEF")
_library.define("product(Tensor a, Tensor b, Tensor? bias) -> Tensor")
_library.impl("product", _onednn_product, "CPU")
_library.impl("product", _product_shape, "Meta")


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Any:
    """Return a @ b + bias of matrices, without gradients; `NotImplemented` where torch's serves."""
    if len(a) * b.numel() < LARGE_PRODUCT or not serves(a, b):
        return NotImplemented
    return torch.ops.pyro_vae.product(a, b, bias)


def serves(a: Tensor, b: Tensor) -> bool:
    """Tell whether oneDNN is the library to multiply these."""
    suited = a.dtype == b.dtype == torch.float32 and a.device.type == "cpu"
    # Neither vmap and the like nor autocast know such an operation.
    others = torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled("cpu")
    return suited and not others and has_half_speed_blas()


class FastLayers(TorchFunctionMode):
    """Computes linear layers by `product`: large ones only, where gradients are asked for.

    Attributes:
        count: layers so computed that gradients were asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not kwargs and args[0].dim() > 1:
            result = self._linear(*args)
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        if not torch.is_grad_enabled():
            result = product(x.flatten(0, -2), weight.t(), bias)
        elif x.numel() * len(weight) >= LARGE_LAYER and serves(x, weight):
            self.count += 1
            result = _Linear.apply(x.flatten(0, -2), weight, bias)
        else:
            return NotImplemented
        return result if result is NotImplemented else result.unflatten(0, x.shape[:-1])


class _Linear(torch.autograd.Function):
    """x @ weight^T + bias and its gradients, each by `product`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.pyro_vae.product(x, weight.t(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _multiplied(gradient, weight) if of_x else None,
            _multiplied(gradient.t(), x) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    result = NotImplemented if torch.is_grad_enabled() else product(a, b)
    return a @ b if result is NotImplemented else result
