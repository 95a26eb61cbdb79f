"""Pairs and gradients for the tests of objectives, in float64."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_vae as pv
from tests.support.linear_gaussian import linear_vae

KWARGS = {"dtype": torch.float64}


def imperfect_vae(num_data=6):
    """Return a linear-Gaussian VAE with an inexact diagonal guide, and data."""
    vae, x = linear_vae(dim=4, latent_dim=2)
    encoder = pv.networks.MLP(4, [], 4).double()
    return vae.replace(guide=pv.guides.DiagonalNormal(encoder)), x[:num_data]


def evaluated(objective, vae, x, seed=0):
    torch.manual_seed(seed)
    return objective.loss(vae.model, vae.guide, x)


def gradients(objective, vae, x, repeats, parameters):
    """Return `repeats` gradients of the loss, one row each."""
    rows = []
    for _ in range(repeats):
        loss = objective.differentiable_loss(vae.model, vae.guide, x)
        parts = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


class Linked(nn.Module):
    """Two dependent latents: z2 given z1 in the guide, z1 given z2 in the model."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 2, **KWARGS)
        self.link = nn.Linear(2, 2, **KWARGS)
        self.log_scale = nn.Parameter(torch.zeros((), **KWARGS))
        self.decoder = nn.Linear(2, 3, **KWARGS)

    def model(self, x):
        pyro.module("linked", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2, **KWARGS), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2.tanh(), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("linked", self)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.encoder(x), self.log_scale.exp()).to_event(1))
            pyro.sample("z2", dist.Normal(self.link(z1), 0.8).to_event(1))
