"""Distributions over the entries of an event: missing entries, columns of several kinds."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions.independent import unwrap_independent


class _OpenUnitInterval(constraints.Constraint):
    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


class OpenBeta(dist.Beta):
    """Pyro's Beta with the ends 0 and 1, where its density is 0 or infinite, off its support."""

    support = _OpenUnitInterval()  # type: ignore[assignment]  # torch's closed interval


def entries_of(distribution: dist.TorchDistribution) -> dist.TorchDistribution:
    """Return the distribution of single entries behind one of whole observations.

    Its batch_shape is batch_shape and event_shape of the other, its event_shape `()`.

    Raises:
        ValueError: when the entries are not independent of each other.
    """
    entries = unwrap_independent(distribution)
    if entries.event_shape:
        raise ValueError(
            f"the entries of a {type(entries).__name__} depend on each other, where a product over "
            "entries is needed: one distribution for each, made an observation by .to_event()"
        )
    return entries


class PartlyObserved(dist.TorchDistribution):
    """A distribution of single entries whose NaN values have the log density 0.

    Args:
        entries: the distribution of entries that are observed, event_shape `()`.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, entries: dist.TorchDistribution, validate_args: bool | None = None) -> None:
        self.entries: Any = entries
        super().__init__(entries.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """That of the entries, and NaN."""
        return _OrMissing(self.entries.support)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PartlyObserved":
        """Return the distribution with this batch_shape."""
        return type(self)(self.entries.expand(torch.Size(batch_shape)), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats, 0 where the value is NaN."""
        if self._validate_args:
            self._validate_sample(value)
        missing = value.isnan()
        # The missing entries' densities are computed and thrown away, but their gradients are
        # multiplied by 0: they must be finite, as they are at a value in the support. A half is
        # in every common support that is continuous, 0 in every discrete one.
        half = torch.full_like(value, 0.5)
        filler = torch.where(self.entries.support.check(half), half, torch.zeros_like(value))
        log_prob = self.entries.log_prob(torch.where(missing, filler, value))
        return torch.where(missing, torch.zeros_like(log_prob), log_prob)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw complete values."""
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
    """A support, and NaN."""

    def __init__(self, base: constraints.Constraint) -> None:
        self.base = base

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]  # torch's own combinations do so
        """Whether the support is discrete."""
        return self.base.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Return which values are in the support or NaN."""
        return self.base.check(value) | value.isnan()

    def __repr__(self) -> str:
        return f"{self.base} or NaN"


class SideBySide(dist.TorchDistribution):
    """Distributions of single entries, concatenated along their last batch dimension.

    Args:
        columns: each of batch_shape `(*batch, width)` and event_shape `()`.
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
        """The columns' supports, each for its own."""
        return _ColumnSupports([column.support for column in self.columns], -1, self.widths)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SideBySide":
        """Return the distribution with this batch_shape, whose last dimension stays."""
        columns = [
            column.expand(torch.Size((*batch_shape[:-1], width)))
            for column, width in zip(self.columns, self.widths, strict=True)
        ]
        return type(self)(columns, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return each entry's log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        values = value.split(self.widths, dim=-1)
        pairs = zip(self.columns, values, strict=True)
        return torch.cat([column.log_prob(part) for column, part in pairs], dim=-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw every column."""
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


class _ColumnSupports(type(constraints.cat([]))):  # type: ignore[misc]  # torch names a class so
    def __repr__(self) -> str:
        start, names = 0, []
        for support, width in zip(self.cseq, self.lengths, strict=True):
            last = start + width - 1
            which = f"column {start}" if width == 1 else f"columns {start} to {last}"
            names.append(f"{which}: {support}")
            start += width
        return "; ".join(names)
