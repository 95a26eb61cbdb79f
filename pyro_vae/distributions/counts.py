"""Count distributions: given a total, and zero-inflated."""

import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor


class ZeroInflatedNegativeBinomial(dist.ZeroInflatedNegativeBinomial):
    """The distribution of Pyro. `expand` also works after `sample` or `mean`."""

    def expand(
        self, batch_shape: Sequence[int], _instance: object = None
    ) -> "ZeroInflatedNegativeBinomial":
        """Return the distribution with this batch_shape."""
        return type(self)(
            self.total_count.expand(batch_shape),
            logits=self.logits.expand(batch_shape),
            gate_logits=self.gate_logits.expand(batch_shape),
            validate_args=self._validate_args,
        )


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
        return self.counts(log_total + self.log_shares.log_softmax(-1)).to_event(1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x | l = sum of x) in nats."""
        if self._validate_args:
            self._validate_sample(value)
        # With a total of 0 the means and variances would be 0.
        return self.given(value.sum(-1, keepdim=True).clamp(min=1).log()).log_prob(value)

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
