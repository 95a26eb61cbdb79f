"""Pareto k-hat, a diagnostic for importance sampling estimates."""

import math

import numpy as np

# Log weights within this range are equal up to rounding; no tail can be fitted to them.
EQUAL_WEIGHTS = 1e-7
# ArviZ fits the tail to a fifth of the samples and needs at least 5.
MIN_TAIL_SAMPLES = 25


def khat_threshold(num_samples: int) -> float:
    """Return min(1 - 1/log10(S), 0.7), the largest k-hat of a reliable estimate from S samples.

    Vehtari et al. (2024), "Pareto smoothed importance sampling", section 3.2.4.
    """
    return min(1 - 1 / math.log10(max(num_samples, 2)), 0.7)


def pareto_khat(log_weights: np.ndarray) -> np.ndarray:
    """Return k-hat, the shape parameter of the generalized Pareto tail of each column's weights.

    Equal weights, as for an exact posterior, give -inf. Fewer than 25 samples give NaN, and so does
    a weight that is not finite.

    Args:
        log_weights: Log weights in nats, shape `(num_samples, num_data)`.
    """
    from arviz_stats.base import array_stats  # takes seconds to import

    num_samples, num_data = log_weights.shape
    khat = np.full(num_data, np.nan)
    if num_samples >= MIN_TAIL_SAMPLES:
        columns = np.asarray(log_weights, dtype=np.float64)
        finite = np.isfinite(columns).all(axis=0)
        with np.errstate(invalid="ignore"):
            equal = finite & (columns.max(axis=0) - columns.min(axis=0) < EQUAL_WEIGHTS)
        khat[equal] = -np.inf
        fitted = finite & ~equal
        if fitted.any():
            # ArviZ takes log likelihoods and uses their negatives as log weights.
            khat[fitted] = array_stats.psislw(-columns[:, fitted], axis=0)[1]
    return khat
