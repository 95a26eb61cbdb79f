"""Priors with a fixed form."""

import copy
from collections.abc import Callable
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn.functional import softplus

from pyro_vae.distributions.spherical import PowerSpherical
from pyro_vae.distributions.transforms import ONE_BEFORE_SOFTPLUS
from pyro_vae.part import Part
from pyro_vae.priors.flow import MIN_SCALE, check_at_least


class _Standard(Part):
    """A prior without weights, of location 0 and scale 1.

    Args:
        latent_dim: number of latent dimensions; `event_shape` is `(latent_dim,)`.

    Raises:
        ValueError: for a `latent_dim` below 1.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_at_least("latent_dim", latent_dim, 1)
        self.latent_dim = latent_dim
        # Buffers, so that the distribution lives on the module's device and in its float type.
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)


class StandardNormal(_Standard):
    """p(z) = N(z; 0, I): the centred isotropic Gaussian of Kingma & Welling (2013), section 3.

    Args:
        latent_dim: number of latent dimensions.

    Raises:
        ValueError: for a `latent_dim` below 1.
    """

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.Normal(self.zero, self.one).to_event(1)


class Laplace(_Standard):
    """p(z) = prod_d Laplace(z_d; 0, 1), whose rotations differ, unlike those of a normal.

    Args:
        latent_dim: number of latent dimensions.

    Raises:
        ValueError: for a `latent_dim` below 1.
    """

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.Laplace(self.zero, self.one).to_event(1)


class StudentT(_Standard):
    """p(z) = prod_d StudentT(z_d; df, 0, 1), which leaves room for outliers.

    Args:
        latent_dim: number of latent dimensions.
        df: degrees of freedom.

    Raises:
        ValueError: for a `latent_dim` below 1, or a `df` that is not positive.
    """

    def __init__(self, latent_dim: int, df: float = 5.0) -> None:
        super().__init__(latent_dim)
        _check_positive("df", df)
        self.df = df

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.StudentT(self.df * self.one, self.zero, self.one).to_event(1)


class DiagonalNormal(Part):
    """p(z) = N(z; loc, diag scale^2), both learned.

    It adds nothing to a `StandardNormal` in front of networks that can shift and scale by
    themselves, and much where a part of them is fixed.

    Args:
        latent_dim: number of latent dimensions.

    Raises:
        ValueError: for a `latent_dim` below 1.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_at_least("latent_dim", latent_dim, 1)
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(torch.full((latent_dim,), ONE_BEFORE_SOFTPLUS))

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.Normal(self.loc, softplus(self.raw_scale) + MIN_SCALE).to_event(1)


class LogisticNormal(_Standard):
    """z on the simplex is a normal vector pushed through a logistic map: Aitchison & Shen (1980).

    Stick-breaking takes `latent_dim - 1` standard normal variables to `latent_dim` shares.

    Args:
        latent_dim: number of shares, at least 2.

    Raises:
        ValueError: for a `latent_dim` below 2.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        check_at_least("latent_dim", latent_dim, 2)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.LogisticNormal(self.zero[1:], self.one[1:])


class Dirichlet(_Standard):
    """p(z) = Dirichlet(z; c, ..., c), on the simplex.

    Args:
        latent_dim: number of shares, at least 2.
        concentration: c; 1 is uniform, below it shares are sparse.

    Raises:
        ValueError: for a `latent_dim` below 2, or a concentration that is not positive.
    """

    def __init__(self, latent_dim: int, concentration: float = 1.0) -> None:
        super().__init__(latent_dim)
        check_at_least("latent_dim", latent_dim, 2)
        _check_positive("concentration", concentration)
        self.concentration = concentration

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.Dirichlet(self.concentration * self.one)


class HypersphericalUniform(_Standard):
    """p(z) uniform on the unit sphere in `latent_dim` dimensions: Davidson et al. (2018).

    Args:
        latent_dim: number of dimensions that the sphere lies in, at least 2.

    Raises:
        ValueError: for a `latent_dim` below 2.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        check_at_least("latent_dim", latent_dim, 2)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        # Without concentration, any direction will do.
        return PowerSpherical(self.one / self.latent_dim**0.5, self.zero[0])


class Categorical(Part):
    """z is one of `latent_dim` one-hot codes, with learned probabilities.

    How to sum over the codes instead of drawing one is said of `guides.Categorical`.

    Args:
        latent_dim: number of codes.

    Raises:
        ValueError: for a `latent_dim` below 1.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        check_at_least("latent_dim", latent_dim, 1)
        self.logits = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.OneHotCategorical(logits=self.logits)


class Fixed(Part):
    """Any distribution as a prior; `VAE(prior=distribution)` wraps it so.

    It moves between devices and float types as a module does, but cannot be saved: for that, make
    a `Part` whose `forward` returns the distribution.

    Args:
        distribution: p(z), batch_shape `()`, event_shape `(latent_dim,)`.

    Raises:
        ValueError: for other shapes.
    """

    def __init__(self, distribution: dist.TorchDistribution) -> None:
        super().__init__()
        batch_shape, event_shape = distribution.batch_shape, distribution.event_shape
        if batch_shape or len(event_shape) != 1:
            raise ValueError(
                "a prior needs batch_shape () and event_shape (latent_dim,), got "
                f"{tuple(batch_shape)} and {tuple(event_shape)}: for independent latents, add "
                ".to_event(1)"
            )
        self.distribution = distribution

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return self.distribution

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.distribution = _convert(self.distribution, fn)
        return super()._apply(fn, recurse)


def _convert(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of a distribution with `fn` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, list):
        return [_convert(item, fn) for item in value]
    if isinstance(value, Distribution | Transform):
        converted = copy.copy(value)
        converted.__dict__ = {name: _convert(item, fn) for name, item in vars(value).items()}
        return converted
    return value


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
