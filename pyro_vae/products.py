"""Matrix products of float32 by whichever library uses all of the processor."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# oneDNN takes some 12 us to begin: smaller products are done by then.
LARGE_PRODUCT = 2**21


@functools.cache
def _has_half_speed_blas() -> bool:
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
    large = len(a) * b.numel() >= LARGE_PRODUCT and a.dtype == b.dtype == torch.float32
    if not (large and a.device.type == "cpu" and _has_half_speed_blas()):
        return NotImplemented
    return torch.ops.pyro_vae.product(a, b, bias)


class FastLayers(TorchFunctionMode):
    """Computes linear layers by `product`, where no gradients are asked for."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not torch.is_grad_enabled() and not kwargs:
            x, weight, *bias = args
            result = product(x.flatten(0, -2), weight.t(), *bias) if x.dim() > 1 else NotImplemented
            if result is not NotImplemented:
                return result.unflatten(0, x.shape[:-1])
        return func(*args, **(kwargs or {}))
