"""Priors without weights, or with a location, scale or probabilities as their only weights."""

import copy
from collections.abc import Callable
from typing import Annotated, Self, TypeAlias, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.nn.functional import softplus

from pyro_vae import distributions
from pyro_vae.arguments import ArgumentError, Count, Instance, Positive, Whole
from pyro_vae.distributions.parameters import MIN_SCALE, ONE_BEFORE_SOFTPLUS
from pyro_vae.distributions.transforms import StickBreaking
from pyro_vae.part import Part

AtLeastTwo: TypeAlias = Annotated[int, Whole(2)]
AnyDistribution: TypeAlias = Annotated[
    dist.TorchDistribution, Instance((Distribution,), "a distribution")
]


class _Standard(Part):
    """A prior without weights, of location 0 and scale 1.

    Args:
        latent_dim: Number of latent dimensions; `event_shape` is `(latent_dim,)`.

    Raises:
        ValueError: If `latent_dim` is below 1.
    """

    zero: Tensor
    one: Tensor

    def __init__(self, latent_dim: Count) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        # As buffers, they follow the module to its device and dtype.
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("one", torch.ones(latent_dim), persistent=False)


class StandardNormal(_Standard):
    """p(z) = N(z; 0, I): the centred isotropic Gaussian of Kingma & Welling (2013), section 3.

    Args:
        latent_dim: Number of latent dimensions.

    Raises:
        ValueError: If `latent_dim` is below 1.

    Example:
        >>> from pyro_vae.priors import StandardNormal
        >>> StandardNormal(3)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `DiagonalNormal`, `guides.DiagonalNormal`, `guides.FullNormal`.
    """

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.Normal(self.zero, self.one).to_event(1)


class Laplace(_Standard):
    """p(z) = prod_d Laplace(z_d; 0, 1), which is not invariant to rotations of z.

    Args:
        latent_dim: Number of latent dimensions.

    Raises:
        ValueError: If `latent_dim` is below 1.

    Example:
        >>> from pyro_vae.priors import Laplace
        >>> Laplace(3)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `StandardNormal`, `StudentT`, `guides.Laplace`.
    """

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.Laplace(self.zero, self.one).to_event(1)


class StudentT(_Standard):
    """p(z) = prod_d StudentT(z_d; df, 0, 1), with heavy tails.

    Args:
        latent_dim: Number of latent dimensions.
        df: Degrees of freedom.

    Raises:
        ValueError: If `latent_dim` is below 1 or `df` is not positive.

    Example:
        >>> from pyro_vae.priors import StudentT
        >>> StudentT(3, df=4.0)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `StandardNormal`, `Laplace`.
    """

    def __init__(self, latent_dim: Count, df: Positive = 5.0) -> None:
        super().__init__(latent_dim)
        self.df = df

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return distributions.StudentT(self.df * self.one, self.zero, self.one).to_event(1)


class DiagonalNormal(Part):
    """p(z) = N(z; loc, diag scale^2), with learned loc and scale.

    If the first layer of the decoder can shift and scale z, this prior adds nothing to a
    `StandardNormal`. It is useful if that layer is fixed.

    Args:
        latent_dim: Number of latent dimensions.

    Raises:
        ValueError: If `latent_dim` is below 1.

    Example:
        >>> from pyro_vae.priors import DiagonalNormal
        >>> DiagonalNormal(3)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `StandardNormal`, `MixtureOfGaussians`.
    """

    def __init__(self, latent_dim: Count) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(torch.full((latent_dim,), ONE_BEFORE_SOFTPLUS))

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.Normal(self.loc, softplus(self.raw_scale) + MIN_SCALE).to_event(1)


class LogisticNormal(_Standard):
    """A logistic normal distribution on the simplex: Aitchison & Shen (1980).

    Stick-breaking maps `latent_dim - 1` standard normal variables to `latent_dim` shares.

    Args:
        latent_dim: Number of shares, at least 2.

    Raises:
        ValueError: If `latent_dim` is below 2.

    Example:
        >>> from pyro_vae.priors import LogisticNormal
        >>> LogisticNormal(3)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `Dirichlet`, `guides.LogisticNormal`, `guides.Dirichlet`.
    """

    def __init__(self, latent_dim: AtLeastTwo) -> None:
        super().__init__(latent_dim)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        normal = dist.Normal(self.zero[1:], self.one[1:])
        return dist.TransformedDistribution(normal, [StickBreaking()])


class Dirichlet(_Standard):
    """p(z) = Dirichlet(z; c, ..., c), on the simplex.

    Args:
        latent_dim: Number of shares, at least 2.
        concentration: Concentration c. The density is uniform at 1, and shares are sparse below 1.

    Raises:
        ValueError: If `latent_dim` is below 2 or `concentration` is not positive.

    Example:
        >>> from pyro_vae.priors import Dirichlet
        >>> Dirichlet(3, concentration=0.5)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `LogisticNormal`, `guides.Dirichlet`, `guides.LogisticNormal`.
    """

    def __init__(self, latent_dim: AtLeastTwo, concentration: Positive = 1.0) -> None:
        super().__init__(latent_dim)
        self.concentration = concentration

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return distributions.Dirichlet(self.concentration * self.one)


class HypersphericalUniform(_Standard):
    """The uniform distribution on the unit sphere: Davidson et al. (2018).

    Args:
        latent_dim: Number of dimensions of the space that contains the sphere, at least 2.

    Raises:
        ValueError: If `latent_dim` is below 2.

    Example:
        >>> from pyro_vae.priors import HypersphericalUniform
        >>> HypersphericalUniform(3)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `guides.PowerSpherical`.
    """

    def __init__(self, latent_dim: AtLeastTwo) -> None:
        super().__init__(latent_dim)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        # With a concentration of 0 the direction has no effect.
        return distributions.PowerSpherical(self.one / self.latent_dim**0.5, self.zero[0])


class Categorical(Part):
    """A categorical distribution over `latent_dim` one-hot codes, with learned probabilities.

    See `guides.Categorical` for exact enumeration.

    Args:
        latent_dim: Number of codes.

    Raises:
        ValueError: If `latent_dim` is below 1.

    Example:
        >>> from pyro_vae.priors import Categorical
        >>> Categorical(3)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `guides.Categorical`, `MixedVAE`.
    """

    def __init__(self, latent_dim: Count) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(latent_dim))

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return dist.OneHotCategorical(logits=self.logits)


class Fixed(Part):
    """A distribution as a prior. `VAE(prior=distribution)` uses it for a distribution.

    The tensors of the distribution follow the module to its device and dtype. A `Fixed` prior
    cannot be saved; to save one, define a `Part` with a `forward` that returns the distribution.

    Args:
        distribution: Distribution p(z), batch_shape `()`, event_shape `(latent_dim,)`.

    Raises:
        ValueError: If the distribution has other shapes.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.priors import Fixed
        >>> normal = dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1)
        >>> Fixed(normal)().sample((5,)).shape
        torch.Size([5, 3])

    See also: `DiagonalNormal`, `Part`.
    """

    def __init__(self, distribution: AnyDistribution) -> None:
        super().__init__()
        batch_shape, event_shape = distribution.batch_shape, distribution.event_shape
        if batch_shape or len(event_shape) != 1:
            raise ArgumentError(
                "expected a prior of batch_shape () and event_shape (latent_dim,), got "
                f"{tuple(batch_shape)} and {tuple(event_shape)}: for independent latents, add "
                ".to_event(1)"
            )
        self.distribution = distribution

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), batch_shape `()`, event_shape `(latent_dim,)`."""
        return self.distribution

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.distribution = cast(dist.TorchDistribution, _convert(self.distribution, fn))
        return super()._apply(fn, recurse)


def _convert(value: object, fn: Callable[[Tensor], Tensor]) -> object:
    """Return a copy of a distribution with `fn` applied to each of its tensors."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, list):
        return [_convert(item, fn) for item in value]
    if isinstance(value, Distribution | Transform):
        converted = copy.copy(value)
        converted.__dict__ = {name: _convert(item, fn) for name, item in vars(value).items()}
        return converted
    return value
