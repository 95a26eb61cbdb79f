"""Distributions inside `Independent` and other wrappers."""

from typing import Protocol, cast

from pyro.distributions import TorchDistribution
from torch.distributions import Distribution, Independent, Normal


class Wrapper(Protocol):
    """A distribution that is defined by another one."""

    base_dist: Distribution


def unwrap_independent(distribution: Distribution, *wrappers: type[Wrapper]) -> TorchDistribution:
    """Return the distribution inside `Independent`, the class behind `.to_event()`.

    Args:
        distribution: Torch or Pyro distribution.
        wrappers: Other wrapper classes to strip, each with an attribute `base_dist`.
    """
    kinds: tuple[type[Wrapper], ...] = (Independent, *wrappers)
    while isinstance(distribution, kinds):
        distribution = distribution.base_dist
    return cast(TorchDistribution, distribution)


def is_standard_normal(distribution: Distribution) -> bool:
    """Return whether a distribution is N(0, I)."""
    entries = unwrap_independent(distribution)
    return isinstance(entries, Normal) and bool(
        (entries.loc == 0).all() and (entries.scale == 1).all()
    )
