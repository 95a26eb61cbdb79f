"""Distributions on the unit sphere that can be drawn with gradients."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import normalize


class PowerSpherical(dist.TorchDistribution):
    """A density on the unit sphere in d dimensions, around a direction: De Cao & Aziz (2020).

        p(x) = (1 + loc'x)^κ / N,   N = 2^(a+b) π^b Γ(a) / Γ(a+b),   a = b + κ,   b = (d-1)/2

    with respect to the sphere's area. It resembles a von Mises-Fisher density, with a normalizer
    and draws in closed form; κ = 0 is uniform.

    Args:
        loc: unit vectors, shape `(*batch_shape, d)`, d at least 2.
        concentration: κ, of a shape that broadcasts with `loc.shape[:-1]`.
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

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PowerSpherical":
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
        # 1 + loc'x, for unit vectors, without its cancellation opposite of loc.
        closeness = (value + self.loc).square().sum(-1) / 2
        return torch.xlogy(self.concentration, closeness) - log_normalizer

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw around the first axis, and turn that onto loc (their Algorithm 1)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        a, b = self._shapes()
        half = dist.Beta(a, torch.full_like(a, b)).rsample(torch.Size(sample_shape)).unsqueeze(-1)
        noise = torch.randn(*shape[:-1], shape[-1] - 1, dtype=half.dtype, device=half.device)
        # (1 + cos, 1 - cos) / 2 = (half, 1 - half); a square root has no gradient at 0.
        sine = 2 * (half * (1 - half)).clamp(min=torch.finfo(half.dtype).tiny).sqrt()
        draw = torch.cat([2 * half - 1, sine * normalize(noise, dim=-1)], dim=-1)
        axis = torch.zeros_like(self.loc)
        axis[..., 0] = 1
        mirror = normalize(axis - self.loc, dim=-1)
        return draw - 2 * (draw * mirror).sum(-1, keepdim=True) * mirror

    @property
    def mean(self) -> Tensor:
        """E[x], inside the sphere."""
        a, b = self._shapes()
        return ((a - b) / (a + b)).unsqueeze(-1) * self.loc

    def _shapes(self) -> tuple[Tensor, float]:
        """Return a and b: (1 + loc'x) / 2 follows Beta(a, b)."""
        b = (self.event_shape[0] - 1) / 2
        return self.concentration + b, b
