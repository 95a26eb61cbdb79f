"""Optimizers that wrap another one, as Lookahead, take the steps that they take alone."""

import collections

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("graphs_in_double")


class Lookahead(torch.optim.Optimizer):
    """As in the package torch_optimizer; it does not call the constructor of torch."""

    def __init__(self, inner):
        self.optimizer, self.state = inner, collections.defaultdict(dict)
        self.param_groups, self.defaults = inner.param_groups, inner.defaults
        for group in self.param_groups:
            group["counter"] = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step(closure)
        for group in self.param_groups:
            group["counter"] = (group["counter"] + 1) % 3
            for p in group["params"] if group["counter"] == 0 else ():
                slow = self.state[p].setdefault("slow", p.clone())
                slow.lerp_(p, 0.5)
                p.copy_(slow)


class WithTables(Lookahead):
    """As in the package timm, which makes the tables of hooks; its step calls none."""

    def __init__(self, inner):
        for kind in ("step", "state_dict", "load_state_dict"):
            setattr(self, f"_optimizer_{kind}_pre_hooks", collections.OrderedDict())
            setattr(self, f"_optimizer_{kind}_post_hooks", collections.OrderedDict())
        super().__init__(inner)


def small():
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 5)),
        pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 4)),
    )


def by_hand(kind, x):
    """Train with torch alone."""
    vae, losses = small(), []
    optimizer = kind(torch.optim.Adam(vae.parameters(), lr=1e-2))
    for _ in range(8):
        loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        for p in vae.parameters():
            p.grad = None
    return losses


@pytest.mark.parametrize("compile", [True, False])
@pytest.mark.parametrize("kind", [Lookahead, WithTables])
def test_a_wrapper_takes_its_steps(kind, compile):
    x, vae = torch.eye(5), small()
    optimizer = kind(torch.optim.Adam(vae.parameters(), lr=1e-2))
    svi = pv.SVI(vae.model, vae.guide, optimizer, compile=compile)
    losses = [svi.step(x) for _ in range(8)]
    np.testing.assert_allclose(losses, by_hand(kind, x), rtol=1e-9)
    assert svi.num_compiled_steps == (6 if compile else 0)


@pytest.mark.parametrize("kind", [Lookahead, WithTables])
def test_a_checkpoint_without_the_inner_state_is_not_written(kind, tmp_path):
    def optimizer(parameters):
        return kind(torch.optim.Adam(parameters, lr=1e-2))

    with pytest.warns(UserWarning, match=r"cannot be written \(\w+ steps Adam, and the state"):
        pv.fit(small(), torch.eye(5), epochs=1, optimizer=optimizer, out=tmp_path)
