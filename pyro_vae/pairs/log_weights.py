"""What an array of log weights says: bounds, log p(x), and how far to trust them.

Each function takes `log_weights[s, n] = log p(x_n, z_s) - log q(z_s|x_n)` in nats, shape
`(num_samples, num_data)`, for draws z_s ~ q(z|x_n), and returns one number for each datum,
computed in float64.
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
    """Return log 1/K sum_k w_k, a lower bound that rises to log p(x) with K.

    Burda, Grosse & Salakhutdinov (2015), eq. 8. The estimate of the weight itself is unbiased, of
    its logarithm biased downwards, by about var(w) / (2 K E[w]^2).
    """
    return log_weights.double().logsumexp(dim=0) - math.log(len(log_weights))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2 (Kong 1992), between 1 and `num_samples`."""
    normalized = log_weights.double().softmax(dim=0)
    return normalized.square().sum(dim=0).reciprocal()


def pareto_khat(log_weights: Tensor) -> Tensor:
    """Return the shape k-hat of the generalized Pareto tail of each datum's weights.

    Vehtari et al. (2024), "Pareto smoothed importance sampling": above min(1 - 1/log10(K), 0.7),
    the estimate of log p(x) from these weights is not to be relied on. Equal weights, of an exact
    posterior, give -inf; fewer than 25 draws have no tail and give NaN.
    """
    return torch.from_numpy(khat.pareto_khat(log_weights.double().cpu().numpy()))


def check_finite(log_likelihood: np.ndarray) -> None:
    """Raise `ValueError` unless log p(x) of all data, shape `(num_data,)`, is finite."""
    bad = ~np.isfinite(log_likelihood)
    if bad.any():
        raise ValueError(
            f"log p(x) of {bad.sum()} data is not finite (first of datum {bad.argmax()}): rescale "
            "x, or look at the networks' weights"
        )
