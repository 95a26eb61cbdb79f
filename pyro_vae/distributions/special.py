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
    """Return log Γ(x) - ((x - 1/2) log x - x + log(2π)/2), for x > 0."""
    large = x > 16
    far, near = torch.where(large, x, 16), torch.where(large, 1, x)
    inverse = 1 / far
    square = inverse**2
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    return torch.where(
        large, series, near.lgamma() - (near - 0.5) * near.log() + near - HALF_LOG_2PI
    )


def log_rising(a: Tensor, b: float | Tensor) -> Tensor:
    """Return log Γ(a + b) - log Γ(a) - b log a, near b (b - 1) / (2 a) for large a."""
    relative = b / a
    excess = a * log1p_minus(relative) + (b - 0.5) * relative.log1p()
    return excess + stirling_error(a + b) - stirling_error(a)


def log_beta_kernel(a: Tensor, b: Tensor, logit: Tensor) -> Tensor:
    """Return a log p + b log(1 - p) - log B(a, b), with p = sigmoid(logit) and a, b > 0.

    It is the log density of logit p if p has a Beta(a, b) distribution, and up to a factor the log
    probability of counts. By Stirling's formula it is

        a log (p / m) + b log ((1 - p) / (1 - m)) + log(a b / (a + b)) / 2 + ...,    m = a / (a + b)

    in which the first two terms are nearly opposite if p is near m. With u = p/m - 1 and
    w = (1 - p)/(1 - m) - 1, a u + b w = 0. So u and w can be subtracted from the logarithms, and
    two terms of one sign remain.
    """
    above = logit.sigmoid() * b - (-logit).sigmoid() * a  # a u = -b w
    log_ratio = logsigmoid(logit) + (b / a).log1p()  # log(p / m); softplus is not exact above 20
    log_other = logsigmoid(-logit) + (a / b).log1p()
    deviance = excess(a, above, log_ratio) + excess(b, -above, log_other)
    log_scale = (b.log() - (b / a).log1p()) / 2 - HALF_LOG_2PI
    errors = stirling_error(a + b) - stirling_error(a) - stirling_error(b)
    return deviance + log_scale + errors


def excess(weight: Tensor, linear: Tensor, log_ratio: Tensor) -> Tensor:
    """Return weight * log_ratio - linear, in which log_ratio = log(1 + linear / weight)."""
    relative = linear / weight
    near = relative.abs() < 0.1
    series = weight * log1p_minus(torch.where(near, relative, 0))
    return torch.where(near, series, weight * log_ratio - linear)
