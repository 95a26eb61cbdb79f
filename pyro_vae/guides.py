"""Guides: `guide(x)` returns q(z given x), the amortized approximate posterior.

Its batch_shape is that of the data and its event_shape `(latent_dim,)`. The encoder, a network
from x to the distribution's parameters, is an argument; how many outputs it needs for each latent
is in each guide's docstring. All but `Categorical` are reparameterized.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import StickBreakingTransform
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from pyro_vae.distributions import spherical
from pyro_vae.distributions.transforms import AffineAutoregressive, Reverse, TransformedDistribution
from pyro_vae.part import Part

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

Encoder = Callable[[Tensor], Tensor]

# Far below any posterior scale that matters, far above where float32 densities overflow.
MIN_SCALE = 1e-6
# Below it, draws from a Dirichlet distribution underflow to the simplex' corners in float32.
MIN_CONCENTRATION = 1e-2


class _Guide(Part):
    """A guide whose encoder's output is a vector of parameters."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder


class _LocationScale(_Guide):
    """A guide whose encoder gives a loc and a scale for each latent."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        _check_outputs(self, "2 * latent_dim", lambda size: size % 2 == 0)


class DiagonalNormal(_LocationScale):
    """q(z|x) = N(z; loc(x), diag scale(x)^2): Kingma & Welling (2013), eq. 9.

    The encoder's first half is `loc`, its second half is `scale` through a softplus, which grows
    linearly where the paper's exp(log variance / 2) explodes.

    Args:
        encoder: network from `(*batch, *event)` to `(*batch, 2 * latent_dim)`.

    Raises:
        ValueError: when the encoder's output size is odd.
    """

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        return dist.Normal(*_loc_and_scale(self.encoder(x))).to_event(1)


class Laplace(_LocationScale):
    """q(z|x) = prod_d Laplace(z_d; loc(x)_d, scale(x)_d), for posteriors with heavier tails.

    Args:
        encoder: network from `(*batch, *event)` to `(*batch, 2 * latent_dim)`.

    Raises:
        ValueError: when the encoder's output size is odd.
    """

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        return dist.Laplace(*_loc_and_scale(self.encoder(x))).to_event(1)


class FullNormal(_Guide):
    """q(z|x) = N(z; loc(x), L(x) L(x)'), with any covariance: exact for a linear-Gaussian model.

    The encoder's outputs are `loc`, then the diagonal of L through a softplus, then `latent_dim`
    times the entries below it, row by row: what couples the latents starts small. As the outputs
    are, it would be noise as wide as the prior, and training would stay far below a diagonal guide.

    Args:
        encoder: network from `(*batch, *event)` to
            `(*batch, 2 * latent_dim + latent_dim * (latent_dim - 1) / 2)`.

    Raises:
        ValueError: when the encoder's output size is no such number.
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
        """Return how many outputs the encoder needs for so many latents."""
        return 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        outputs = self.encoder(x)
        latent_dim = (math.isqrt(9 + 8 * outputs.shape[-1]) - 3) // 2
        loc, diagonal = outputs[..., :latent_dim], outputs[..., latent_dim : 2 * latent_dim]
        below = outputs[..., 2 * latent_dim :]
        return dist.MultivariateNormal(loc, scale_tril=_lower_triangle(diagonal, below))


class LowRankNormal(_Guide):
    """q(z|x) = N(z; loc(x), W(x) W(x)' + diag scale(x)^2), W of `rank` columns.

    The encoder's outputs are `loc`, then `scale` through a softplus, then `latent_dim` times W
    row by row, which starts small for the reason that `FullNormal` gives.

    Args:
        encoder: network from `(*batch, *event)` to `(*batch, (2 + rank) * latent_dim)`.
        rank: number of directions in which the latents vary together.

    Raises:
        ValueError: for a rank below 1, or when the encoder's output size is no multiple of
            2 + rank.
    """

    def __init__(self, encoder: Encoder, rank: int) -> None:
        super().__init__(encoder)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        _check_outputs(
            self, f"(2 + rank = {2 + rank}) * latent_dim", lambda size: size % (2 + rank) == 0
        )

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        outputs = self.encoder(x)
        latent_dim = outputs.shape[-1] // (2 + self.rank)
        loc, scale = _loc_and_scale(outputs[..., : 2 * latent_dim])
        factor = outputs[..., 2 * latent_dim :].unflatten(-1, (latent_dim, self.rank)) / latent_dim
        return dist.LowRankMultivariateNormal(loc, factor, scale.square())


class Flow(_Guide):
    """Inverse autoregressive flow: Kingma et al. (2016), "Improving Variational Inference".

    A draw from a diagonal normal goes through transforms, each z' = s z + (1 - s) m with the gate
    s in (0, 1) and m functions of the entries of z that come before, and of x (their eq. 14). The
    encoder's outputs are `loc` and `scale` of the normal, then the context h(x) of the transforms.

    To draw takes one pass, and so does to score the latest draws; to score other values, D passes.

    Args:
        encoder: network from `(*batch, *event)` to `(*batch, 2 * latent_dim + size of h)`.
        latent_dim: number of latent dimensions D, at least 2.
        num_transforms: how many transforms; between two, the order of the entries is reversed.
        hidden: sizes of the hidden layers of each transform's network, at least D; by default one
            layer of 10 D.

    Raises:
        ValueError: for a `latent_dim` below 2, no transform, or when the encoder has no
            `out_shape` or one that leaves nothing for h.
    """

    def __init__(
        self,
        encoder: Any,
        latent_dim: int,
        num_transforms: int = 2,
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__(encoder)
        if latent_dim < 2 or num_transforms < 1:
            raise ValueError(
                "Flow needs latent_dim of at least 2 and num_transforms of at least 1, got "
                f"{latent_dim} and {num_transforms}"
            )
        self.latent_dim = latent_dim
        (num_outputs,) = getattr(encoder, "out_shape", (0,))
        context_dim = num_outputs - 2 * latent_dim
        if context_dim < 1:
            raise ValueError(
                f"Flow needs an encoder with an out_shape of more than 2 * latent_dim = "
                f"{2 * latent_dim} outputs, the others being the context; got {num_outputs}"
            )
        sizes = list(hidden or [10 * latent_dim])
        order: Any = torch.arange(latent_dim)
        self.networks = nn.ModuleList(
            ConditionalAutoRegressiveNN(latent_dim, context_dim, sizes, permutation=order)
            for _ in range(num_transforms)
        )

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        outputs = self.encoder(x)
        loc, scale = _loc_and_scale(outputs[..., : 2 * self.latent_dim])
        context = outputs[..., 2 * self.latent_dim :]
        transforms: list[Any] = []
        for network in self.networks:
            transform = AffineAutoregressive(_Conditioned(network, context), stable=True)
            transforms += [transform, Reverse(cache_size=1)]
        return TransformedDistribution(dist.Normal(loc, scale).to_event(1), transforms[:-1])


class LogisticNormal(_Guide):
    """q(z|x) on the simplex: a normal vector pushed through stick-breaking.

    Args:
        encoder: network from `(*batch, *event)` to `(*batch, 2 * (latent_dim - 1))`.

    Raises:
        ValueError: when the encoder's output size is odd.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        _check_outputs(self, "2 * (latent_dim - 1)", lambda size: size % 2 == 0)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        normal = dist.Normal(*_loc_and_scale(self.encoder(x)))
        # The cache scores a draw by the normal variable that it came from, without rounding.
        return dist.TransformedDistribution(normal, [StickBreakingTransform(cache_size=1)])


class Dirichlet(_Guide):
    """q(z|x) = Dirichlet(z; concentration(x)), on the simplex.

    Args:
        encoder: network from `(*batch, *event)` to `(*batch, latent_dim)`.
    """

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        return dist.Dirichlet(softplus(self.encoder(x)) + MIN_CONCENTRATION)


class PowerSpherical(_Guide):
    """q(z|x) around a direction loc(x) on the sphere: De Cao & Aziz (2020).

    It stands where Davidson et al. (2018) have a von Mises-Fisher guide. The encoder's outputs are
    the direction, of any length and from the first unit vector, then the concentration through a
    softplus.

    Args:
        encoder: network from `(*batch, *event)` to `(*batch, latent_dim + 1)`.
    """

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        outputs = self.encoder(x)
        direction, concentration = outputs[..., :-1], softplus(outputs[..., -1])
        # Off the origin, where a new encoder may well be, at x = 0 for instance.
        direction = direction + torch.eye(direction.shape[-1])[0].to(direction)
        return spherical.PowerSpherical(normalize(direction, dim=-1), concentration)


class Categorical(_Guide):
    """q(z|x) over one-hot codes; not reparameterized.

    `fit(vae, x, objective=TraceEnum_ELBO())` sums over the codes, and gradients are exact;
    otherwise one is drawn, and gradients are score-function estimates, of large variance.

    Args:
        encoder: network from `(*batch, *event)` to logits, `(*batch, latent_dim)`.
    """

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), batch_shape that of x, event_shape `(latent_dim,)`."""
        return dist.OneHotCategorical(logits=self.encoder(x))


class _Conditioned:
    """An autoregressive network with its context given, for values that broadcast with that."""

    def __init__(self, network: Any, context: Tensor) -> None:
        self.network, self.context = network, context
        self.permutation = network.permutation

    def __call__(self, z: Tensor) -> Any:
        batch = torch.broadcast_shapes(z.shape[:-1], self.context.shape[:-1])
        return self.network(z.expand(*batch, -1), self.context)


def _loc_and_scale(outputs: Tensor) -> tuple[Tensor, Tensor]:
    loc, raw_scale = outputs.chunk(2, dim=-1)
    return loc, softplus(raw_scale) + MIN_SCALE


def _lower_triangle(diagonal: Tensor, below: Tensor) -> Tensor:
    latent_dim = diagonal.shape[-1]
    rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1)
    triangle = (softplus(diagonal) + MIN_SCALE).diag_embed()
    triangle[..., rows, columns] = below / latent_dim
    return triangle


def _check_outputs(guide: _Guide, needed: str, fits: Callable[[int], bool]) -> None:
    """Raise `ValueError` where the encoder tells its output size and it does not fit."""
    out_shape = getattr(guide.encoder, "out_shape", None)
    if out_shape is not None and (len(out_shape) != 1 or not fits(out_shape[0])):
        raise ValueError(
            f"{type(guide).__name__} needs an encoder whose output is ({needed},), got "
            f"{tuple(out_shape)}"
        )
