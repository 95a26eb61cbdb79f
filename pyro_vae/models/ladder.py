"""A hierarchical variational autoencoder with two or more layers of latents.

    model:  z_L ~ p(z_L),  z_i ~ N(loc_i(z_{i+1}), scale_i(z_{i+1})^2),  x ~ p(x|z_1)
    guide:  z_L ~ q(z_L|x),  z_i ~ N that joins p(z_i|z_{i+1}) with what x says of z_i

The guide is that of the ladder network, Sønderby et al. (2016), eq. 9-11 and 15-17: on the way up a
chain of encoders reads off x, for each layer, a loc and a scale; on the way down they are combined
with the model's own, weighted by precision. So the guide need not learn again what the model knows.
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.models.base import (
    Autoencoder,
    Likelihood,
    Prior,
    expose_parameters,
    observed_or_drawn,
)

MIN_SCALE = 1e-4


class LadderVAE(Autoencoder):
    """A ladder variational autoencoder, with the latent sites `"z1"` (next to x) to `"zL"`.

    Args:
        prior: `prior()` returns p(z_L), as for `VAE`.
        decoders: one network for each layer below the top, from the top down: from
            `(*batch, latent_dim of the layer above)` to `(*batch, 2 * latent_dim)`, the loc and,
            before a softplus, the scale of p(z_i|z_{i+1}).
        likelihood: `likelihood(z1)` returns p(x|z_1), as for `VAE`.
        encoders: one network for each layer, from x upwards: the first takes x, each other the
            output of the one before.
        latent_dims: sizes of the layers, from x upwards.

    Raises:
        ValueError: when their numbers do not fit each other.
    """

    def __init__(
        self,
        prior: Prior,
        decoders: Sequence[nn.Module],
        likelihood: Likelihood,
        encoders: Sequence[Any],
        latent_dims: Sequence[int],
    ) -> None:
        super().__init__()
        if not len(encoders) == len(latent_dims) == len(decoders) + 1 > 1:
            raise ValueError(
                "L layers of latents, at least 2, need L latent_dims, L encoders and L - 1 "
                f"decoders, got {len(latent_dims)}, {len(encoders)} and {len(decoders)}"
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
        """Observe x, of shape `(num_data, *event)`; without x, draw `num_data` of them."""
        expose_parameters(self, "model")
        with pyro.plate("data", num_data if x is None else len(x), dim=-1):
            z = pyro.sample(f"z{len(self.decoders) + 1}", self.prior())
            for layer, decoder in zip(range(len(self.decoders), 0, -1), self.decoders, strict=True):
                z = pyro.sample(f"z{layer}", dist.Normal(*_loc_and_scale(decoder(z))).to_event(1))
            return pyro.sample("x", self.likelihood(z), obs=observed_or_drawn(x))


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
        """Draw all layers for x of shape `(num_data, *event)`; return z_1."""
        expose_parameters(self, "guide")
        seen, features = [], x
        for encoder, head in zip(self.encoders, self.heads, strict=True):
            features = encoder(features)
            seen.append(_loc_and_scale(head(features)))
        with pyro.plate("data", len(x), dim=-1):
            top = dist.Normal(*seen.pop())
            z = pyro.sample(f"z{len(self.heads)}", top.to_event(1))
            for decoder in self.decoders:
                layer = len(seen)
                joined = _weighted_by_precision(seen.pop(), _loc_and_scale(decoder(z)))
                z = pyro.sample(f"z{layer}", dist.Normal(*joined).to_event(1))
            return z


def _loc_and_scale(outputs: Tensor) -> tuple[Tensor, Tensor]:
    loc, raw_scale = outputs.chunk(2, dim=-1)
    return loc, softplus(raw_scale) + MIN_SCALE


def _weighted_by_precision(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return loc and scale of the normalized product of two normal densities."""
    (loc1, scale1), (loc2, scale2) = one, other
    precision1, precision2 = scale1**-2, scale2**-2
    total = precision1 + precision2
    return (loc1 * precision1 + loc2 * precision2) / total, torch.rsqrt(total)
