"""A VAE in plain Pyro, and batches with every memory layout."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_vae as pv

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


class Net(nn.Module):
    """A VAE in plain Pyro; `loc` is the mean of its prior, a tensor that is not a parameter."""

    def __init__(self, loc=None):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.loc = torch.zeros(2) if loc is None else loc

    def model(self, x):
        pyro.module("decoder", self.decoder)
        x = x.to_dense() if x.layout is not torch.strided else x
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        x = x.to_dense() if x.layout is not torch.strided else x
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def train_net(compile, batch, loc=None, steps=14, between=lambda i, svi: None):
    """Train from a seed; return losses, final parameters and the SVI."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = Net(loc)
    svi = pv.SVI(net.model, net.guide, ADAM, compile=compile)
    losses = []
    for i in range(steps):
        between(i, svi)
        losses.append(svi.step(batch))
    parameters = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    return np.array(losses), parameters, svi


def assert_equal_runs(ours, eager):
    np.testing.assert_allclose(ours[0], eager[0], rtol=1e-5)
    torch.testing.assert_close(ours[1], eager[1], rtol=1e-5, atol=1e-6)


TABLE = (torch.rand(9, 20, generator=torch.Generator().manual_seed(1)) < 0.4).float()

# Tensors of shape (9, 6) with every memory layout.
LAYOUTS = {
    "dense": lambda: TABLE[:, :6].contiguous(),
    "columns of a table": lambda: TABLE[:, 2:8],
    "every third column": lambda: TABLE[:, 1:18:3],
    "transposed": lambda: TABLE[:, :6].t().contiguous().t(),
    "one row repeated": lambda: TABLE[0, :6].expand(9, 6),
    "one column repeated": lambda: TABLE[:, :1].expand(9, 6),
    "one number repeated": lambda: torch.ones(()).expand(9, 6),
    "stride 0 and a gap": lambda: TABLE[0, ::3][:6].expand(9, 6),
    "overlapping rows": lambda: TABLE.flatten().as_strided((9, 6), (2, 1)),
    "a part of a part": lambda: TABLE.t()[3:9, :].t(),
}
