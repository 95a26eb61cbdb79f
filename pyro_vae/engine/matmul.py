"""Float32 matrix products by oneDNN on processors where it is faster than torch's BLAS."""

import contextlib
import functools
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NotImplementedType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

# Multiplications below which oneDNN does not pay off: a call takes about 12 us to start.
LARGE_PRODUCT = 2**21
# The same with gradients: Python is part of the backward pass and adds about 20 us per layer.
LARGE_LAYER = 2**24


# The first family of AMD processors (Zen 5) that add and multiply 512 bits at a time. Those before
# it that have AVX-512 (Zen 4) need two halves, so that oneDNN gains nothing over AVX2.
FIRST_FULL_WIDTH_FAMILY = 26


@functools.cache
def has_half_speed_blas() -> bool:
    """Return whether torch's BLAS runs at half the speed of oneDNN on this processor.

    MKL's float32 products use AVX-512 on Intel processors only. On AMD processors with vector units
    of 512 bits, oneDNN takes half the time (107 against 230 GFLOP/s per core). The decision depends
    on the processor, not on a measurement, because a resumed run must continue with the same
    rounding.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # private in torch
        return False
    processor = torch.cpu.get_capabilities()
    is_amd = "AMD" in str(processor.get("cpu_name"))
    return is_amd and bool(processor.get("avx512_f")) and _family() >= FIRST_FULL_WIDTH_FAMILY


def _family() -> int:
    """Return the processor's family: 25 for Zen 3 and Zen 4, 26 for Zen 5; 0 if it is not known."""
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        described = platform.processor()  # on Windows: "AMD64 Family 26 Model 68 Stepping 0, ..."
    found = re.search(r"\bfamily\s*:?\s*(\d+)", described, re.IGNORECASE)
    return int(found[1]) if found else 0


def _onednn_product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    if a.dtype != torch.float32:  # a graph that is repeated in double precision
        return a @ b if bias is None else a @ b + bias
    return torch.ops.mkldnn._linear_pointwise.default(a, b.t(), bias, "none", [], "")


def _product_shape(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(len(a), b.shape[1])


# TorchInductor uses oneDNN for constant weights only. It calls a custom operation as it is.
_library = torch.library.Library("pyro_vae", "DEF")
_library.define("product(Tensor a, Tensor b, Tensor? bias) -> Tensor")
_library.impl("product", _onednn_product, "CPU")
_library.impl("product", _product_shape, "Meta")


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor | NotImplementedType:
    """Return a @ b + bias of matrices without gradients; `NotImplemented` if torch is as fast."""
    if len(a) * b.numel() < LARGE_PRODUCT or not is_faster(a, b):
        return NotImplemented
    return torch.ops.pyro_vae.product(a, b, bias)


def is_faster(a: Tensor, b: Tensor) -> bool:
    """Return whether oneDNN can multiply these matrices and is faster than torch's BLAS."""
    suited = a.dtype == b.dtype == torch.float32 and a.device.type == "cpu"
    # The operation supports neither function transforms, such as vmap, nor autocast.
    others = torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled("cpu")
    return suited and not others and has_half_speed_blas()


@contextlib.contextmanager
def fast_layers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Compute the linear layers among the modules by `product` inside the context.

    With gradients, only large layers are affected. The context patches the modules: a function mode
    would intercept every other operation too, at a cost of 0.4 ms per training step.
    """
    linear = (m for m in modules if isinstance(m, nn.Linear))
    plain = (m for m in linear if type(m).forward is nn.Linear.forward)
    taken = [m for m in plain if "forward" not in vars(m)] if has_half_speed_blas() else []
    for layer in taken:
        vars(layer)["forward"] = functools.partial(_forward, layer)
    try:
        yield
    finally:
        for layer in taken:
            del vars(layer)["forward"]


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias  # read once: a `PyroModule` may sample them
    result: Tensor | NotImplementedType = NotImplemented
    if not isinstance(x, Tensor):
        pass  # torch's error names the argument
    elif not torch.is_grad_enabled() and x.dim() > 1:
        result = product(_as_matrix(x), weight.t(), bias)
    elif x.numel() * len(weight) >= LARGE_LAYER and x.dim() > 1 and is_faster(x, weight):
        result = _Linear.apply(_as_matrix(x), weight, bias)
    if result is NotImplemented:
        return nn.functional.linear(x, weight, bias)
    return result if x.dim() == 2 else result.unflatten(0, x.shape[:-1])


def _as_matrix(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.flatten(0, -2)


class _BackwardContext(Protocol):
    """The attributes of a backward context that `_Linear` reads; torch types them as 1-tuples."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _Linear(torch.autograd.Function):
    """Computes x @ weight^T + bias and its gradients by `product`."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.pyro_vae.product(x, weight.t(), bias)

    @staticmethod
    def backward(ctx: _BackwardContext, gradient: Tensor) -> tuple[Tensor | None, ...]:
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
