"""Distributions of the entries of an event: missing entries, columns of several kinds."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions.independent import unwrap_independent


def entries_of(distribution: dist.TorchDistribution) -> dist.TorchDistribution:
    """Return the distribution of the entries of an observation, without any `Independent`.

    Args:
        distribution: Distribution of observations.

    Returns:
        Distribution of batch_shape `(*batch_shape, *event_shape)` and event_shape `()`.

    Raises:
        ValueError: If the entries depend on each other.
    """
    entries = unwrap_independent(distribution)
    if entries.event_shape:
        raise ValueError(
            f"the entries of a {type(entries).__name__} depend on each other: expected a "
            "distribution of independent entries, combined by .to_event()"
        )
    return entries


class PartlyObserved(dist.TorchDistribution):
    """A distribution of entries that assigns log density 0 to NaN.

    Args:
        entries: Distribution of observed entries, event_shape `()`.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, entries: dist.TorchDistribution, validate_args: bool | None = None) -> None:
        self.entries: Any = entries
        super().__init__(entries.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The support of the entries, and NaN."""
        return _OrMissing(self.entries.support)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "PartlyObserved":
        """Return the distribution with this batch_shape."""
        return type(self)(self.entries.expand(torch.Size(batch_shape)), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, 0 for NaN."""
        if self._validate_args:
            self._validate_sample(value)
        missing = value.isnan()
        # The densities of missing entries are computed and discarded. Their gradients are
        # multiplied by 0, so they must be finite, as they are for a value in the support. 1/2 is in
        # every common continuous support, and 0 in every common discrete one.
        half = torch.full_like(value, 0.5)
        filler = torch.where(self.entries.support.check(half), half, torch.zeros_like(value))
        log_prob = self.entries.log_prob(torch.where(missing, filler, value))
        return torch.where(missing, torch.zeros_like(log_prob), log_prob)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample complete values."""
        return self.entries.sample(torch.Size(sample_shape))

    @property
    def mean(self) -> Tensor:
        """E[x] of complete values."""
        return self.entries.mean

    @property
    def variance(self) -> Tensor:
        """Var[x] of complete values."""
        return self.entries.variance


class _OrMissing(constraints.Constraint):
    """The union of a support and NaN."""

    def __init__(self, base: constraints.Constraint) -> None:
        self.base = base

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]  # as in torch.distributions.constraints
        """Whether the support is discrete."""
        return self.base.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Return a mask of the values that are in the support or NaN."""
        return self.base.check(value) | value.isnan()

    def __repr__(self) -> str:
        return f"{self.base} or NaN"


class SideBySide(dist.TorchDistribution):
    """Distributions of entries, concatenated along the last batch dimension.

    Args:
        columns: Distributions of batch_shape `(*batch, width)` and event_shape `()`.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self, columns: Sequence[dist.TorchDistribution], validate_args: bool | None = None
    ) -> None:
        self.columns = columns
        self.widths = [column.batch_shape[-1] for column in columns]
        shape = torch.Size((*columns[0].batch_shape[:-1], sum(self.widths)))
        super().__init__(shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The concatenated supports of the columns."""
        return _ColumnSupports([column.support for column in self.columns], -1, self.widths)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "SideBySide":
        """Return the distribution with this batch_shape. The last dimension must be unchanged."""
        columns = [
            column.expand(torch.Size((*batch_shape[:-1], width)))
            for column, width in zip(self.columns, self.widths, strict=True)
        ]
        return type(self)(columns, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each entry in nats."""
        if self._validate_args:
            self._validate_sample(value)
        values = value.split(self.widths, dim=-1)
        pairs = zip(self.columns, values, strict=True)
        return torch.cat([column.log_prob(part) for column, part in pairs], dim=-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample all columns."""
        shape = torch.Size(sample_shape)
        return torch.cat([column.sample(shape) for column in self.columns], dim=-1)

    @property
    def mean(self) -> Tensor:
        """E[x], entry by entry."""
        return torch.cat([column.mean for column in self.columns], dim=-1)

    @property
    def variance(self) -> Tensor:
        """Var[x], entry by entry."""
        return torch.cat([column.variance for column in self.columns], dim=-1)


class _ColumnSupports(type(constraints.cat([]))):  # type: ignore[misc]  # torch's `cat` class is private
    def __repr__(self) -> str:
        start, names = 0, []
        for support, width in zip(self.cseq, self.lengths, strict=True):
            last = start + width - 1
            which = f"column {start}" if width == 1 else f"columns {start} to {last}"
            names.append(f"{which}: {support}")
            start += width
        return "; ".join(names)
