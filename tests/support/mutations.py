"""Changes of an optimizer or of a layer, each a function of an SVI and its network."""

import torch
from torch import nn


def entry(svi, net):
    return svi.optim.optimizer.state[net.decoder.weight]


def wrap(svi, net):
    optimizer = svi.optim.optimizer
    step = optimizer.step

    def half():
        for p in net.parameters():
            if p.grad is not None:
                p.grad.mul_(-1)
        step()

    optimizer.step = half


def own_step(svi, net):
    net.decoder.bias.grad = torch.ones_like(net.decoder.bias)
    svi.optim.optimizer.step()
    net.decoder.bias.grad = None


def new_optimizer(svi, net):
    svi.optim = type(svi.optim)(torch.optim.SGD(net.parameters(), lr=1e-2))


def group(**values):
    return lambda svi, net: svi.optim.optimizer.param_groups[0].update(values)


def add_weight_norm(svi, net):
    net.decoder.register_forward_pre_hook(lambda module, inputs: (0.5 * inputs[0],))


def patch_linear(svi, net):
    net.decoder.forward = lambda z: 0.5 * nn.Linear.forward(net.decoder, z)


def negate_gradient(parameter):
    parameter.grad.mul_(-1)
