"""A hierarchical variational autoencoder with two or more layers of latents.

    model:  z_L ~ p(z_L),  z_i ~ N(loc_i(z_{i+1}), scale_i(z_{i+1})^2),  x ~ p(x|z_1)
    guide:  z_L ~ q(z_L|x),  z_i ~ N proportional to p(z_i|z_{i+1}) N(z_i; loc_i(x), scale_i(x)^2)

The guide is that of Sønderby et al. (2016), eq. 9-11 and 15-17. Bottom-up, a chain of encoders
computes loc and scale of each layer from x. Top-down, they are combined with loc and scale of the
model, weighted by precision, so the guide shares the decoders of the model.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.arguments import ArgumentError, Count
from pyro_vae.distributions.parameters import MIN_LADDER_SCALE, loc_and_scale
from pyro_vae.models.base import (
    Autoencoder,
    Likelihood,
    Network,
    Prior,
    expect_distribution,
    expose_parameters,
    observed_or_drawn,
)


class LadderVAE(Autoencoder):
    """A ladder variational autoencoder, with the latent sites `"z1"` (next to x) to `"zL"`.

    Args:
        prior: Callable that returns p(z_L), as for `VAE`.
        decoders: Networks of the layers below the top, from the top down. Each maps
            `(*batch, latent_dim of the layer above)` to `(*batch, 2 * latent_dim)`: loc of
            p(z_i|z_{i+1}), and scale before a softplus.
        likelihood: Callable of z1 that returns p(x|z_1), as for `VAE`.
        encoders: Networks of the layers, from x upwards. The first takes x, each other one takes
            the output of the one before. Each has an `out_shape` of one dimension.
        latent_dims: Sizes of the layers, from x upwards.

    Raises:
        ValueError: If the numbers of decoders, encoders and sizes do not match.

    Example:
        >>> import torch
        >>> from pyro_vae import LadderVAE, likelihoods, priors
        >>> from pyro_vae.networks import MLP
        >>> vae = LadderVAE(
        ...     prior=priors.StandardNormal(2),
        ...     decoders=[MLP(2, [8], 2 * 3)],
        ...     likelihood=likelihoods.Bernoulli(MLP(3, [8], 5)),
        ...     encoders=[MLP(5, [8], 8), MLP(8, [8], 8)],
        ...     latent_dims=[3, 2],
        ... )
        >>> sorted(vae.check(torch.zeros(4, 5)).guide)
        ['z1', 'z2']

    See also: `VAE`, `MixedVAE`.
    """

    def __init__(
        self,
        prior: Prior,
        decoders: Sequence[Network],
        likelihood: Likelihood,
        encoders: Sequence[Network],
        latent_dims: Sequence[Count],
    ) -> None:
        super().__init__()
        if not len(encoders) == len(latent_dims) == len(decoders) + 1 > 1:
            raise ArgumentError(
                "expected L latent_dims, L encoders and L - 1 decoders for L layers of latents, "
                f"L at least 2; got {len(latent_dims)}, {len(encoders)} and {len(decoders)}"
            )
        for i, encoder in enumerate(encoders):
            if len(getattr(encoder, "out_shape", ())) != 1:
                raise ArgumentError(
                    f"encoders[{i}], a {type(encoder).__name__}, needs an out_shape of one "
                    f"dimension, got {getattr(encoder, 'out_shape', None)}"
                )
        self.model = LadderModel(prior, decoders, likelihood)
        self.guide = LadderGuide(self.model, encoders, latent_dims)


class LadderModel(nn.Module):
    """p(x, z_1, ..., z_L): a Pyro model."""

    def __init__(self, prior: Prior, decoders: Sequence[nn.Module], likelihood: Likelihood) -> None:
        super().__init__()
        self.prior, self.likelihood = prior, likelihood
        self.decoders = nn.ModuleList(decoders)

    def forward(self, x: Tensor | None = None, *, num_data: int = 1) -> Tensor:
        """Run the model.

        Args:
            x: Observations, shape `(num_data, *event)`. If `None`, x is sampled.
            num_data: Number of samples of x, used if x is `None`.

        Returns:
            The value of x, shape `(num_data, *event)`.
        """
        expose_parameters(self, "model")
        with pyro.plate("data", num_data if x is None else len(x), dim=-1):
            prior = expect_distribution("prior", self.prior, self.prior())
            z = pyro.sample(f"z{len(self.decoders) + 1}", prior)
            for layer, decoder in zip(range(len(self.decoders), 0, -1), self.decoders, strict=True):
                loc, scale = loc_and_scale(decoder(z), MIN_LADDER_SCALE)
                z = pyro.sample(f"z{layer}", dist.Normal(loc, scale).to_event(1))
            given_z = expect_distribution("likelihood", self.likelihood, self.likelihood(z))
            return pyro.sample("x", given_z, obs=observed_or_drawn(x))


class LadderGuide(nn.Module):
    """q(z_1, ..., z_L|x): a Pyro guide that shares the model's decoders."""

    def __init__(
        self, model: LadderModel, encoders: Sequence[Any], latent_dims: Sequence[int]
    ) -> None:
        super().__init__()
        self.decoders = model.decoders
        self.encoders = nn.ModuleList(encoders)
        self.heads = nn.ModuleList(
            nn.Linear(encoder.out_shape[0], 2 * size)
            for encoder, size in zip(encoders, latent_dims, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Sample all layers for x of shape `(num_data, *event)` and return z_1."""
        expose_parameters(self, "guide")
        bottom_up, features = [], x
        for encoder, head in zip(self.encoders, self.heads, strict=True):
            features = encoder(features)
            bottom_up.append(loc_and_scale(head(features), MIN_LADDER_SCALE))
        with pyro.plate("data", len(x), dim=-1):
            top = dist.Normal(*bottom_up.pop())
            z = pyro.sample(f"z{len(self.heads)}", top.to_event(1))
            for decoder in self.decoders:
                layer = len(bottom_up)
                top_down = loc_and_scale(decoder(z), MIN_LADDER_SCALE)
                joined = _weighted_by_precision(bottom_up.pop(), top_down)
                z = pyro.sample(f"z{layer}", dist.Normal(*joined).to_event(1))
            return z


def _weighted_by_precision(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return loc and scale of the normalized product of two normal densities."""
    (loc1, scale1), (loc2, scale2) = one, other
    precision1, precision2 = scale1**-2, scale2**-2
    total = precision1 + precision2
    return (loc1 * precision1 + loc2 * precision2) / total, torch.rsqrt(total)
