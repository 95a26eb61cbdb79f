"""Find the proposals of a batch of data, and sample from them in bounded memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.pairs.chunking import data_per_chunk
from pyro_vae.pairs.coverage import check_kinds
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.unconstrained import Unconstrained
from pyro_vae.refinement.importance import WeightedStates, fitted, resampled, weighted
from pyro_vae.refinement.proposal import Proposal

NUM_ROUNDS = 3  # of adaptation
ROUND_DRAWS = 200  # of each datum in a round, at least
DRAWS_PER_DIMENSION = 4
NUM_CANDIDATES = 1000  # weighted draws of each datum from which samples are chosen


@dataclass(frozen=True)
class Resampled:
    """Samples of the posteriors of some data, and the weights that they were chosen by.

    Attributes:
        latents: Samples by site name, shape `(samples, data, *event)`.
        log_weights: Log weights of the candidates, shape `(candidates, data)`.
    """

    latents: dict[str, Tensor]
    log_weights: Tensor


class Refiner:
    """Finds proposals for chunks of data and draws from them.

    Args:
        sampler: Sampler of the pair.
        num_rounds: Number of rounds of adaptation.
        num_samples: Number of weighted draws of each datum.

    Raises:
        PairError: If samples of the guide cannot be starting points.
    """

    def __init__(self, sampler: Sampler, num_rounds: int, num_samples: int) -> None:
        check_kinds(sampler.programs)
        self.sampler, self.num_rounds, self.num_samples = sampler, num_rounds, num_samples

    def chunk_sizes(self, few: tuple[Tensor, ...], num_data: int) -> tuple[int, int]:
        """Return the numbers of data and of draws to evaluate together.

        The Hessian of a datum evaluates one copy of it for each latent.

        Args:
            few: Some of the data.
            num_data: Number of data.
        """
        dim = Unconstrained(self.sampler, few).dim
        copies = data_per_chunk(few[0].shape[1:], 1, few[0].device)
        rows = max(1, min(copies // dim, num_data))
        return rows, max(1, copies // rows)

    def find(self, batch: tuple[Tensor, ...], chunk_draws: int) -> Proposal:
        """Return the proposals of a batch."""
        posterior = Unconstrained(self.sampler, batch)
        num_draws = min(self.num_samples, max(ROUND_DRAWS, DRAWS_PER_DIMENSION * posterior.dim))
        return fitted(posterior, self.num_rounds, num_draws, chunk_draws)

    def draw(self, batch: tuple[Tensor, ...], chunk_draws: int) -> tuple[Proposal, WeightedStates]:
        """Return the proposals of a batch, and weighted draws that they were not fitted to."""
        posterior, proposal = Unconstrained(self.sampler, batch), self.find(batch, chunk_draws)
        draws = weighted(posterior, proposal, self.num_samples, chunk_draws, defended=True)
        return proposal, draws

    def sample(self, batch: tuple[Tensor, ...], num_samples: int) -> Resampled:
        """Sample the posteriors of a batch of any size by importance resampling.

        The candidates are the weighted draws of `draw`.
        """
        size, chunk_draws = self.chunk_sizes(tuple(rows[:2] for rows in batch), len(batch[0]))
        parts = []
        for start in range(0, len(batch[0]), size):
            part = tuple(rows[start : start + size] for rows in batch)
            _, found = self.draw(part, chunk_draws)
            states = resampled(found, num_samples)
            latents, _ = Unconstrained(self.sampler, part).constrain(states)
            parts.append(Resampled(latents, found.log_weights))
        return Resampled(
            {name: torch.cat([p.latents[name] for p in parts], 1) for name in parts[0].latents},
            torch.cat([part.log_weights for part in parts], 1),
        )
