"""Mutants of the exact posterior of the linear-Gaussian VAE."""

import pyro.distributions as dist
import torch
from torch import nn

import pyro_vae as pv
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae


class Spoilt(nn.Module):
    """The exact posterior with its scale multiplied and its mean shifted."""

    def __init__(self, exact, scale=1.0, shift=0.0):
        super().__init__()
        self.exact, self.scale, self.shift = exact, scale, shift

    def forward(self, x):
        q = self.exact(x)
        return dist.MultivariateNormal(q.loc + self.shift, scale_tril=q.scale_tril * self.scale)


class Encoded(nn.Module):
    """A mean-field q whose parameters are the output of an encoder, which may be a poor one."""

    def __init__(self, mean_field, scale=1.0, shift=0.0):
        super().__init__()
        self.encoder = Spoiling(mean_field, scale, shift)

    def forward(self, x):
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class Spoiling(nn.Module):
    def __init__(self, mean_field, scale, shift):
        super().__init__()
        self.mean_field, self.scale, self.shift = mean_field, scale, shift

    def forward(self, x):
        q = self.mean_field(x)
        return torch.cat([q.mean + self.shift, (q.stddev * self.scale).log()], dim=-1)


class Deaf(nn.Module):
    """A decoder that ignores z."""

    def forward(self, z):
        return dist.Normal(torch.zeros(*z.shape[:-1], 6, dtype=z.dtype), 1.0).to_event(1)


def spoilt(scale=1.0, shift=0.0):
    vae, x = linear_vae()
    return vae.replace(guide=Spoilt(vae.guide.posterior, scale, shift)), x


def mean_field(scale=1.0, shift=0.0):
    vae, x = linear_vae()
    best = MeanFieldPosterior(vae.model.likelihood)
    return vae.replace(guide=Encoded(best, scale, shift)), x


def log_evidence(vae, x):
    return vae.model.likelihood.marginal().log_prob(x).detach().numpy()


def approximation_gap(vae):
    """KL of the best mean field: 1/2 (sum log L_ii - log det L), L the posterior precision."""
    precision = torch.linalg.inv(vae.model.likelihood.posterior_terms()[1])
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    return gap.item()


def tree_of(vae, x, num_samples=1000):
    groups = ("posterior", "sample_stats")
    return pv.from_pyro_svi(
        vae.model, vae.guide, model_args=(x,), num_samples=num_samples, groups=groups, seed=1
    )
