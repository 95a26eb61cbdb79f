"""A likelihood for tables with columns of different kinds."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.arguments import ArgumentError
from pyro_vae.distributions.entrywise import SideBySide, entries_of
from pyro_vae.part import Part, Role

Block: TypeAlias = Annotated[Part, Role("likelihood", ("z",))]
Trunk: TypeAlias = Annotated[Callable[[Tensor], Tensor], Role("network", ("z",))]


class Columns(Part):
    """p(x|z) = prod_c p_c(x_c|z) for a row x with columns of different kinds.

    Each likelihood describes a block of columns: neighbouring ones in order, or those at its
    `positions`. If the likelihoods share a `trunk`, a decoder of one layer is enough for each.

    Args:
        likelihoods: Likelihoods of the blocks, called with the output of the trunk. Each has an
            event_shape of one dimension, the number of its columns, which are independent given z.
        trunk: Network from `(*batch, latent_dim)` to the common input of the decoders. Without a
            trunk the likelihoods are called with z.
        positions: Columns of x that each likelihood describes, such as `[[0, 2], [1]]`; by default
            neighbouring columns, in order.

    Raises:
        ValueError: If there is no likelihood, if a column is in no position or in several, or if
            the columns of one depend on each other (the latter raised by `forward`).

    Example:
        >>> import torch
        >>> from pyro_vae.likelihoods import Bernoulli, Categorical, Columns, Normal
        >>> from pyro_vae.networks import MLP
        >>> likelihood = Columns(
        ...     [
        ...         Normal(MLP(8, [], 3)),  # columns 0 to 2
        ...         Bernoulli(MLP(8, [], 1)),  # column 3
        ...         Categorical(MLP(8, [], 5), num_levels=5, spacing=1),  # column 4
        ...     ],
        ...     trunk=MLP(2, [8], 8),
        ... )
        >>> likelihood(torch.zeros(6, 2)).sample().shape
        torch.Size([6, 5])

    See also: `Missing`, `Normal`, `Categorical`.
    """

    def __init__(
        self,
        likelihoods: Sequence[Block],
        trunk: Trunk | None = None,
        positions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if not likelihoods:
            raise ArgumentError("Columns needs at least one likelihood, got none")
        if positions is not None:
            order = sorted(place for places in positions for place in places)
            if order != [*range(len(order))] or len(positions) != len(likelihoods):
                raise ArgumentError(
                    "expected positions as one list for each likelihood, with each column in one "
                    f"of them, got {positions}"
                )
        self.likelihoods = nn.ModuleList(likelihoods)
        self.trunk, self.positions = trunk, positions

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
        return SideBySide(columns, self.positions).to_event(1)
