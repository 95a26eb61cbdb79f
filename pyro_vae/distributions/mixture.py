"""A mixture with components along one batch dimension."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor


class Mixture(dist.MixtureSameFamily):
    """A mixture that computes the log density of diagonal normal components by a matrix product.

    With the precisions p_k = 1 / scale_k^2 of K components

        sum_d p_kd (z_d - loc_kd)^2 = z^2 . p_k - 2 z . (loc_k p_k) + loc_k^2 . p_k

    for all z. The class of torch allocates several tensors of shape (samples, K, dimensions). The
    three terms cancel if a component is narrow, so they are computed in float64.

    Args:
        mixture_distribution: Categorical distribution of the K components.
        component_distribution: The components, batch_shape `(*batch_shape, K)`.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from pyro_vae.distributions import Mixture
        >>> components = dist.Normal(torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1)).to_event(1)
        >>> mixture = Mixture(dist.Categorical(logits=torch.zeros(2)), components)
        >>> mixture.mean, mixture.log_prob(torch.zeros(1))
        (tensor([0.]), tensor(-1.4189))

    See also: `pyro_vae.priors.MixtureOfGaussians`, `pyro_vae.priors.VampPrior`.
    """

    def expand(
        self, batch_shape: Sequence[int], _instance: object = None
    ) -> dist.TorchDistribution:
        """Return the distribution with this batch_shape. The components are not copied."""
        return ExpandedDistribution(self, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density in nats."""
        components = self.component_distribution
        normal = getattr(components, "base_dist", None)
        plain = (
            getattr(components, "reinterpreted_batch_ndims", None) == 1
            and isinstance(normal, torch.distributions.Normal)
            and type(normal).log_prob is torch.distributions.Normal.log_prob
        )
        # The device mps does not support float64.
        if self.batch_shape or not plain or value.device.type == "mps":
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        assert normal is not None
        z, loc, scale = value.double(), normal.loc.double(), normal.scale.double()
        precision = scale**-2
        squares = torch.cat([z**2, z], -1) @ torch.cat([precision, -2 * loc * precision], -1).T
        constant = (loc**2 * precision + 2 * scale.log() + math.log(2 * math.pi)).sum(-1)
        log_densities = (-(squares + constant) / 2).to(normal.loc.dtype)
        return (log_densities + self.mixture_distribution.logits).logsumexp(-1)
