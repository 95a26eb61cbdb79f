"""A hierarchical variational autoencoder with two or more layers of latents.

    model:  z_L ~ p(z_L),  z_i ~ N(loc_i(z_{i+1}), scale_i(z_{i+1})^2),  x ~ p(x|z_1)
    guide:  z_L ~ q(z_L|x),  z_i ~ N proportional to p(z_i|z_{i+1}) N(z_i; loc_i(x), scale_i(x)^2)

The guide is that of Sønderby et al. (2016), eq. 9-11 and 15-17. Bottom-up, a chain of encoders
computes loc and scale of each layer from x. Top-down, they are combined with loc and scale of the
model, weighted by precision, so the guide shares the decoders of the model.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.arguments import ArgumentError, Count
from pyro_vae.distributions.parameters import MIN_LADDER_SCALE, loc_and_scale
from pyro_vae.models.base import (
    AnySchema,
    Likelihood,
    Network,
    Prior,
    call_part,
    expose_parameters,
    observed_or_drawn,
    sample_part,
)
from pyro_vae.models.with_schema import Unconditional
from pyro_vae.pairs.inputs import UserData, as_input
from pyro_vae.part import Part

# Returns the value of a layer, given its name and its distribution.
Choice: TypeAlias = Callable[[str, dist.TorchDistribution], Tensor]


class LadderEncoder(Part):
    """The bottom-up networks of a `LadderVAE`, from x to loc and scale of each layer.

    Called with x, it returns q(z_L|x), so a `VampPrior` of the top layer can share it.

    Args:
        encoders: Networks of the layers, from x upwards. The first takes x, each other one takes
            the output of the one before. Each has an `out_shape` of one dimension.
        latent_dims: Sizes of the layers, from x upwards.

    Raises:
        ValueError: If the numbers of encoders and sizes differ.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> from pyro_vae.networks import MLP
        >>> encoder = pv.LadderEncoder([MLP(5, [8], 8), MLP(8, [8], 8)], latent_dims=[3, 2])
        >>> vae = pv.LadderVAE(
        ...     prior=pv.priors.VampPrior(encoder, 10, event_shape=5),
        ...     decoders=[MLP(2, [8], 2 * 3)],
        ...     likelihood=pv.likelihoods.Bernoulli(MLP(3, [8], 5)),
        ...     encoders=encoder,
        ... )
        >>> vae.sample(4).shape
        torch.Size([4, 5])

    See also: `LadderVAE`, `priors.VampPrior`.
    """

    def __init__(self, encoders: Sequence[Network], latent_dims: Sequence[Count]) -> None:
        super().__init__()
        given: Sequence[Any] = encoders
        if len(encoders) != len(latent_dims):
            raise ArgumentError(
                f"expected one encoder for each of {len(latent_dims)} latent_dims, got "
                f"{len(encoders)}"
            )
        for i, encoder in enumerate(encoders):
            if len(getattr(encoder, "out_shape", ())) != 1:
                raise ArgumentError(
                    f"encoders[{i}], a {type(encoder).__name__}, needs an out_shape of one "
                    f"dimension, got {getattr(encoder, 'out_shape', None)}"
                )
        self.encoders = nn.ModuleList(encoders)
        self.heads = nn.ModuleList(
            nn.Linear(encoder.out_shape[0], 2 * size)
            for encoder, size in zip(given, latent_dims, strict=True)
        )

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z_L|x), batch_shape `(num_data,)`, event_shape that of the top layer."""
        return dist.Normal(*_bottom_up(self.encoders, self.heads, x)[-1]).to_event(1)


class LadderVAE(Unconditional):
    """A ladder variational autoencoder, with the latent sites `"z1"` (next to x) to `"zL"`.

    `encode` and `decode` are about the top layer z_L. `decode` passes through the layers below at
    their conditional means, and `reconstruct` and `impute` use all layers.

    Args:
        prior: Callable that returns p(z_L), as for `VAE`.
        decoders: Networks of the layers below the top, from the top down. Each maps
            `(*batch, latent_dim of the layer above)` to `(*batch, 2 * latent_dim)`: loc of
            p(z_i|z_{i+1}), and scale before a softplus.
        likelihood: Callable of z1 that returns p(x|z_1), as for `VAE`.
        encoders: Networks of the layers, from x upwards. The first takes x, each other one takes
            the output of the one before. Each has an `out_shape` of one dimension. Or a
            `LadderEncoder`, if the prior shares it.
        latent_dims: Sizes of the layers, from x upwards; None with a `LadderEncoder`.
        schema: Description of the data by `pyro_vae.data.open`, or None, as for `VAE`.

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
        >>> vae.encode(torch.zeros(4, 5)).mean.shape
        torch.Size([4, 2])

    See also: `suggest`, `LadderEncoder`, `VAE`, `MixedVAE`.
    """

    def __init__(
        self,
        prior: Prior,
        decoders: Sequence[Network],
        likelihood: Likelihood,
        encoders: Sequence[Network] | LadderEncoder,
        latent_dims: Sequence[Count] | None = None,
        schema: AnySchema = None,
    ) -> None:
        super().__init__()
        self.schema = schema
        if isinstance(encoders, LadderEncoder):
            num_encoders = num_sizes = len(encoders.encoders)
            if latent_dims is not None:
                raise ArgumentError(
                    f"a LadderEncoder has latent_dims; expected latent_dims=None, got {latent_dims}"
                )
        else:
            num_encoders, num_sizes = len(encoders), len(latent_dims or ())
        if not num_encoders == num_sizes == len(decoders) + 1 > 1:
            raise ArgumentError(
                "expected L latent_dims, L encoders and L - 1 decoders for L layers of latents, "
                f"L at least 2; got {num_sizes}, {num_encoders} and {len(decoders)}"
            )
        if not isinstance(encoders, LadderEncoder):
            encoders = LadderEncoder(encoders, latent_dims or ())
        self.model: LadderModel = LadderModel(prior, decoders, likelihood)
        self.guide: LadderGuide = LadderGuide(self.model, encoders)
        self.latent_site = f"z{num_sizes}"

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments `prior` and `likelihood`, and the program of the guide, by name."""
        return {
            "prior": self.model.prior,
            "likelihood": self.model.likelihood,
            "guide": self.guide,
        }

    def encode(self, x: UserData) -> dist.TorchDistribution:
        """Return q(z_L|x) of the top layer, batch_shape `(num_data,)`.

        Args:
            x: Data, shape `(num_data, *event)`; or a table, if the model has the schema of one.

        See also: `LadderVAE.decode`, `from_pyro_svi` for all layers.
        """
        return call_part("guide", self.guide.top, as_input(self, x))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(x|z_1) with each layer below the top at its mean given the layer above.

        Args:
            z: Latents of the top layer, shape `(*batch, latent_dim)`.

        See also: `LadderVAE.encode`, `LadderVAE.sample`.
        """
        return call_part("likelihood", self._below, as_input(self, z, "z"))

    def predictive(self, x: Tensor, *context: Tensor, num_samples: int) -> dist.TorchDistribution:
        """Return p(x'|z_1) at samples of the guide, batch_shape `(num_samples, num_data)`."""
        shapes = {self.latent_site: (num_samples,)}
        return self._given(x, lambda name, q: q.sample(shapes.get(name, ())))

    def sample_means(self, num_samples: int) -> Tensor:
        """Return E[x|z_1] at samples of the model, shape `(num_samples, *event)`."""
        z = self.model.prior().sample((num_samples,))
        return self.model.likelihood(self.model.descend(z, lambda _, p: p.sample())).mean

    def _at_means(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        return self._given(x, lambda _, q: q.mean)

    def _given(self, x: Tensor, choose: Choice) -> dist.TorchDistribution:
        """Return p(x'|z_1) with the layers of the guide at chosen values."""
        z = lambda x: self.guide.descend(x, choose)  # noqa: E731
        return call_part("guide", lambda x: self.model.likelihood(z(x)), x)

    def _below(self, z: Tensor) -> dist.TorchDistribution:
        return self.model.likelihood(self.model.descend(z, lambda _, p: p.mean))


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
            top = sample_part(f"z{len(self.decoders) + 1}", "prior", self.prior)
            z = self.descend(top, pyro.sample)
            return sample_part("x", "likelihood", self.likelihood, z, obs=observed_or_drawn(x))

    def descend(self, z: Tensor, choose: Choice) -> Tensor:
        """Return z_1 below a z_L, with each layer chosen given the layer above."""
        for layer, decoder in zip(range(len(self.decoders), 0, -1), self.decoders, strict=True):
            loc, scale = loc_and_scale(decoder(z), MIN_LADDER_SCALE)
            z = choose(f"z{layer}", dist.Normal(loc, scale).to_event(1))
        return z


class LadderGuide(nn.Module):
    """q(z_1, ..., z_L|x): a Pyro guide that shares the model's decoders."""

    def __init__(self, model: LadderModel, encoder: LadderEncoder) -> None:
        super().__init__()
        self.decoders = model.decoders
        self.encoders, self.heads = encoder.encoders, encoder.heads

    def forward(self, x: Tensor) -> Tensor:
        """Sample all layers for x of shape `(num_data, *event)` and return z_1."""
        expose_parameters(self, "guide")
        with pyro.plate("data", len(x), dim=-1):
            return self.descend(x, pyro.sample)

    def top(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z_L|x)."""
        return dist.Normal(*_bottom_up(self.encoders, self.heads, x)[-1]).to_event(1)

    def descend(self, x: Tensor, choose: Choice) -> Tensor:
        """Return z_1 of x, with each layer chosen given x and the layer above."""
        bottom_up = _bottom_up(self.encoders, self.heads, x)
        z = choose(f"z{len(self.heads)}", dist.Normal(*bottom_up.pop()).to_event(1))
        for decoder in self.decoders:
            layer = len(bottom_up)
            top_down = loc_and_scale(decoder(z), MIN_LADDER_SCALE)
            joined = _weighted_by_precision(bottom_up.pop(), top_down)
            z = choose(f"z{layer}", dist.Normal(*joined).to_event(1))
        return z


def _bottom_up(
    encoders: nn.ModuleList, heads: nn.ModuleList, features: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return loc and scale of each layer, from x upwards."""
    found = []
    for encoder, head in zip(encoders, heads, strict=True):
        features = encoder(features)
        found.append(loc_and_scale(head(features), MIN_LADDER_SCALE))
    return found


def _weighted_by_precision(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return loc and scale of the normalized product of two normal densities."""
    (loc1, scale1), (loc2, scale2) = one, other
    precision1, precision2 = scale1**-2, scale2**-2
    total = precision1 + precision2
    return (loc1 * precision1 + loc2 * precision2) / total, torch.rsqrt(total)
