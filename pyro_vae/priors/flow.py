"""A normalizing flow as a prior."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.distributions.transforms import (
    Reverse,
    TransformedDistribution,
    clear_caches,
    transform_named,
)
from pyro_vae.part import Part

# Keeps a learned scale away from 0, where the density has no bound.
MIN_SCALE = 1e-6


class Flow(Part):
    """A normalizing flow: transforms T take z to standard normal noise.

    p(z) = N(T(z); 0, I) |det dT/dz|, T = T_n after ... after T_1, with the order of the latents
    reversed between two transforms. To score z takes one pass, to draw it the inverse of T: so an
    `"affine_autoregressive"` T makes a masked autoregressive flow (Papamakarios et al. 2017),
    which draws one latent after the other; a `"spline_coupling"` one (Durkan et al. 2019) draws
    in one pass, too.

    Args:
        latent_dim: number of latent dimensions, at least 2.
        transforms: names (keys of `pyro_vae.distributions.transforms.TRANSFORMS`), or transforms of
            vectors from Pyro or your own, which train but cannot be saved.

    Raises:
        ValueError: for a `latent_dim` below 2, an unknown name, or no transform.
    """

    zero: Tensor
    one: Tensor

    def __init__(
        self,
        latent_dim: int,
        transforms: Sequence[Any] = ("spline_coupling", "affine_autoregressive"),
    ) -> None:
        super().__init__()
        check_at_least("latent_dim", latent_dim, 2)
        if not transforms:
            raise ValueError("Flow needs at least one transform, got none")
        built = [transform_named(t, latent_dim) if isinstance(t, str) else t for t in transforms]
        self.transforms = [built[0]]
        for transform in built[1:]:
            self.transforms += [Reverse(), transform]
        self.learned = nn.ModuleList(t for t in built if isinstance(t, nn.Module))
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        clear_caches(self)
        noise = dist.Normal(self.zero, self.one).to_event(1)
        return TransformedDistribution(noise, [t.inv for t in reversed(self.transforms)])

    def __getstate__(self) -> Any:
        clear_caches(self)
        return super().__getstate__()


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise `ValueError` for a value below the least."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
