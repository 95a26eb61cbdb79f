"""Distributions of the entries of an event: missing entries, columns of several kinds."""

import itertools
from collections.abc import Sequence
from typing import cast

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions.discretized import CategoricalLevels
from pyro_vae.distributions.independent import unwrap_independent


def entries_of(distribution: dist.TorchDistribution) -> dist.TorchDistribution:
    """Return the distribution of the entries of an observation, without any `Independent`.

    Args:
        distribution: Distribution of observations.

    Returns:
        Distribution of batch_shape `(*batch_shape, *event_shape)` and event_shape `()`.

    Raises:
        ValueError: If the entries depend on each other.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.distributions import entries_of
        >>> entries_of(dist.Normal(torch.zeros(2, 3), torch.ones(3)).to_event(1)).batch_shape
        torch.Size([2, 3])

    See also: `PartlyObserved`, `pyro_vae.likelihoods.Missing`.
    """
    entries = unwrap_independent(distribution)
    if entries.event_shape:
        raise ValueError(
            f"the entries of a {type(entries).__name__} depend on each other: expected a "
            "distribution of independent entries, combined by .to_event()"
        )
    return entries


def point_estimate(distribution: dist.TorchDistribution) -> Tensor:
    """Return E[x], but the most probable value of entries that are levels in no order."""
    entries = unwrap_independent(distribution)
    if isinstance(entries, PartlyObserved):
        return point_estimate(entries.entries)
    if isinstance(entries, SideBySide):
        return entries.joined([point_estimate(column) for column in entries.columns])
    return entries.mode if isinstance(entries, CategoricalLevels) else entries.mean


class PartlyObserved(dist.TorchDistribution):
    """A distribution of entries that assigns log density 0 to NaN.

    Args:
        entries: Distribution of observed entries, event_shape `()`.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.distributions import PartlyObserved
        >>> entries = PartlyObserved(dist.Normal(torch.zeros(2), torch.ones(2)))
        >>> entries.log_prob(torch.tensor([0.0, float("nan")]))
        tensor([-0.9189,  0.0000])

    See also: `pyro_vae.likelihoods.Missing`, `SideBySide`.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, entries: dist.TorchDistribution, validate_args: bool | None = None) -> None:
        self.entries = entries
        super().__init__(entries.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The support of the entries, and NaN."""
        return _OrMissing(support_of(self.entries))

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
        valid = support_of(self.entries).check(half)
        filler = torch.where(valid, half, torch.zeros_like(value))
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


def support_of(distribution: dist.TorchDistribution) -> constraints.Constraint:
    """Return the support of a distribution that has one."""
    return cast(constraints.Constraint, distribution.support)  # torch's type has None


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
    """Distributions of entries, side by side along the last batch dimension.

    Args:
        columns: Distributions of batch_shape `(*batch, width)` and event_shape `()`.
        positions: Position of each of their entries in the last dimension, one list for each
            distribution; by default in order.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.distributions import SideBySide
        >>> columns = [dist.Normal(torch.zeros(2), torch.ones(2)), dist.Poisson(torch.ones(1))]
        >>> SideBySide(columns).log_prob(torch.tensor([0.0, 0.0, 3.0]))
        tensor([-0.9189, -0.9189, -2.7918])

    See also: `pyro_vae.likelihoods.Columns`, `PartlyObserved`.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self,
        columns: Sequence[dist.TorchDistribution],
        positions: Sequence[Sequence[int]] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.columns = columns
        self.widths = [column.batch_shape[-1] for column in columns]
        self.positions = positions
        shape = torch.Size((*columns[0].batch_shape[:-1], sum(self.widths)))
        super().__init__(shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The supports of the columns."""
        return _ColumnSupports([support_of(column) for column in self.columns], self.places)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "SideBySide":
        """Return the distribution with this batch_shape. The last dimension must be unchanged."""
        columns = [
            column.expand(torch.Size((*batch_shape[:-1], width)))
            for column, width in zip(self.columns, self.widths, strict=True)
        ]
        return type(self)(columns, self.positions, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of each entry in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self.joined(
            [
                column.log_prob(part)
                for column, part in zip(self.columns, self._parts(value), strict=True)
            ]
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample all columns."""
        shape = torch.Size(sample_shape)
        return self.joined([column.sample(shape) for column in self.columns])

    @property
    def mean(self) -> Tensor:
        """E[x], entry by entry."""
        return self.joined([column.mean for column in self.columns])

    @property
    def variance(self) -> Tensor:
        """Var[x], entry by entry."""
        return self.joined([column.variance for column in self.columns])

    @property
    def places(self) -> Sequence[Sequence[int]]:
        """Positions of the entries of each column in the last dimension."""
        if self.positions is not None:
            return self.positions
        ends = itertools.accumulate(self.widths)
        return [range(end - width, end) for end, width in zip(ends, self.widths, strict=True)]

    def _parts(self, value: Tensor) -> Sequence[Tensor]:
        if self.positions is None:
            return value.split(self.widths, dim=-1)
        return [value[..., places] for places in self.positions]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return values of the distributions as values of the entries in their order."""
        joined = torch.cat(list(parts), dim=-1)
        if self.positions is None:
            return joined
        order = [place for places in self.positions for place in places]
        return joined[..., [order.index(place) for place in range(len(order))]]


class _ColumnSupports(constraints.Constraint):
    """The supports of blocks of entries, at some places of the last dimension."""

    event_dim = 0

    def __init__(
        self, supports: Sequence[constraints.Constraint], places: Sequence[Sequence[int]]
    ) -> None:
        self.supports, self.places = supports, places

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]  # as in torch.distributions.constraints
        """Whether a support is discrete."""
        return any(support.is_discrete for support in self.supports)

    def check(self, value: Tensor) -> Tensor:
        """Return a mask of the values that are in their support."""
        valid = torch.ones_like(value, dtype=torch.bool)
        for support, places in zip(self.supports, self.places, strict=True):
            valid[..., list(places)] = support.check(value[..., list(places)])
        return valid

    def __repr__(self) -> str:
        return "; ".join(
            f"{_named(places)}: {support}"
            for support, places in zip(self.supports, self.places, strict=True)
        )


def _named(places: Sequence[int]) -> str:
    first, last = min(places), max(places)
    if first == last:
        return f"column {first}"
    if len(places) == last - first + 1:
        return f"columns {first} to {last}"
    return f"columns {', '.join(map(str, places))}"
