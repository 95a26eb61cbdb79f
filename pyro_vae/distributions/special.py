"""Special functions without cancellation: terms of log densities that are near each other.

A log density such as that of counts is a sum of terms like log Γ(r), which exceed the sum by many
orders of magnitude at large parameters. The functions here subtract the terms in closed form
(Loader 2000, "Fast and accurate computation of binomial probabilities"). They are meant for
float64: a float32 mean exp(y) of 10^6 is already rounded by 1/16.
"""

import math

import torch
from torch import Tensor

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


def stirling_error(x: Tensor) -> Tensor:
    """Return log Γ(x) - ((x - 1/2) log x - x + log(2π)/2), for x > 0, about 1 / (12 x).

    It is the series of Stirling at x + 8, and Γ(x + 8) = x (x + 1) ... (x + 7) Γ(x). Polynomials
    are faster than `lgamma`, and much faster than its derivative `digamma`.
    """
    x = x.clamp(max=torch.finfo(x.dtype).max ** (1 / 9))  # x^8 must not overflow
    shifted = x + 8
    inverse = 1 / shifted
    square = inverse**2
    series = 1 / 1188 - square * (691 / 360360)
    for coefficient in (-1 / 1680, 1 / 1260, -1 / 360, 1 / 12):
        series = coefficient + square * series
    ends = x * (x + 7)
    rising = ends * (ends + 6) * (ends + 10) * (ends + 12) * square**2 * square**2
    return inverse * series + (x - 0.5) * (8 / x).log1p() - 8 - rising.log()


def log_rising(a: Tensor, b: float | Tensor) -> Tensor:
    """Return log Γ(a + b) - log Γ(a) - b log a, near b (b - 1) / (2 a) for large a."""
    relative = b / a
    excess = a * log1p_minus(relative) + (b - 0.5) * relative.log1p()
    return excess + stirling_error(a + b) - stirling_error(a)


def deviance(a: Tensor, b: Tensor, shares: tuple[Tensor, Tensor], shift: Tensor) -> Tensor:
    """Return a log(p / m) + b log((1 - p) / (1 - m)), with logit p = logit m + shift.

    The two terms are nearly opposite if m = a / (a + b) is near p. Written as

        -a log(1 + (1 - m) (exp(-shift) - 1)) - b log(1 + m (exp(shift) - 1))

    they are at most as large as the smaller of a and b, times the shift.

    Args:
        a: First weight, positive.
        b: Second weight, positive.
        shares: The numbers m and 1 - m, above 10^-300.
        shift: Difference of the logits of p and m.
    """
    near = shift.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    up, down = shares[0] * near.expm1(), shares[1] * (-near).expm1()
    log_up = up.clamp(min=-0.9).log1p() + (shift - near).relu()
    log_down = down.clamp(min=-0.9).log1p() + (near - shift).relu()
    # The difference of the two logarithms is the shift. Near -1 the other one is more accurate.
    first = torch.where(down < -0.9, log_up - shift, log_down)
    second = torch.where(up < -0.9, log_down + shift, log_up)
    return -(a * first + b * second)


def excess(weight: Tensor, linear: Tensor, log_ratio: Tensor) -> Tensor:
    """Return weight * log_ratio - linear, in which log_ratio = log(1 + linear / weight)."""
    relative = linear / weight
    near = relative.abs() < 0.1
    series = weight * log1p_minus(torch.where(near, relative, 0))
    return torch.where(near, series, weight * log_ratio - linear)
