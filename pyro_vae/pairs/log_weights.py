"""Bounds, estimates of log p(x), and diagnostics from an array of log weights.

Each function takes `log_weights[s, n] = log p(x_n, z_s) - log q(z_s|x_n)` in nats, shape
`(num_samples, num_data)`, for samples z_s ~ q(z|x_n). It computes in float64 and returns one number
per datum.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pyro_vae.pairs import khat


def elbo(log_weights: Tensor) -> Tensor:
    """Return the evidence lower bound, the mean log weight (Kingma & Welling 2013, eq. 2)."""
    return log_weights.double().mean(dim=0)


def importance_bound(log_weights: Tensor) -> Tensor:
    """Return log 1/K sum_k w_k, a lower bound that increases to log p(x) with K.

    Burda, Grosse & Salakhutdinov (2015), eq. 8. The mean weight is an unbiased estimate of p(x).
    Its logarithm is biased downwards by about var(w) / (2 K E[w]^2).
    """
    return log_weights.double().logsumexp(dim=0) - math.log(len(log_weights))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2 (Kong 1992), between 1 and `num_samples`."""
    normalized = log_weights.double().softmax(dim=0)
    return normalized.square().sum(dim=0).reciprocal()


def pareto_khat(log_weights: Tensor) -> Tensor:
    """Return k-hat, the shape parameter of the generalized Pareto tail of each datum's weights.

    Vehtari et al. (2024), "Pareto smoothed importance sampling": above min(1 - 1/log10(K), 0.7),
    the estimate of log p(x) from K samples is unreliable. Equal weights, as for an exact posterior,
    give -inf. Weights that span more than float64 can represent give inf. Fewer than 30 samples
    give NaN. Weights may be zero, as those of latents at which x is impossible, but not all.
    """
    return torch.from_numpy(khat.pareto_khat(log_weights.double().cpu().numpy()))


def check_finite(log_likelihood: np.ndarray) -> None:
    """Check that log p(x) of all data, shape `(num_data,)`, is finite.

    Raises:
        ValueError: If it is not finite for some datum.
    """
    bad = ~np.isfinite(log_likelihood)
    if bad.any():
        raise ValueError(
            f"log p(x) of {bad.sum()} data is not finite (first at datum {bad.argmax()}): rescale "
            "x, or check the networks' weights"
        )
