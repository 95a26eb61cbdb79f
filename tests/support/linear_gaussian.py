"""Probabilistic PCA: the variational autoencoder whose every quantity is known in closed form.

z ~ N(0, I),  x|z ~ N(W z + mu, s2 I)   hence   x ~ N(mu, W W' + s2 I),
z|x ~ N(S W'(x - mu)/s2, S)  with  S = (I + W'W/s2)^-1.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv


class LinearDecoder(nn.Module):
    """p(x|z) = N(x; W z + mu, scale^2 I), a likelihood written by a user, no `Part`."""

    def __init__(self, weight: Tensor, mean: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.mean = nn.Parameter(weight), nn.Parameter(mean)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=weight.dtype))

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        loc = z @ self.weight.T + self.mean
        return dist.Normal(loc, self.log_scale.exp()).to_event(1)

    def marginal(self) -> torch.distributions.MultivariateNormal:
        s2 = (2 * self.log_scale).exp()
        eye = torch.eye(len(self.mean), dtype=s2.dtype, device=s2.device)
        return torch.distributions.MultivariateNormal(
            self.mean, self.weight @ self.weight.T + s2 * eye
        )

    def posterior_terms(self) -> tuple[Tensor, Tensor]:
        """Return S W'/s2 and S."""
        s2 = (2 * self.log_scale).exp()
        eye = torch.eye(self.weight.shape[1], dtype=s2.dtype, device=s2.device)
        covariance = torch.linalg.inv(eye + self.weight.T @ self.weight / s2)
        return covariance @ self.weight.T / s2, covariance


class ExactPosterior(nn.Module):
    """q(z|x) = p(z|x)."""

    def __init__(self, decoder: LinearDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        gain, covariance = self.decoder.posterior_terms()
        loc = (x - self.decoder.mean) @ gain.T
        return dist.MultivariateNormal(loc, covariance)


class MeanFieldPosterior(ExactPosterior):
    """The best diagonal q(z|x): the exact mean, and variances 1 / diag(S^-1)."""

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        gain, covariance = self.decoder.posterior_terms()
        loc = (x - self.decoder.mean) @ gain.T
        scale = torch.linalg.inv(covariance).diagonal().rsqrt()
        return dist.Normal(loc, scale.expand_as(loc)).to_event(1)


def linear_vae(guide: type[ExactPosterior] = ExactPosterior, dim: int = 6, latent_dim: int = 3):
    """Return a float64 VAE with random W and mu, and 50 data drawn from it."""
    weight = torch.randn(dim, latent_dim, dtype=torch.float64)
    decoder = LinearDecoder(weight, torch.randn(dim, dtype=torch.float64), 0.7)
    vae = pv.VAE(pv.priors.StandardNormal(latent_dim).double(), decoder, guide(decoder))
    return vae, vae.sample(50)
