"""Special functions without cancellation: terms of log densities that are near each other.

A log density such as that of counts is a sum of terms like log Γ(r), which exceed the sum by many
orders of magnitude at large parameters. The functions here subtract the terms in closed form
(Loader 2000, "Fast and accurate computation of binomial probabilities"). They are meant for
float64: a float32 mean exp(y) of 10^6 is already rounded by 1/16.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

Value = Callable[..., Tensor]
Slopes = Callable[..., tuple[Callable[[], Tensor], ...]]

HALF_LOG_2PI = math.log(math.sqrt(2 * math.pi))
LARGEST_EXPONENT = 700.0  # of a finite exp in float64


def in_float64(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in float64, or unchanged on the device mps, which lacks float64."""
    return tuple(x if x.device.type == "mps" else x.double() for x in tensors)


def like(result: Tensor, *inputs: Tensor) -> Tensor:
    """Return a result in the dtype to which torch promotes the inputs."""
    dtype = inputs[0].dtype
    for tensor in inputs[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return result.to(dtype)


def logsigmoid(x: Tensor) -> Tensor:
    """Return log sigmoid(x), with a small relative error for large x.

    The derivative of the version of torch resizes its output under nested `torch.func.vmap`.
    """
    return -((-x).relu() + torch.where(x < 0, x, -x).exp().log1p())


def log1p_minus(x: Tensor) -> Tensor:
    """Return log(1 + x) - x, with the relative error of log1p for small x as well."""
    small = x.abs() < 1e-3
    near, far = torch.where(small, x, 0), torch.where(small, 1, x)
    series = near**2 * (-1 / 2 + near * (1 / 3 - near * (1 / 4 - near * (1 / 5 - near / 6))))
    return torch.where(small, series, far.log1p() - far)


class _Context(FunctionCtx):
    slopes: Slopes
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _Fused(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Value, slopes: Slopes, *inputs: Tensor) -> Tensor:
        return value(*inputs)

    @staticmethod
    def setup_context(
        ctx: _Context, inputs: tuple[Value, Slopes, *tuple[Tensor, ...]], output: Tensor
    ) -> None:
        ctx.slopes = inputs[1]
        ctx.save_for_backward(*inputs[2:])
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    def jvp(ctx: _Context, value: None, slopes: None, *tangents: Tensor | None) -> Tensor:
        slopes_of = ctx.slopes(*ctx.saved_tensors)
        pairs = zip(tangents, slopes_of, strict=True)
        terms = [tangent * slope() for tangent, slope in pairs if tangent is not None]
        return torch.stack(terms).sum(0)

    @staticmethod
    def backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        slopes = ctx.slopes(*ctx.saved_tensors)
        found = (gradient * slope() if n else None for n, slope in zip(needed, slopes, strict=True))
        return None, None, *found


def fused(value: Value, slopes: Slopes, *inputs: Tensor) -> Tensor:
    """Return value(*inputs), without saving intermediate results for the derivative.

    Args:
        value: Elementwise function of the inputs. In-place operations are allowed.
        slopes: Function from the inputs to a function for each of them, which returns the
            derivative. It must be differentiable.
        inputs: Tensors, which are broadcast.
    """
    result: Tensor = _Fused.apply(value, slopes, *torch.broadcast_tensors(*inputs))
    return result


def stirling_error(x: Tensor) -> Tensor:
    """Return log Γ(x) - ((x - 1/2) log x - x + log(2π)/2), for x > 0, about 1 / (12 x).

    The error e(x) is e(x + 1) + (x + 1/2) log(1 + 1/x) - 1, and e(x + 1) is a polynomial in
    1 / (x + 3/2) within 2e-14. This is faster than `lgamma`, and its derivative is much faster than
    `digamma`.
    """
    return fused(_stirling_error, lambda x: (lambda: stirling_slope(x),), x)


def stirling_slope(x: Tensor) -> Tensor:
    """Return the derivative of `stirling_error`."""
    return fused(_stirling_slope, lambda x: (lambda: _stirling_curvature(x),), x)


# Coefficients of 1/y, 1/y^2, ... with y = x + 3/2, by interpolation at Chebyshev nodes.
STIRLING = (
    0.08333333333331606,
    0.041666666675542,
    0.018055554758168862,
    0.006250029509868381,
    0.0018347268944659272,
    0.0011233380189563354,
    0.0010200145795207104,
    0.0005416139119441711,
    -0.001968075846980649,
    0.003101702437634992,
    -0.002414062138201824,
    0.0010704263684196938,
    -0.00018914872866360432,
)
STIRLING_SLOPE = tuple(-k * c for k, c in enumerate(STIRLING, 1))  # of 1/y^2, 1/y^3, ...


def _stirling_error(x: Tensor) -> Tensor:
    inverse = x.reciprocal().log1p_().mul_(x + 0.5)
    return _polynomial(x.add(1.5).reciprocal_(), STIRLING).add_(inverse).sub_(1)


def _stirling_slope(x: Tensor) -> Tensor:
    inverse = x.reciprocal()
    y = x.add(1.5).reciprocal_()
    result = _polynomial(y, STIRLING_SLOPE).mul_(y)
    result.sub_(inverse, alpha=0.5).add_(inverse.log1p_())
    return result.sub_(x.add(1).reciprocal_(), alpha=0.5)


def _stirling_curvature(x: Tensor) -> Tensor:
    y, series = 1 / (x + 1.5), torch.zeros_like(x)
    for k in range(len(STIRLING), 0, -1):
        series = (series + k * (k + 1) * STIRLING[k - 1]) * y
    return series * y**2 + (1 / (x * (x + 1))) ** 2 / 2


def _polynomial(y: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Return sum_k c_k y^k, k = 1, 2, ..., without a graph. It is fast since it is in-place."""
    result = y * coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        result.add_(coefficient).mul_(y)
    return result


def log_rising(a: Tensor, b: float | Tensor) -> Tensor:
    """Return log Γ(a + b) - log Γ(a) - b log a, near b (b - 1) / (2 a) for large a."""
    total = a + b
    return (total - 0.5) * (b / a).log1p() - b + stirling_error(total) - stirling_error(a)


def deviance(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    """Return a log(p / m) + b log((1 - p) / (1 - m)), with m = a / (a + b).

    The two terms are nearly opposite if m is near p. If a is the smaller weight, the result is

        a shift - (a + b) log(1 + m (exp(shift) - 1))

    and its terms are not much larger than a times the shift. The case of b is symmetric.

    Args:
        a: First weight, positive.
        b: Second weight, positive.
        shift: logit p - logit m.
    """
    smaller, share, towards = _towards(a, b, shift)
    return smaller * towards - (a + b) * _log_ratio(share, towards)


def deviance_slope(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    """Return a (1 - p) - b p, the derivative of `deviance` in logit p."""
    _, share, towards = _towards(a, b, shift)
    change = towards.clamp(max=LARGEST_EXPONENT).expm1()
    slope = a * (b / (a + b)) * (change / (1 + share * change))
    return torch.where(a < b, -slope, slope)


def log_shares(a: Tensor, b: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return log(p / m) and log((1 - p) / (1 - m)), the derivatives of `deviance` in a and b."""
    _, share, towards = _towards(a, b, shift)
    log_ratio = _log_ratio(share, towards)
    return torch.where(a < b, shift, 0) - log_ratio, torch.where(a < b, 0, -shift) - log_ratio


def _towards(a: Tensor, b: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the smaller weight, its share, and the shift of its logit."""
    smaller = torch.minimum(a, b)
    return smaller, smaller / (a + b), torch.where(a < b, shift, -shift)


def _log_ratio(share: Tensor, shift: Tensor) -> Tensor:
    """Return log(1 + share (exp(shift) - 1))."""
    near = shift.clamp(max=LARGEST_EXPONENT)
    return (share * near.expm1()).log1p() + (shift - near)


def excess(weight: Tensor, linear: Tensor, log_ratio: Tensor) -> Tensor:
    """Return weight * log_ratio - linear, in which log_ratio = log(1 + linear / weight)."""
    relative = linear / weight
    near = relative.abs() < 0.1
    series = weight * log1p_minus(torch.where(near, relative, 0))
    return torch.where(near, series, weight * log_ratio - linear)
