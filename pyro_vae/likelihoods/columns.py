"""Tables: a likelihood for columns of different kinds, side by side."""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.distributions.entrywise import SideBySide, entries_of
from pyro_vae.part import Part


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
