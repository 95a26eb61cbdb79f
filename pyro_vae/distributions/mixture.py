"""A mixture whose components share one batch dimension."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor


class Mixture(dist.MixtureSameFamily):
    """A mixture whose log density, of diagonal normal components, is a matrix product.

    With the precisions p_k = 1 / scale_k^2 of K components

        sum_d p_kd (z_d - loc_kd)^2 = z^2 . p_k - 2 z . (loc_k p_k) + loc_k^2 . p_k

    for all z at once, where torch's goes through a tensor of draws x K x dimensions several times.
    The three terms cancel where a component is narrow: they are float64, whatever the arguments.
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        """Return the distribution with this batch_shape; the components are not copied."""
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
        # There is no float64 on mps.
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
