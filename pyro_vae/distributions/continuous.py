"""Continuous distributions with accurate densities over the whole range of their parameters."""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import pad

from pyro_vae.distributions.special import (
    HALF_LOG_2PI,
    deviance,
    deviance_slope,
    excess,
    fused,
    in_float64,
    like,
    log_rising,
    stirling_error,
    stirling_slope,
)


class Normal(dist.Normal):
    """The distribution of Pyro, for any scale and distance from loc.

    The squares of scale and distance overflow above 10^19 in float32 and underflow below 10^-19.
    They are computed in units of a power of 2, so that all other results are equal to Pyro's.

    Args:
        loc: Mean.
        scale: Standard deviation, positive.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import Normal
        >>> Normal(torch.tensor(0.0), torch.tensor(1e-25)).log_prob(torch.tensor(0.0))
        tensor(56.6457)

    See also: `pyro_vae.likelihoods.Normal`, `StudentT`.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        unit = torch.exp2(torch.frexp(self.scale.detach()).exponent - 1.0)
        distance, scale = (value - self.loc) / unit, self.scale / unit
        return -(distance**2) / (2 * scale**2) - self.scale.log() - HALF_LOG_2PI


class LogNormal(dist.LogNormal):
    """The distribution of Pyro, with an accurate density if the scale of log x is small.

    Args:
        loc: Mean of log x.
        scale: Standard deviation of log x, positive.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import LogNormal
        >>> LogNormal(torch.tensor(0.0), torch.tensor(1e-4)).variance
        tensor(1.0000e-08)

    See also: `pyro_vae.likelihoods.LogNormal`, `Normal`.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, loc, scale = in_float64(value, self.loc, self.scale)
        log_density = -(((x.log() - loc) / scale) ** 2) / 2 - scale.log() - x.log() - HALF_LOG_2PI
        return like(log_density, value, self.loc)

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        square = self.scale**2
        return square.expm1() * (2 * self.loc + square).exp()


class StudentT(dist.StudentT):
    """The distribution of Pyro, which approaches a normal distribution at large df.

    Args:
        df: Degrees of freedom, positive.
        loc: Location.
        scale: Scale, positive.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import Normal, StudentT
        >>> x = torch.tensor(2.0)
        >>> StudentT(torch.tensor(1e9)).log_prob(x), Normal(0.0, torch.tensor(1.0)).log_prob(x)
        (tensor(-2.9189), tensor(-2.9189))

    See also: `pyro_vae.likelihoods.StudentT`, `Normal`.
    """

    def __init__(
        self,
        df: Tensor | float,
        loc: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(df, loc, scale, validate_args=validate_args)
        # Special functions of a shared parameter are computed once.
        self._df, self._scale = (
            given if isinstance(given, Tensor) else self.loc.new_tensor(given)
            for given in (df, scale)
        )

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "StudentT":
        """Return the distribution with this batch_shape."""
        loc = self.loc.expand(batch_shape)
        return type(self)(self._df, loc, self._scale, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, df, loc, scale = in_float64(value, self._df, self.loc, self._scale)
        log_scale = scale.log() + HALF_LOG_2PI - log_rising(df / 2, 0.5)
        tail = (((x - loc) / scale) ** 2 / df).log1p()
        return like(-(df + 1) / 2 * tail - log_scale, value, self.df)

    @property
    def mean(self) -> Tensor:
        """E[x], NaN if df is at most 1."""
        return torch.where(self.df > 1, self.loc, torch.nan)

    @property
    def variance(self) -> Tensor:
        """Var[x], infinite if df is at most 2 and NaN if it is at most 1."""
        finite = self.scale**2 * (self.df / (self.df - 2))
        heavy = torch.where(self.df > 1, torch.inf, torch.nan).to(finite.dtype)
        return torch.where(self.df > 2, finite, heavy)


class _OpenUnitInterval(constraints.Constraint):
    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)


class Beta(dist.Beta):
    """A beta distribution with a given mean and support (0, 1).

    At 0 and 1 the density is 0 or infinite.

    Args:
        logits: Logits of the mean m.
        concentration: Concentration c of Beta(c m, c (1 - m)).

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import Beta
        >>> x = Beta(torch.tensor(0.0), torch.tensor(3.0))  # the distribution Beta(1.5, 1.5)
        >>> x.mean, x.variance
        (tensor(0.5000), tensor(0.0625))

    See also: `pyro_vae.likelihoods.Beta`, `Dirichlet`.
    """

    support = _OpenUnitInterval()  # type: ignore[assignment]  # torch uses a closed interval

    def __init__(
        self, logits: Tensor, concentration: Tensor, validate_args: bool | None = None
    ) -> None:
        self.logits, self.total = torch.broadcast_tensors(logits, concentration)
        self._total = concentration  # Special functions of a shared c are computed once.
        # sigmoid(-logits) is positive at logits for which 1 - sigmoid(logits) rounds to 0.
        smallest = torch.finfo(logits.dtype).tiny
        super().__init__(
            (concentration * logits.sigmoid()).clamp(min=smallest),
            (concentration * (-logits).sigmoid()).clamp(min=smallest),
            validate_args=validate_args,
        )

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Beta":
        """Return the distribution with this batch_shape."""
        return type(self)(self.logits.expand(batch_shape), self._total, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, logits, total = in_float64(value, self.logits, self._total)
        log_x, log_rest = x.log(), (-x).log1p()
        # Beyond this bound the density of the other values is 0, and exp(-logits) overflows.
        logits = logits.clamp(-600, 600)
        terms = fused(_beta_terms, _beta_slopes, log_x - log_rest, logits, total)
        log_density = terms + stirling_error(total) - log_x - log_rest
        return like(log_density, value, self.logits, self.total)

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        return self.logits.sigmoid() * (-self.logits).sigmoid() / (self.total + 1)


def _beta_terms(logit: Tensor, logits: Tensor, total: Tensor) -> Tensor:
    """Return the log density of logit x, without the Stirling error of the total."""
    a, b = total * logits.sigmoid(), total * (-logits).sigmoid()
    result = deviance(a, b, logit - logits).sub_(HALF_LOG_2PI)
    errors = stirling_error(a).add_(stirling_error(b))
    return result.sub_(errors).add_((a * (b / total)).log_(), alpha=0.5)


def _beta_slopes(logit: Tensor, logits: Tensor, total: Tensor) -> tuple[Callable[[], Tensor], ...]:
    m, rest = logits.sigmoid(), (-logits).sigmoid()
    a, b, shift = total * m, total * rest, logit - logits

    def by_logits() -> Tensor:
        return a * rest * (shift - stirling_slope(a) + stirling_slope(b)) + (rest - m) / 2

    def by_total() -> Tensor:
        errors = m * stirling_slope(a) + rest * stirling_slope(b)
        return (deviance(a, b, shift) + 0.5) / total - errors

    return lambda: deviance_slope(a, b, shift), by_logits, by_total


class Dirichlet(dist.Dirichlet):
    """The distribution of Pyro, with an accurate density at large concentrations.

    Args:
        concentration: Concentrations, shape `(*batch_shape, num_shares)`, positive.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import Dirichlet
        >>> shares = Dirichlet(torch.tensor([1.0, 1.0, 1.0]))  # uniform, with the density 2
        >>> shares.log_prob(torch.tensor([0.5, 0.25, 0.25])).exp()
        tensor(2.)

    See also: `pyro_vae.priors.Dirichlet`, `Beta`.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, weights = in_float64(value, self.concentration)
        total = weights.sum(-1, keepdim=True)
        log_x = torch.where(x > 0, x, 1).log()
        # sum_i w_i log(x_i / m_i) with means m_i = w_i / total, without cancellation.
        terms = excess(weights, x * total - weights, log_x - (weights / total).log())
        terms = terms + weights.log() / 2 - stirling_error(weights) - log_x - HALF_LOG_2PI
        # For x_i = 0 the density is 0 or infinite, except at a concentration of 1.
        terms = terms + torch.where(x > 0, 0, torch.xlogy(weights - 1, x))
        total = total.squeeze(-1)
        linear = total * (x.sum(-1) - 1)
        log_scale = stirling_error(total) - total.log() / 2 + HALF_LOG_2PI
        return like(terms.sum(-1) + linear + log_scale, value, self.concentration)


class LowRankNormal(dist.TorchDistribution):
    """A normal distribution with covariance W W' + diag scale^2, accurate if scale is small.

    Let Q and R be the QR factors of A = [W / scale; I], and b = [(x - loc) / scale; 0]. Then

        log p(x) = -|b - Q Q'b|^2 / 2 - sum log |diag R| - sum log scale - D log(2π) / 2

    torch subtracts two quadratic forms, which exceed the result by the ratio of W^2 to scale^2, and
    factorizes A'A, whose condition number is the square of that of A.

    Args:
        loc: Mean, shape `(*batch_shape, D)`.
        cov_factor: Factor W, shape `(*batch_shape, D, rank)`.
        cov_diag: Variances scale^2 of the independent part, shape `(*batch_shape, D)`, positive.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import LowRankNormal
        >>> line = LowRankNormal(torch.zeros(2), torch.ones(2, 1), torch.full((2,), 1e-8))
        >>> line.log_prob(torch.tensor([1.0, 1.0]))
        tensor(6.5259)

    See also: `pyro_vae.guides.LowRankNormal`, `Normal`.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        cov_factor: Tensor,
        cov_diag: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.cov_factor, self.cov_diag = loc, cov_factor, cov_diag
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "LowRankNormal":
        """Return the distribution with this batch_shape."""
        loc = self.loc.expand(*batch_shape, -1)
        return type(self)(loc, self.cov_factor, self.cov_diag, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, loc, factor, variance = in_float64(value, self.loc, self.cov_factor, self.cov_diag)
        scale = variance.sqrt()
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        identity = identity.expand(*factor.shape[:-2], -1, -1)
        q, r = torch.linalg.qr(torch.cat([factor / scale.unsqueeze(-1), identity], -2))
        b = pad((x - loc) / scale, [0, factor.shape[-1]]).unsqueeze(-1)
        distance = (b - q @ (q.mT @ b)).square().sum((-2, -1))
        log_det = r.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1) + variance.log().sum(-1) / 2
        return like(-distance / 2 - log_det - x.shape[-1] * HALF_LOG_2PI, value, self.loc)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        shared = self.loc.new_empty((*shape[:-1], self.cov_factor.shape[-1], 1)).normal_()
        along = (self.cov_factor @ shared).squeeze(-1)
        return self.loc + along + self.cov_diag.sqrt() * self.loc.new_empty(shape).normal_()

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Var[x], entry by entry."""
        return (self.cov_factor.square().sum(-1) + self.cov_diag).expand(self.loc.shape)

    @property
    def covariance_matrix(self) -> Tensor:
        """Covariance matrix, shape `(*batch_shape, D, D)`."""
        covariance = self.cov_factor @ self.cov_factor.mT + self.cov_diag.diag_embed()
        return covariance.expand(*self.loc.shape, -1)
