"""Distributions of other packages, such as the flows of zuko, as Pyro distributions."""

from collections.abc import Sequence
from typing import cast

import torch
from pyro.contrib.zuko import ZukoToPyro  # does not import zuko
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution, constraints


class Foreign(ZukoToPyro):
    """A distribution of torch or of another package as a Pyro distribution.

    Unlike `ZukoToPyro`, it has the support, the moments and the samples of the distribution.

    Args:
        dist: The distribution.
    """

    @property
    def support(self) -> constraints.Constraint | None:
        """The support of the distribution."""
        return self.dist.support

    @property
    def mean(self) -> Tensor:
        """The mean of the distribution."""
        return self.dist.mean

    @property
    def variance(self) -> Tensor:
        """The variance of the distribution."""
        return self.dist.variance

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample without gradients."""
        return self.dist.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample with gradients."""
        return self.dist.rsample(torch.Size(sample_shape))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "Foreign":
        """Return the distribution with this batch_shape."""
        return type(self)(self.dist.expand(torch.Size(batch_shape)))


def as_pyro(distribution: Distribution) -> TorchDistribution:
    """Return a distribution as a Pyro distribution; those of Pyro are unchanged.

    `ZukoToPyro` has no `sample` with a shape, no support and no moments, so it is wrapped again.
    """
    if type(distribution) is ZukoToPyro:
        distribution = distribution.dist
    is_pyro = isinstance(distribution, TorchDistributionMixin)
    return cast(TorchDistribution, distribution if is_pyro else Foreign(distribution))
