"""Means of data over the values that are not missing."""

from collections.abc import Iterable

import torch
from torch import Tensor

from pyro_vae.data.errors import DataError


def mean(chunks: Iterable[Tensor]) -> Tensor:
    """Return the mean of each entry over its values that are not NaN, shape `(*event)`.

    Raises:
        DataError: If an entry has no value.
    """
    sums, counts, dtype = _sums(chunks)
    if not counts.all():
        entry = tuple((counts == 0).nonzero()[0].tolist())
        raise DataError(f"entry {entry} is NaN in all data and has no mean: drop this entry")
    return (sums / counts).to(dtype)


def log_odds(chunks: Iterable[Tensor]) -> Tensor:
    """Return logit of the mean, smoothed by one datum of fair coins, shape `(*event)`.

    Raises:
        DataError: If the mean of an entry is not between 0 and 1.
    """
    sums, counts, dtype = _sums(chunks)
    found = (sums / counts.clamp(min=1)).to(dtype)
    low, high = found.min().item(), found.max().item()
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"log odds need means between 0 and 1, got means from {low:g} to {high:g}: scale the "
            "data, or use mean() for a decoder of real values"
        )
    counts = counts.to(dtype)
    return torch.logit((found * counts + 0.5) / (counts + 1))


def _sums(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor, torch.dtype]:
    """Return sum and number of the values of each entry, and their type as floats."""
    sums, counts, dtype = [], [], torch.float32
    for chunk in chunks:
        dtype = chunk.dtype if chunk.is_floating_point() else dtype
        values = chunk.double()
        sums.append(values.nansum(dim=0))
        counts.append((~values.isnan()).sum(dim=0))
    return torch.stack(sums).sum(dim=0), torch.stack(counts).sum(dim=0), dtype
