"""Appendix F: a variational autoencoder with the decoder's weights as latents.

The weights theta are a latent outside the plate over data, with prior N(0, I) and a diagonal
Gaussian q(theta). Only the model and the guide change: `TraceMeanField_ELBO` computes both
divergences of eq. 24 in closed form, and `pv.objectives.per_datum` scales the data by N/M.
"""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

import pyro_vae as pv


class Weights(nn.Module):
    """q(theta) = N(theta; mu, diag sigma^2), theta = mu + sigma * zeta (eq. 21)."""

    def __init__(self, start: Tensor, sd: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(start.detach().clone())
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(sd)))

    def forward(self) -> dist.TorchDistribution:
        """Return q(theta), event_shape `(num_weights,)`."""
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class FullVB:
    """Model p(theta) p(z) p(x|z, theta) and guide q(theta) q(z|x), made of a VAE's parts.

    Args:
        vae: The VAE with the initial means of q(theta), its decoder's weights.
        weight_sd: Initial standard deviation of q(theta).
    """

    def __init__(self, vae: pv.VAE, weight_sd: float) -> None:
        self.prior, self.likelihood = vae.model.prior, vae.model.likelihood
        self.posterior = vae.guide.posterior
        self.weights = Weights(parameters_to_vector(self.likelihood.parameters()), weight_sd)

    def decode(self, z: Tensor, theta: Tensor) -> dist.TorchDistribution:
        """p(x|z, theta), for theta of shape `(num_weights,)`."""
        names, shaped = zip(*self.likelihood.named_parameters(), strict=True)
        parts = theta.split([weight.numel() for weight in shaped])
        weights = [part.view_as(weight) for part, weight in zip(parts, shaped, strict=True)]
        return functional_call(self.likelihood, dict(zip(names, weights, strict=True)), (z,))

    def model(self, x: Tensor) -> None:
        """p(theta) prod_i p(z_i) p(x_i|z_i, theta)."""
        theta = pyro.sample("theta", dist.Normal(torch.zeros_like(self.weights.loc), 1).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z, theta), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(theta) prod_i q(z_i|x_i)."""
        pyro.module("q_theta", self.weights)
        pyro.module("q_z", self.posterior)
        pyro.sample("theta", self.weights())
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def at(self, theta: Tensor) -> pv.VAE:
        """Return the VAE with decoder weights theta."""
        return pv.VAE(self.prior, lambda z: self.decode(z, theta), self.posterior)
