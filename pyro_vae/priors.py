"""Priors: `prior()` returns p(z), with batch_shape `()` and event_shape `(latent_dim,)`."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.parts import Part


class StandardNormal(Part):
    """p(z) = N(z; 0, I): the centred isotropic Gaussian of Kingma & Welling (2013), section 3.

    Args:
        latent_dim: number of latent dimensions; `event_shape` is `(latent_dim,)`.

    Raises:
        ValueError: for a `latent_dim` below 1.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        self.latent_dim = latent_dim
        # Buffers, so that the distribution lives on the module's device and in its float type.
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.Normal(self.zero, self.one).to_event(1)
