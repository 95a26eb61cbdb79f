"""Reparameterized distributions on the unit sphere."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import normalize


class PowerSpherical(dist.TorchDistribution):
    """The power spherical density on the unit sphere in d dimensions: De Cao & Aziz (2020).

        p(x) = (1 + loc'x)^κ / N,   N = 2^(a+b) π^b Γ(a) / Γ(a+b),   a = b + κ,   b = (d-1)/2

    with respect to the area of the sphere. It resembles a von Mises-Fisher density, but the
    normalizer and the sampler are in closed form. κ = 0 is the uniform distribution.

    Args:
        loc: Unit vectors, shape `(*batch_shape, d)`, d at least 2.
        concentration: Concentration κ, broadcastable with `loc.shape[:-1]`.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.sphere,
        "concentration": constraints.nonnegative,
    }
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*batch_shape, -1)
        self.concentration = concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "PowerSpherical":
        """Return the distribution with this batch_shape."""
        loc = self.loc.expand(*batch_shape, -1)
        return type(self)(loc, self.concentration.expand(batch_shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        a, b = self._shapes()
        log_normalizer = (
            (a + b) * math.log(2) + b * math.log(math.pi) + a.lgamma() - (a + b).lgamma()
        )
        # 1 + loc'x for unit vectors, without the cancellation near x = -loc.
        closeness = (value + self.loc).square().sum(-1) / 2
        return torch.xlogy(self.concentration, closeness) - log_normalizer

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample around the first axis and reflect it to loc (Algorithm 1)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        a, b = self._shapes()
        half = dist.Beta(a, torch.full_like(a, b)).rsample(torch.Size(sample_shape)).unsqueeze(-1)
        noise = torch.randn(*shape[:-1], shape[-1] - 1, dtype=half.dtype, device=half.device)
        # (1 + cos, 1 - cos) / 2 = (half, 1 - half). The gradient of sqrt is infinite at 0.
        sine = 2 * (half * (1 - half)).clamp(min=torch.finfo(half.dtype).tiny).sqrt()
        sample = torch.cat([2 * half - 1, sine * normalize(noise, dim=-1)], dim=-1)
        axis = torch.zeros_like(self.loc)
        axis[..., 0] = 1
        mirror = normalize(axis - self.loc, dim=-1)
        return sample - 2 * (sample * mirror).sum(-1, keepdim=True) * mirror

    @property
    def mean(self) -> Tensor:
        """E[x], a vector inside the sphere."""
        a, b = self._shapes()
        return ((a - b) / (a + b)).unsqueeze(-1) * self.loc

    def _shapes(self) -> tuple[Tensor, float]:
        """Return a and b of the distribution Beta(a, b) of (1 + loc'x) / 2."""
        b = (self.event_shape[0] - 1) / 2
        return self.concentration + b, b
