"""Distributions over evenly spaced levels, such as 8-bit grey values."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from pyro_vae.distributions.bernoulli import log_sigmoid
from pyro_vae.distributions.special import in_float64, like


class Levels(constraints.Constraint):
    """The evenly spaced values 0, spacing, 2 spacing, ..., within float32 rounding error.

    Args:
        num_levels: Number of levels.
        spacing: Distance between neighbouring levels.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import Levels
        >>> Levels(3, spacing=0.5).check(torch.tensor([0.0, 0.25, 1.0]))
        tensor([ True, False,  True])

    See also: `CategoricalLevels`, `DiscretizedLogistic`.
    """

    is_discrete = True

    def __init__(self, num_levels: int, spacing: float) -> None:
        self.num_levels, self.spacing = num_levels, spacing

    def check(self, value: Tensor) -> Tensor:
        """Return a mask of the values on a level."""
        level = value / self.spacing
        near = (level - level.round()).abs() < 1e-3
        return near & (level.round() >= 0) & (level.round() < self.num_levels)

    def __repr__(self) -> str:
        top = (self.num_levels - 1) * self.spacing
        return f"{self.num_levels} levels from 0 to {top:g}, {self.spacing:g} apart"


class CategoricalLevels(dist.TorchDistribution):
    """A categorical distribution over the values 0, spacing, ..., (num_levels - 1) spacing.

    Args:
        logits: Unnormalized log probabilities, shape `(*batch_shape, num_levels)`.
        spacing: Distance between neighbouring levels.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import CategoricalLevels
        >>> grey = CategoricalLevels(torch.zeros(4), spacing=0.25)
        >>> grey.mean, grey.log_prob(torch.tensor(0.75)).exp()
        (tensor(0.3750), tensor(0.2500))

    See also: `pyro_vae.likelihoods.Categorical`, `DiscretizedLogistic`.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(
        self, logits: Tensor, spacing: float = 1.0, validate_args: bool | None = None
    ) -> None:
        self.logits, self.spacing = logits, spacing
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def support(self) -> Levels:
        """The levels on which the distribution is defined."""
        return Levels(self.logits.shape[-1], self.spacing)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "CategoricalLevels":
        """Return the distribution with this batch_shape."""
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return type(self)(logits, self.spacing, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return self._categorical.log_prob((value / self.spacing).round())

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample values, in the dtype of the logits."""
        levels = self._categorical.sample(torch.Size(sample_shape))
        return levels.to(self.logits.dtype) * self.spacing

    @property
    def mean(self) -> Tensor:
        """E[x]; not meaningful if the levels are category codes."""
        return self.logits.softmax(-1) @ self._values

    @property
    def mode(self) -> Tensor:
        """The most probable value."""
        return self._values[self.logits.argmax(-1)]

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        squares = (self._values - self.mean.unsqueeze(-1)) ** 2
        return (self.logits.softmax(-1) * squares).sum(-1)

    @property
    def _categorical(self) -> dist.Categorical:
        return dist.Categorical(logits=self.logits, validate_args=False)

    @property
    def _values(self) -> Tensor:
        num_levels = self.logits.shape[-1]
        indices = torch.arange(num_levels, dtype=self.logits.dtype, device=self.logits.device)
        return indices * self.spacing


class DiscretizedLogistic(dist.TorchDistribution):
    """A logistic distribution rounded to evenly spaced levels in [0, 1]: Salimans et al. (2017).

    The probability of a level is that of its bin, the reals nearest to it. The bins of the first
    and the last level extend to infinity, so the sum telescopes to one. With a < b the standardized
    ends of a bin,

        sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a-b))

    The right-hand side is accurate in both tails, in which the difference rounds to 0.

    Args:
        loc: Location, in the units of x.
        scale: Scale of the logistic density, broadcastable with loc.
        num_levels: Number of levels 0, 1/(num_levels - 1), ..., 1.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import DiscretizedLogistic
        >>> pixel = DiscretizedLogistic(torch.tensor(0.5), torch.tensor(0.1), num_levels=3)
        >>> pixel.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
        tensor([0.0759, 0.8483, 0.0759])

    See also: `pyro_vae.likelihoods.DiscretizedLogistic`, `CategoricalLevels`.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        num_levels: int = 256,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_levels = num_levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Levels:
        """The levels on which the distribution is defined."""
        return Levels(self.num_levels, 1 / (self.num_levels - 1))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "DiscretizedLogistic":
        """Return the distribution with this batch_shape."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return type(self)(loc, scale, self.num_levels, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        last = self.num_levels - 1
        x, loc, scale = in_float64(value, self.loc, self.scale)
        level = (x * last).round()
        below = log_sigmoid(((level + 0.5) / last - loc) / scale)
        above = log_sigmoid((loc - (level - 0.5) / last) / scale)
        both = (-torch.expm1(-1 / (last * scale))).log()
        inner = torch.where(level == 0, below, below + above + both)
        return like(torch.where(level == last, above, inner), value, self.loc)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample the logistic distribution and round."""
        shape = self._extended_shape(torch.Size(sample_shape))
        last = self.num_levels - 1
        with torch.no_grad():
            noise = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).logit(1e-7)
            return ((self.loc + self.scale * noise) * last).round().clamp(0, last) / last

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        centre, first, _ = self._moments()
        return like((centre + first) / (self.num_levels - 1), self.loc)

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        _, first, second = self._moments()
        return like((second - first**2) / (self.num_levels - 1) ** 2, self.loc)

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the level c nearest to loc, E[level - c] and E[(level - c)^2].

        They are sums over k of P(level >= k) for k > c, and of P(level < k) for k <= c. Around c
        the second moment is not much larger than the variance, so their difference is accurate.
        """
        loc, scale = in_float64(self.loc, self.scale)
        last = self.num_levels - 1
        centre = (loc.detach() * last).round().clamp(0, last)
        first = second = torch.zeros_like(loc)
        for k in range(1, self.num_levels):  # a vectorized sum would need num_levels images
            sign = torch.where(centre < k, 1, -1)
            tail = (sign * (loc - (k - 0.5) / last) / scale).sigmoid()
            first = first + sign * tail
            second = second + (2 * sign * (k - centre) - sign) * tail
        return centre, first, second
