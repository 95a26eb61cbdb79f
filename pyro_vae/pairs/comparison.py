"""Compare the log densities of two runs of the same programs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_vae.pairs.sites import SiteDraws, Sites

# Tolerance for log densities of the same samples: float32 matrix products of different shapes round
# differently.
RTOL, ATOL = 1e-4, 1e-3


def latents_of(sites: Sites) -> Sites:
    """Return the sites that are not observed."""
    return {name: site for name, site in sites.items() if not site.observed}


def same_densities(
    runs: Sequence[Sites], others: Sequence[Sites], part: Callable[[Tensor, SiteDraws], Tensor]
) -> bool:
    """Return whether log densities and computed values of two runs agree.

    Args:
        runs: Sites of the programs in one run.
        others: Sites of the programs in another run, with fewer samples or data.
        part: Function of values of the first run and their site. It returns the part of the values
            that belongs to the samples and data of the other run.
    """
    return all(
        _agree(part(site.log_prob, site), other[name].log_prob)
        and (not site.computed or _agree(part(site.value, site), other[name].value))
        for sites, other in zip(runs, others, strict=True)
        for name, site in sites.items()
    )


def _agree(one: Tensor, other: Tensor) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    return one.shape == other.shape and torch.allclose(
        one, other, rtol=RTOL, atol=ATOL, equal_nan=True
    )
