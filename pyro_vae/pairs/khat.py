"""Pareto k-hat, a diagnostic for importance sampling estimates."""

import math

import numpy as np

# ArviZ fits a fifth of the samples and compares their smallest with their first quartile, which
# must be another sample.
MIN_TAIL_SAMPLES = 30
# Log weights that differ by less than this share of the largest are equal up to the rounding of
# densities in float32, at least and at most these nats. No tail can be fitted to them.
EQUAL_SHARE, EQUAL_NATS, MOST_EQUAL_NATS = 1e-6, 1e-5, 1.0
# exp of less than this is zero or subnormal in float64.
UNDERFLOW = -690.0
# A log weight in the place of -inf, next to which the exponential of every other one is infinite.
SMALLEST = -1e300


def khat_threshold(num_samples: int) -> float:
    """Return min(1 - 1/log10(S), 0.7), the largest k-hat of a reliable estimate from S samples.

    Vehtari et al. (2024), "Pareto smoothed importance sampling", section 3.2.4.
    """
    return min(1 - 1 / math.log10(max(num_samples, 2)), 0.7)


def pareto_khat(log_weights: np.ndarray) -> np.ndarray:
    """Return k-hat, the shape parameter of the generalized Pareto tail of each column's weights.

    ArviZ fits the tail. The result is

    - NaN for fewer than 30 samples, for a weight that is NaN or infinite, and if all weights are
      zero. Some weights may be zero, as those of latents at which x is impossible;
    - -inf if all weights in the tail are equal up to rounding, as for an exact posterior;
    - inf if a quarter of the tail vanishes in float64 next to the largest weight, and if one sample
      has more than half of the weight although the fitted k-hat is below the threshold.

    Args:
        log_weights: Log weights in nats, shape `(num_samples, num_data)`.
    """
    from arviz_stats.base import array_stats  # takes seconds to import

    num_samples, num_data = log_weights.shape
    khat = np.full(num_data, np.nan)
    log_weights = _with_small_zeros(log_weights)
    finite = np.isfinite(log_weights).all(axis=0)
    if num_samples < MIN_TAIL_SAMPLES or not finite.any():
        return khat
    rows = log_weights.T[finite]  # one for each datum
    largest = rows.max(axis=1)
    rounding = np.clip(EQUAL_SHARE * np.abs(largest), EQUAL_NATS, MOST_EQUAL_NATS)
    with np.errstate(all="ignore"):  # weights that overflow or vanish are classified here
        rows = rows - largest[:, None]
        tail_size = _tail_size(num_samples)
        rows.partition(num_samples - tail_size - 1, axis=1)
        cutoff, tail = rows[:, -tail_size - 1], np.sort(rows[:, -tail_size:], axis=1)
        quartile = tail[:, int(tail_size / 4 + 0.5) - 1]  # ArviZ divides by its exceedance
        known = [tail[:, 0] >= -rounding, quartile < UNDERFLOW]
        result = np.select(known, [-np.inf, np.inf], np.nan)
        fitted = np.isnan(result)
        for i in np.flatnonzero(fitted & (np.exp(quartile) - np.exp(cutoff) < np.exp(UNDERFLOW))):
            rows[i] = _without_ties(rows[i], quartile[i], tail_size)
        for i in np.flatnonzero(fitted & (quartile - tail[:, 0] < EQUAL_NATS)):
            _lower_smallest(rows[i], tail_size)
        if fitted.any():
            # ArviZ takes log likelihoods and uses their negatives as log weights.
            result[fitted] = array_stats.psislw(-rows[fitted], axis=-1)[1]
        trusted = fitted & (result <= khat_threshold(num_samples))
        for i in np.flatnonzero(trusted & (np.exp(tail).sum(axis=1) < 2)):
            if np.exp(rows[i]).sum() < 2:  # the largest weight is 1
                result[i] = np.inf
    khat[finite] = result
    return khat


def smoothed_log_weights(log_weights: np.ndarray) -> np.ndarray:
    """Return normalized log weights with the tail of each column replaced by a Pareto fit.

    The largest weights become expected order statistics of the fitted distribution (Vehtari et al.
    2024). Columns without a fit, those with a k-hat that is not finite, are only normalized.
    Weights of zero stay zero.

    Args:
        log_weights: Log weights in nats, shape `(num_samples, num_data)`.
    """
    from arviz_stats.base import array_stats

    with np.errstate(invalid="ignore"):  # of columns without a positive weight
        result = log_weights - np.logaddexp.reduce(log_weights, axis=0)
    fitted = np.isfinite(pareto_khat(log_weights))
    if fitted.any():
        columns = _with_small_zeros(log_weights[:, fitted])
        with np.errstate(all="ignore"):
            smoothed = array_stats.psislw(-columns.T, axis=-1)[0].T
        result[:, fitted] = np.where(columns == SMALLEST, -np.inf, smoothed)
    return result


def _with_small_zeros(log_weights: np.ndarray) -> np.ndarray:
    """Return a copy in float64 with weights of zero as small as possible, unless all are zero."""
    result = np.array(log_weights, dtype=np.float64)
    zero = np.isneginf(result)
    result[zero & ~zero.all(axis=0)] = SMALLEST
    return result


def _tail_size(num_samples: int) -> int:
    """Return the number of samples in the tail that ArviZ fits."""
    return int(3 * num_samples**0.5) if num_samples > 225 else num_samples // 5


def _without_ties(row: np.ndarray, tied: float, tail_size: int) -> np.ndarray:
    """Return partitioned log weights with the cutoff below the tail.

    If the tail begins inside a group of equal weights, many of its exceedances over the cutoff are
    zero, and no Pareto distribution fits them. The cutoff is then the next smaller weight, and zero
    if there is none.
    """
    rest = row[:-tail_size]
    equal = rest >= tied - EQUAL_NATS
    lower = rest[~equal].max(initial=2 * UNDERFLOW)
    return np.concatenate([np.where(equal, lower, rest), row[-tail_size:]])


def _lower_smallest(row: np.ndarray, tail_size: int) -> None:
    """Lower the smallest weight of the tail of partitioned log weights a little, in place.

    ArviZ fits no distribution if a quarter of the tail equals its smallest weight. k-hat depends on
    that one weight only up to rounding.
    """
    cutoff, tail = row[:-tail_size].max(), row[-tail_size:]
    smallest = tail.argmin()
    tail[smallest] = max(tail[smallest] - EQUAL_NATS, (tail[smallest] + cutoff) / 2)
