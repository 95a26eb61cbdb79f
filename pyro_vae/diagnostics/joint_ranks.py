"""Statistics of all latents of a datum together, to rank the truth among posterior samples.

If z* ~ p(z), x ~ p(x|z*) and z ~ p(z|x), then z* and z have the same distribution given x. The rank
of s(z*, x) among the values s(z, x) of L samples is therefore uniform on 0..L for any statistic s
(Modrak et al. 2023). Two statistics:

- the density of the posterior. Its rank gives the expected coverage of highest density regions;
- the distance of z from a random point that does not depend on z* (TARP, Lemos et al. 2023).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.pairs.sampler import Sampler

PRIOR_DRAWS = 256  # of two data, for the scales of the latents


class Reference:
    """Random points of the prior, and distances from them in units of the prior.

    Args:
        sampler: Sampler of the pair.
        template: Data of the shape to simulate.
    """

    def __init__(self, sampler: Sampler, template: tuple[Tensor, ...]) -> None:
        self.sampler = sampler
        few = tuple(rows[:2] for rows in template)
        points = _flat(sampler.from_prior(few, PRIOR_DRAWS)).flatten(0, 1)
        self.scale = points.std(0).clamp(min=1e-30)

    def distances(
        self, batch: tuple[Tensor, ...], truth: Mapping[str, Tensor], draws: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return distances from a random point: of the truth, `(data,)`, and of the draws."""
        points = _flat(self.sampler.from_prior(batch, 1))
        names = list(self.sampler.programs.local_latents)
        ends = ({n: truth[n][None] for n in names}, {n: draws[n] for n in names})
        one, others = (((_flat(z) - points) / self.scale).norm(dim=-1) for z in ends)
        return one[0], others


def log_densities(
    sampler: Sampler,
    batch: tuple[Tensor, ...],
    truth: Mapping[str, Tensor],
    draws: Mapping[str, Tensor],
    *,
    exact: bool,
) -> tuple[Tensor, Tensor]:
    """Return log densities of the posterior: of the truth, `(data,)`, and of the draws.

    Args:
        sampler: Sampler of the pair.
        batch: Data.
        truth: Latents, shape `(data, *event)`.
        draws: Latents, shape `(samples, data, *event)`.
        exact: Whether to return log p(x, z), that of the posterior up to a constant, or the density
            of the guide.
    """

    def at(latents: Mapping[str, Tensor]) -> Tensor:
        if not exact:
            return sampler.guide_at(batch, latents)
        log_prior, log_likelihood = sampler.model_at(batch, latents)
        return log_prior + log_likelihood

    return at({name: value[None] for name, value in truth.items()})[0], at(draws)


def _flat(latents: Mapping[str, Tensor]) -> Tensor:
    """Return latents `(samples, data, *event)` as one tensor `(samples, data, dim)`."""
    return torch.cat([z.double().reshape(*z.shape[:2], -1) for z in latents.values()], dim=-1)
