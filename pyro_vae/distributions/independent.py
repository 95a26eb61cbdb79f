"""Distributions inside `Independent` and other wrappers."""

from typing import Any

import torch.distributions


def unwrap_independent(distribution: Any, *wrappers: type) -> Any:
    """Return the distribution inside `Independent`, the class behind `.to_event()`.

    Args:
        distribution: Torch or Pyro distribution.
        wrappers: Other wrapper classes to strip, each with an attribute `base_dist`.
    """
    kinds: Any = (torch.distributions.Independent, *wrappers)
    while isinstance(distribution, kinds):
        distribution = distribution.base_dist
    return distribution


def is_standard_normal(distribution: Any) -> bool:
    """Return whether a distribution is N(0, I)."""
    entries = unwrap_independent(distribution)
    return isinstance(entries, torch.distributions.Normal) and bool(
        (entries.loc == 0).all() and (entries.scale == 1).all()
    )
