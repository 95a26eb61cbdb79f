"""Count distributions: given their means, given a total, and zero-inflated."""

import math
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.distributions.special import (
    HALF_LOG_2PI,
    deviance,
    deviance_slope,
    fused,
    in_float64,
    like,
    log_shares,
    logsigmoid,
    stirling_error,
    stirling_slope,
)

SMALLEST_SHIFT = -1e30  # instead of -inf, for means of 0


class Poisson(dist.Poisson):
    """A Poisson distribution with a given log mean, and an accurate density at large counts.

    In float32, a mean of 10^6 is rounded by 1/16.

    Args:
        log_mean: Logarithm of the mean.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import Poisson
        >>> count = torch.tensor(1e6)
        >>> Poisson(count.log()).log_prob(count)  # about -log(2 pi 10^6) / 2
        tensor(-7.8267)

    See also: `pyro_vae.likelihoods.Poisson`, `NegativeBinomial`.
    """

    def __init__(self, log_mean: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean = log_mean
        super().__init__(log_mean.exp(), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Poisson":
        """Return the distribution with this batch_shape."""
        return type(self)(self.log_mean.expand(batch_shape), self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, log_mean = in_float64(value, self.log_mean)
        return like(fused(_poisson, _poisson_slopes, _positive(x), log_mean), value, self.log_mean)


def _poisson(x: Tensor, log_mean: Tensor) -> Tensor:
    shift = _shift(x, log_mean)
    return shift.expm1().neg_().add_(shift).mul_(x).add_(_log_peak(x))


def _poisson_slopes(x: Tensor, log_mean: Tensor) -> tuple[Callable[[], Tensor], ...]:
    return (
        lambda: _shift(x, log_mean) - 1 / (2 * x) - stirling_slope(x),
        lambda: x - log_mean.exp(),
    )


class NegativeBinomial(dist.NegativeBinomial):
    """A negative binomial distribution with a given log mean.

    It approaches a Poisson distribution if the total count r is large, without rounding errors.

    Args:
        total_count: Number r of failures, also called inverse dispersion. The variance is
            m + m^2 / r with the mean m.
        log_mean: Logarithm of the mean.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import NegativeBinomial
        >>> counts = NegativeBinomial(torch.tensor(2.0), log_mean=torch.tensor(4.0).log())
        >>> counts.mean, counts.variance  # 4 + 4^2 / 2
        (tensor(4.), tensor(12.))

    See also: `pyro_vae.likelihoods.NegativeBinomial`, `ZeroInflatedNegativeBinomial`.
    """

    def __init__(
        self, total_count: Tensor, log_mean: Tensor, validate_args: bool | None = None
    ) -> None:
        super().__init__(
            total_count, logits=log_mean - total_count.log(), validate_args=validate_args
        )
        self.log_mean = log_mean.expand(self.batch_shape)
        self._total_count = total_count  # Special functions of a shared r are computed once.

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "NegativeBinomial":
        """Return the distribution with this batch_shape."""
        log_mean = self.log_mean.expand(batch_shape)
        return type(self)(self._total_count, log_mean, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, r, log_mean = in_float64(value, self._total_count, self.log_mean)
        return like(_log_negative_binomial(x, r, log_mean), value, self.log_mean)

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        return self.mean * (1 + self.mean / self.total_count)


def _log_negative_binomial(x: Tensor, r: Tensor, log_mean: Tensor) -> Tensor:
    """Return log NB(x; mean, r) of float64 tensors."""
    log_prob = fused(_count_terms, _count_slopes, _positive(x), r, log_mean)
    return log_prob - stirling_error(r)


def _count_terms(x: Tensor, r: Tensor, log_mean: Tensor) -> Tensor:
    """Return log NB(x; mean, r) and the Stirling error of r."""
    result = deviance(x, r, _shift(x, log_mean))
    result = result.sub_((x / r).log1p_(), alpha=0.5)
    return result.add_(stirling_error(x + r)).add_(_log_peak(x))


def _count_slopes(x: Tensor, r: Tensor, log_mean: Tensor) -> tuple[Callable[[], Tensor], ...]:
    shift, total = _shift(x, log_mean), x + r
    by_mean = deviance_slope(x, r, shift)

    def by_x() -> Tensor:
        gamma = stirling_slope(total) - stirling_slope(x) - 1 / (2 * x) - 1 / (2 * total)
        return log_shares(x, r, shift)[0] + gamma

    def by_r() -> Tensor:
        # log_mean is fixed, so log(r) is subtracted from the logit of the mean.
        by_share = log_shares(x, r, shift)[1] - by_mean / r
        return by_share + stirling_slope(total) + x / total / (2 * r)

    return by_x, by_r, lambda: by_mean


def _positive(x: Tensor) -> Tensor:
    """Return counts, with a tiny number instead of 0.

    With gamma functions instead of factorials, log probabilities are continuous at 0.
    """
    return x.clamp(min=torch.finfo(x.dtype).tiny ** (1 / 3))


def _shift(x: Tensor, log_mean: Tensor) -> Tensor:
    """Return log(mean / x)."""
    return (log_mean - x.log()).clamp(min=SMALLEST_SHIFT)


def _log_peak(x: Tensor) -> Tensor:
    """Return log(x^x exp(-x) / x!), the Poisson log probability of x at a mean of x."""
    return x.log().mul_(-0.5).sub_(HALF_LOG_2PI).sub_(stirling_error(x))


class ZeroInflatedNegativeBinomial(dist.ZeroInflatedDistribution):
    """A `NegativeBinomial` with extra zeros.

    Args:
        total_count: Number r of failures, as in `NegativeBinomial`.
        log_mean: Logarithm of the mean of counts without extra zeros.
        gate_logits: Logits of the probability of an extra zero.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import ZeroInflatedNegativeBinomial
        >>> r, log_mean = torch.tensor(2.0), torch.tensor(4.0).log()
        >>> ZeroInflatedNegativeBinomial(r, log_mean, gate_logits=torch.tensor(0.0)).mean
        tensor(2.)

    See also: `pyro_vae.likelihoods.ZeroInflatedNegativeBinomial`, `NegativeBinomial`.
    """

    support = constraints.nonnegative_integer

    def __init__(
        self,
        total_count: Tensor,
        log_mean: Tensor,
        *,
        gate_logits: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        counts = NegativeBinomial(total_count, log_mean, validate_args)
        super().__init__(counts, gate_logits=gate_logits, validate_args=validate_args)

    def expand(
        self, batch_shape: Sequence[int], _instance: object = None
    ) -> "ZeroInflatedNegativeBinomial":
        """Return the distribution with this batch_shape."""
        return type(self)(
            self.base_dist._total_count,
            self.base_dist.log_mean.expand(batch_shape),
            gate_logits=self.gate_logits.expand(batch_shape),
            validate_args=self._validate_args,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability in nats."""
        if self._validate_args:
            self._validate_sample(value)
        counts = self.base_dist
        x, r, log_mean, gate_logits = in_float64(
            value, counts._total_count, counts.log_mean, self.gate_logits
        )
        counted = _log_negative_binomial(x, r, log_mean)
        # (exp(logit) + p) / (exp(logit) + 1) at 0, with the logit of the gate
        odds = torch.where(x > 0, counted, torch.logaddexp(gate_logits, counted))
        log_prob = odds + logsigmoid(-gate_logits)
        return like(log_prob, value, counts.log_mean, self.gate_logits)

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        return (-self.gate_logits).sigmoid() * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """Var[x]."""
        gate, mean = self.gate_logits.sigmoid(), self.base_dist.mean
        return (-self.gate_logits).sigmoid() * (self.base_dist.variance + gate * mean**2)


class CountsGivenTotal(dist.TorchDistribution):
    """Counts given their observed total l: p(x | l), with means l times shares that sum to one.

    The total is computed from the observation and not modelled, as the library size of scVI (Lopez
    et al. 2018). The log density is conditional on the total and cannot be compared with that of a
    distribution that predicts the total.

    Args:
        counts: Function from log means to the distribution of the counts, with the batch_shape of
            the log means.
        log_shares: Unnormalized log shares, shape `(*batch_shape, num_counts)`.
        library_size: Total count of samples and moments.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import CountsGivenTotal, Poisson
        >>> genes = CountsGivenTotal(Poisson, torch.tensor([0.0, 0.0]), library_size=100.0)
        >>> genes.mean
        tensor([50.0000, 50.0000])
        >>> genes.log_prob(torch.tensor([3.0, 1.0]))  # given their total, 4
        tensor(-3.0192)

    See also: `pyro_vae.likelihoods.Poisson`, `NegativeBinomial`.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self,
        counts: Callable[[Tensor], dist.TorchDistribution],
        log_shares: Tensor,
        library_size: float,
        validate_args: bool | None = None,
    ) -> None:
        self.counts, self.log_shares, self.library_size = counts, log_shares, library_size
        super().__init__(log_shares.shape[:-1], log_shares.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "CountsGivenTotal":
        """Return the distribution with this batch_shape."""
        log_shares = self.log_shares.expand(*batch_shape, -1)
        return type(self)(self.counts, log_shares, self.library_size, self._validate_args)

    def given(self, log_total: Tensor | float) -> dist.TorchDistribution:
        """Return the distribution for a log total, which broadcasts with the shares."""
        with pyro.validation_enabled(self._validate_args):
            return self.counts(log_total + self.log_shares.log_softmax(-1)).to_event(1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x | l = sum of x) in nats."""
        if self._validate_args:
            self._validate_sample(value)
        x, log_shares = in_float64(value, self.log_shares)
        # With a total of 0 the means and variances would be 0.
        log_total = x.sum(-1, keepdim=True).clamp(min=1).log()
        log_means = log_total + log_shares.log_softmax(-1)
        with pyro.validation_enabled(self._validate_args):
            log_prob = self.counts(log_means).to_event(1).log_prob(value)
        return like(log_prob, value, self.log_shares)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample counts at the library size. Their total varies around it."""
        return self.given(math.log(self.library_size)).sample(torch.Size(sample_shape))

    @property
    def mean(self) -> Tensor:
        """E[x] at the library size."""
        return self.given(math.log(self.library_size)).mean

    @property
    def variance(self) -> Tensor:
        """Var[x] at the library size."""
        return self.given(math.log(self.library_size)).variance
