"""Tables: a likelihood for columns of different kinds, side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae.distributions import entries_of
from pyro_vae.parts import Part


class Columns(Part):
    """p(x|z) = prod_c p_c(x_c|z) for a row x of columns of different kinds.

    Each likelihood describes some neighbouring columns, in their order; its own decoder may be as
    small as one layer where they share a `trunk`:

        Columns(
            [
                Normal(MLP(32, [], 3)),                                        # columns 0 to 2
                Bernoulli(MLP(32, [], 1)),                                     # column 3
                Categorical(MLP(32, [], 5), num_levels=5, spacing=1),          # column 4
            ],
            trunk=MLP(latent_dim, [32], 32),
        )

    Args:
        likelihoods: each takes what the trunk returns and has an event_shape of one dimension, its
            number of columns, whose entries are independent given z.
        trunk: network from `(*batch, latent_dim)` to what the likelihoods' decoders share; without
            one they take z itself.

    Raises:
        ValueError: without a likelihood; when called, for one whose columns depend on each other.
    """

    def __init__(
        self, likelihoods: Sequence[Part], trunk: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        if not likelihoods:
            raise ValueError("Columns needs at least one likelihood, got none")
        self.likelihoods = nn.ModuleList(likelihoods)
        self.trunk = trunk

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z), batch_shape `z.shape[:-1]`, event_shape `(num_columns,)`."""
        shared = z if self.trunk is None else self.trunk(z)
        columns = []
        for likelihood in self.likelihoods:
            described = likelihood(shared)
            if len(described.event_shape) != 1:
                raise ValueError(
                    "Columns takes likelihoods of vectors of columns, got a "
                    f"{type(likelihood).__name__} of event_shape {tuple(described.event_shape)}"
                )
            columns.append(entries_of(described))
        return SideBySide(columns).to_event(1)


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
