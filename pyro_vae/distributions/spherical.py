"""Reparameterized distributions on the unit sphere."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import normalize

from pyro_vae.distributions.special import in_float64, like, log_rising


class PowerSpherical(dist.TorchDistribution):
    """The power spherical density on the unit sphere in d dimensions: De Cao & Aziz (2020).

        p(x) = (1 + loc'x)^κ / N,   N = 2^(a+b) π^b Γ(a) / Γ(a+b),   a = b + κ,   b = (d-1)/2

    with respect to the area of the sphere. It resembles a von Mises-Fisher density, but the
    normalizer and the sampler are in closed form. κ = 0 is the uniform distribution.

    Args:
        loc: Unit vectors, shape `(*batch_shape, d)`, d at least 2.
        concentration: Concentration κ, broadcastable with `loc.shape[:-1]`.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import PowerSpherical
        >>> north = torch.tensor([0.0, 0.0, 1.0])
        >>> uniform = PowerSpherical(north, concentration=torch.tensor(0.0))
        >>> uniform.log_prob(north)  # -log(4 pi), the area of the sphere
        tensor(-2.5310)

    See also: `pyro_vae.guides.PowerSpherical`, `pyro_vae.priors.HypersphericalUniform`.
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
        x, loc, concentration = in_float64(value, self.loc, self.concentration)
        # A large concentration amplifies the rounding errors of the lengths, which are not 1.
        x, loc = x / x.norm(dim=-1, keepdim=True), loc / loc.norm(dim=-1, keepdim=True)
        b = self._shapes()[1]
        # log((1 + loc'x) / 2) = log1p(-below) = log(above)
        below, above = ((x + sign * loc).square().sum(-1) / 4 for sign in (-1, 1))
        near = below < above
        kernel = torch.where(
            near,
            concentration * torch.where(near, -below, 0).log1p(),
            torch.xlogy(concentration, torch.where(near, 1, above)),
        )
        a = concentration + b
        log_density = kernel + log_rising(a, b) + b * (a.log() - math.log(4 * math.pi))
        return like(log_density, value, self.loc, self.concentration)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample around the first axis and reflect it to loc (Algorithm 1)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        a, b = self._shapes()
        shapes = torch.stack([a, torch.full_like(a, b)], dim=-1)
        # (1 + cos, 1 - cos) / 2. The second is exact even if the first rounds to 1.
        halves = dist.Dirichlet(shapes).rsample(torch.Size(sample_shape))
        half, rest = halves[..., :1], halves[..., 1:]
        noise = torch.randn(*shape[:-1], shape[-1] - 1, dtype=half.dtype, device=half.device)
        # The gradient of sqrt is infinite at 0.
        sine = 2 * (half * rest).clamp(min=torch.finfo(half.dtype).tiny).sqrt()
        sample = torch.cat([2 * half - 1, sine * normalize(noise, dim=-1)], dim=-1)
        axis = torch.zeros_like(self.loc)
        axis[..., 0] = 1
        mirror = normalize(axis - self.loc, dim=-1)
        return sample - 2 * (sample * mirror).sum(-1, keepdim=True) * mirror

    @property
    def mean(self) -> Tensor:
        """E[x], a vector inside the sphere."""
        a, b = self._shapes()
        return (self.concentration / (a + b)).unsqueeze(-1) * self.loc

    def _shapes(self) -> tuple[Tensor, float]:
        """Return a and b of the distribution Beta(a, b) of (1 + loc'x) / 2."""
        b = (self.event_shape[0] - 1) / 2
        return self.concentration + b, b
