"""Guides: `guide(x)` returns q(z|x), the amortized approximate posterior.

The batch_shape is that of the data and the event_shape is `(latent_dim,)`. The encoder, a network
from x to the parameters of the distribution, is an argument. The docstring of each guide states how
many outputs the encoder needs. All guides except `Categorical` are reparameterized.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.nn.functional import normalize, softplus

from pyro_vae import distributions
from pyro_vae.arguments import ArgumentError, Count, Whole
from pyro_vae.distributions.autoregressive import GatedAutoregressive, MaskedNetwork
from pyro_vae.distributions.parameters import MIN_CONCENTRATION, MIN_SCALE, loc_and_scale
from pyro_vae.distributions.transforms import (
    Reverse,
    StickBreaking,
    TransformedDistribution,
)
from pyro_vae.part import Part, Role

__all__ = [
    "Categorical",
    "DiagonalNormal",
    "Dirichlet",
    "Flow",
    "FullNormal",
    "Laplace",
    "LogisticNormal",
    "LowRankNormal",
    "PowerSpherical",
]

Encoder: TypeAlias = Annotated[Callable[[Tensor], Tensor], Role("network", ("x",))]


class _Guide(Part):
    """A guide with an encoder that returns a vector of parameters."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder


class _LocationScale(_Guide):
    """A guide with an encoder that returns a loc and a scale for each latent."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        _check_outputs(self, "2 * latent_dim", lambda size: size % 2 == 0)


class DiagonalNormal(_LocationScale):
    """q(z|x) = N(z; loc(x), diag scale(x)^2): Kingma & Welling (2013), eq. 9.

    The first half of the encoder outputs is loc. A softplus maps the second half to scale: it grows
    linearly, but the exp(log variance / 2) of the paper grows exponentially.

    Args:
        encoder: Network from `(*batch, *event)` to `(*batch, 2 * latent_dim)`.

    Raises:
        ValueError: If the output size of the encoder is odd.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guide = guides.DiagonalNormal(networks.MLP(5, [8], 2 * 3))
        >>> guide(torch.zeros(4, 5)).rsample().shape
        torch.Size([4, 3])

    See also: `FullNormal`, `LowRankNormal`, `Flow`, `priors.StandardNormal`.
    """

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        return dist.Normal(*loc_and_scale(self.encoder(x, *context))).to_event(1)


class Laplace(_LocationScale):
    """q(z|x) = prod_d Laplace(z_d; loc(x)_d, scale(x)_d), for posteriors with heavier tails.

    Args:
        encoder: Network from `(*batch, *event)` to `(*batch, 2 * latent_dim)`.

    Raises:
        ValueError: If the output size of the encoder is odd.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guide = guides.Laplace(networks.MLP(5, [8], 2 * 3))
        >>> guide(torch.zeros(4, 5)).rsample().shape
        torch.Size([4, 3])

    See also: `DiagonalNormal`, `priors.Laplace`.
    """

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        return dist.Laplace(*loc_and_scale(self.encoder(x, *context))).to_event(1)


class FullNormal(_Guide):
    """q(z|x) = N(z; loc(x), L(x) L(x)'), with a full covariance: exact for linear-Gaussian models.

    The encoder outputs are loc, the diagonal of L before a softplus, and `latent_dim` times the
    entries below the diagonal, row by row. The factor `latent_dim` makes the initial correlations
    small. Without it they are noise as wide as the prior, and training ends far below a diagonal
    guide.

    Args:
        encoder: Network from `(*batch, *event)` to
            `(*batch, 2 * latent_dim + latent_dim * (latent_dim - 1) / 2)`.

    Raises:
        ValueError: If the output size of the encoder has another form.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guide = guides.FullNormal(networks.MLP(5, [8], guides.FullNormal.num_outputs(3)))
        >>> guide(torch.zeros(4, 5)).covariance_matrix.shape
        torch.Size([4, 3, 3])

    See also: `DiagonalNormal`, `LowRankNormal`, `Flow`.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        _check_outputs(
            self,
            "2 * latent_dim + latent_dim * (latent_dim - 1) / 2",
            lambda size: size in map(self.num_outputs, range(1, size)),
        )

    @staticmethod
    def num_outputs(latent_dim: int) -> int:
        """Return the number of encoder outputs for `latent_dim` latents."""
        return 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        outputs = self.encoder(x, *context)
        latent_dim = (math.isqrt(9 + 8 * outputs.shape[-1]) - 3) // 2
        loc, diagonal = outputs[..., :latent_dim], outputs[..., latent_dim : 2 * latent_dim]
        below = outputs[..., 2 * latent_dim :]
        return dist.MultivariateNormal(loc, scale_tril=_lower_triangle(diagonal, below))


class LowRankNormal(_Guide):
    """q(z|x) = N(z; loc(x), W(x) W(x)' + diag scale(x)^2), with W of `rank` columns.

    The encoder outputs are loc, scale before a softplus, and `latent_dim` times W, row by row. See
    `FullNormal` for the factor `latent_dim`.

    Args:
        encoder: Network from `(*batch, *event)` to `(*batch, (2 + rank) * latent_dim)`.
        rank: Number of columns of W.

    Raises:
        ValueError: If `rank` is below 1, or the output size of the encoder is not a multiple of
            2 + rank.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guide = guides.LowRankNormal(networks.MLP(5, [8], (2 + 1) * 3), rank=1)
        >>> guide(torch.zeros(4, 5)).rsample().shape
        torch.Size([4, 3])

    See also: `DiagonalNormal`, `FullNormal`.
    """

    def __init__(self, encoder: Encoder, rank: Count) -> None:
        super().__init__(encoder)
        self.rank = rank
        _check_outputs(
            self, f"(2 + rank = {2 + rank}) * latent_dim", lambda size: size % (2 + rank) == 0
        )

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        outputs = self.encoder(x, *context)
        latent_dim = outputs.shape[-1] // (2 + self.rank)
        loc, scale = loc_and_scale(outputs[..., : 2 * latent_dim])
        factor = outputs[..., 2 * latent_dim :].unflatten(-1, (latent_dim, self.rank)) / latent_dim
        return distributions.LowRankNormal(loc, factor, scale.square())


class Flow(_Guide):
    """Inverse autoregressive flow: Kingma et al. (2016), "Improving Variational Inference".

    A sample of a diagonal normal passes through transforms z' = s z + (1 - s) m (eq. 14). The gate
    s in (0, 1) and m are functions of x and of the entries of z that come before. The encoder
    outputs are loc and scale of the normal, and the context h(x) of the transforms.

    Sampling takes one pass, and so does `log_prob` of the latest samples. `log_prob` of any other
    value computes one entry after the other, in D small steps at the arithmetic of one pass.

    Args:
        encoder: Network from `(*batch, *event)` to `(*batch, 2 * latent_dim + size of h)`, with
            the attribute `out_shape`.
        latent_dim: Number of latent dimensions D, at least 2.
        num_transforms: Number of transforms. The order of the entries is reversed between two.
        hidden: Sizes of the hidden layers in the network of each transform, at least D. The default
            is one layer of 10 D.

    Raises:
        ValueError: If `latent_dim` is below 2, there is no transform, or the encoder has no
            `out_shape` or no outputs for h.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guide = guides.Flow(networks.MLP(5, [8], 2 * 3 + 4), latent_dim=3)
        >>> guide(torch.zeros(4, 5)).rsample().shape
        torch.Size([4, 3])

    See also: `FullNormal`, `DiagonalNormal`, `priors.Flow`.
    """

    def __init__(
        self,
        encoder: Encoder,
        latent_dim: Annotated[int, Whole(2)],
        num_transforms: Count = 2,
        hidden: Sequence[Count] | None = None,
    ) -> None:
        super().__init__(encoder)
        self.latent_dim = latent_dim
        out_shape = getattr(encoder, "out_shape", None) or (0,)
        num_outputs = out_shape[0] if len(out_shape) == 1 else 0
        context_dim = num_outputs - 2 * latent_dim
        if context_dim < 1:
            raise ArgumentError(
                f"Flow needs an encoder with an out_shape of more than 2 * latent_dim = "
                f"{2 * latent_dim} outputs, of which the rest is the context; got {num_outputs}"
            )
        sizes, order = hidden or [10 * latent_dim], torch.arange(latent_dim)
        self.networks = nn.ModuleList(
            MaskedNetwork(context_dim, sizes, order) for _ in range(num_transforms)
        )

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        outputs = self.encoder(x, *context)
        loc, scale = loc_and_scale(outputs[..., : 2 * self.latent_dim])
        hidden = outputs[..., 2 * self.latent_dim :]
        transforms: list[Transform] = []
        for network in self.networks:
            assert isinstance(network, MaskedNetwork)
            transforms += [GatedAutoregressive(network, hidden), Reverse(cache_size=1)]
        return TransformedDistribution(dist.Normal(loc, scale).to_event(1), transforms[:-1])


class LogisticNormal(_Guide):
    """q(z|x) on the simplex: a diagonal normal distribution mapped by stick-breaking.

    Args:
        encoder: Network from `(*batch, *event)` to `(*batch, 2 * (latent_dim - 1))`.

    Raises:
        ValueError: If the output size of the encoder is odd.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guide = guides.LogisticNormal(networks.MLP(5, [8], 2 * (3 - 1)))
        >>> guide(torch.zeros(4, 5)).rsample().shape
        torch.Size([4, 3])

    See also: `Dirichlet`, `priors.LogisticNormal`, `priors.Dirichlet`.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        _check_outputs(self, "2 * (latent_dim - 1)", lambda size: size % 2 == 0)

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        normal = dist.Normal(*loc_and_scale(self.encoder(x, *context)))
        # With the cache, log_prob of a sample uses the normal variable itself, without rounding.
        return dist.TransformedDistribution(normal, [StickBreaking(cache_size=1)])


class Dirichlet(_Guide):
    """q(z|x) = Dirichlet(z; concentration(x)), on the simplex.

    Args:
        encoder: Network from `(*batch, *event)` to `(*batch, latent_dim)`.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guides.Dirichlet(networks.MLP(5, [8], 3))(torch.zeros(4, 5)).rsample().shape
        torch.Size([4, 3])

    See also: `LogisticNormal`, `priors.Dirichlet`.
    """

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        return distributions.Dirichlet(softplus(self.encoder(x, *context)) + MIN_CONCENTRATION)


class PowerSpherical(_Guide):
    """q(z|x) around a direction loc(x) on the unit sphere: De Cao & Aziz (2020).

    It replaces the von Mises-Fisher guide of Davidson et al. (2018). The encoder outputs are the
    direction, of any length and relative to the first unit vector, and the concentration before a
    softplus.

    Args:
        encoder: Network from `(*batch, *event)` to `(*batch, latent_dim + 1)`.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guides.PowerSpherical(networks.MLP(5, [8], 3 + 1))(torch.zeros(4, 5)).rsample().shape
        torch.Size([4, 3])

    See also: `priors.HypersphericalUniform`.
    """

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        outputs = self.encoder(x, *context)
        direction, concentration = outputs[..., :-1], softplus(outputs[..., -1])
        # Shift away from the origin. A new encoder may return zeros, for example at x = 0.
        direction = direction + torch.eye(direction.shape[-1])[0].to(direction)
        return distributions.PowerSpherical(normalize(direction, dim=-1), concentration)


class Categorical(_Guide):
    """q(z|x) over one-hot codes, not reparameterized.

    With `fit(vae, x, objective=TraceEnum_ELBO())` Pyro sums over the codes and gradients are exact.
    With other objectives one code is sampled, and gradients are score-function estimates of large
    variance.

    Args:
        encoder: Network from `(*batch, *event)` to logits, `(*batch, latent_dim)`.

    Example:
        >>> import torch
        >>> from pyro_vae import guides, networks
        >>> guides.Categorical(networks.MLP(5, [8], 3))(torch.zeros(4, 5)).sample().shape
        torch.Size([4, 3])

    See also: `priors.Categorical`, `MixedVAE`.
    """

    def forward(self, x: Tensor, *context: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        return dist.OneHotCategorical(logits=self.encoder(x, *context))


def _lower_triangle(diagonal: Tensor, below: Tensor) -> Tensor:
    latent_dim = diagonal.shape[-1]
    rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1)
    triangle = (softplus(diagonal) + MIN_SCALE).diag_embed()
    triangle[..., rows, columns] = below / latent_dim
    return triangle


def _check_outputs(guide: _Guide, needed: str, fits: Callable[[int], bool]) -> None:
    """Raise `ValueError` if the encoder has an `out_shape` that does not fit."""
    out_shape = getattr(guide.encoder, "out_shape", None)
    if out_shape is not None and (len(out_shape) != 1 or not fits(out_shape[0])):
        raise ArgumentError(
            f"{type(guide).__name__} needs an encoder whose output is ({needed},), got "
            f"{tuple(out_shape)}"
        )
