"""Multivariate Student t distributions with many samples for each scale matrix."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor


class StudentT(dist.MultivariateStudentT):
    """Multivariate Student t distributions.

    Samples are columns of one matrix product and one triangular system for each scale matrix.
    Pyro's class has a product and a system for each sample, which takes most of the time of a
    refinement with 50 latents.
    """

    def whitened(self, value: Tensor) -> Tensor:
        """Return L^-1 (value - loc) for the Cholesky factors L.

        Args:
            value: Values, shape `(samples, *batch, dim)` or broadcastable to it.

        Returns:
            Whitened values, shape `(*batch, dim, samples)`.
        """
        centred = (value - self.loc).movedim(0, -1)
        return torch.linalg.solve_triangular(self.scale_tril, centred, upper=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log densities of shape `(samples, *batch)`.

        Args:
            value: Values, shape `(samples, *batch, dim)` or broadcastable to it.
        """
        dim = self.loc.shape[-1]
        half = 0.5 * (self.df + dim)
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = half.lgamma() - (0.5 * self.df).lgamma() - 0.5 * dim * (self.df * math.pi).log()
        radius = self.whitened(value).square().sum(-2).movedim(-1, 0)
        return constant - log_det - half * (radius / self.df).log1p()

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Return samples of shape `(samples, *batch, dim)`.

        Args:
            sample_shape: Number of samples, as a tuple of one number.
        """
        noise = self.loc.new_empty((*sample_shape, *self.loc.shape)).normal_()
        gamma = self._chi2.rsample(torch.Size(sample_shape))
        noise = noise * torch.rsqrt(gamma / self.df).unsqueeze(-1)
        return self.loc + (self.scale_tril @ noise.movedim(0, -1)).movedim(-1, 0)
