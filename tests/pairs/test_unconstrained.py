"""Densities of unconstrained latents have gradients with respect to the latents only."""

import pytest
import torch

import pyro_vae as pv
from pyro_vae.pairs.sampler import Sampler
from pyro_vae.pairs.unconstrained import Unconstrained

needed = []


class Product(torch.autograd.Function):
    """A matrix product that records which gradients its backward pass needs."""

    @staticmethod
    def forward(ctx, z, weight):
        ctx.save_for_backward(weight)
        return z @ weight

    @staticmethod
    def backward(ctx, gradient):
        needed.append(ctx.needs_input_grad)
        return gradient @ ctx.saved_tensors[0].T, None


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 3))

    def forward(self, z):
        return Product.apply(z, self.weight)


@pytest.mark.parametrize("trained", [True, False])
def test_no_gradient_of_a_parameter_is_computed(trained):
    torch.manual_seed(0)
    decoder = Decoder().requires_grad_(trained)
    guide = pv.guides.DiagonalNormal(pv.networks.MLP(3, [4], 4))
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Normal(decoder), guide)
    x = torch.randn(5, 3)
    posterior = Unconstrained(Sampler(vae, x), (x,))
    states = torch.randn(7, 5, 2, requires_grad=True)
    needed.clear()
    log_joint = posterior.log_joint(states)
    (gradient,) = torch.autograd.grad(log_joint.sum(), states)
    assert gradient.abs().min() > 0
    assert needed == [(True, False)]
    assert decoder.weight.requires_grad is trained
