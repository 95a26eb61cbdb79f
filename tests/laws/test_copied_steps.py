"""A copy of an `SVI` is a step of its own: it trains what its attributes name."""

import copy
import warnings

import pyro
import pytest
import torch
from torch import nn

import pyro_vae as pv
from tests.support.effects import Net, adam

pytestmark = pytest.mark.usefixtures("graphs_in_double")
X = (torch.rand(16, 6, generator=torch.Generator().manual_seed(0)) < 0.4).double()


def another_pair(svi):
    net = Net()
    svi.model, svi.guide = net.model, net.guide
    svi.optim = adam(net)


def another_objective(svi):
    loss = pyro.infer.TraceMeanField_ELBO(num_particles=3)
    svi.loss, svi.loss_and_grads = loss.loss, loss.loss_and_grads


def same(svi):
    pass


def steps(kind, copies, change):
    """Return the losses of a copy and then of the original, with the weights of both."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = Net()
    settings = {} if kind is pyro.infer.SVI else {"compile": True}
    svi = kind(net.model, net.guide, adam(net), pyro.infer.Trace_ELBO(), **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [svi.step(X) for _ in range(5)]
        other = copies(svi)
        change(other)
        losses += [other.step(X) for _ in range(10)] + [svi.step(X) for _ in range(10)]
    weights = [nn.utils.parameters_to_vector(s.model.__self__.parameters()) for s in (svi, other)]
    return torch.tensor(losses), torch.cat(weights).detach()


@pytest.mark.thinned(5)
@pytest.mark.parametrize("change", [same, another_pair, another_objective])
@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy])
def test_a_copy_takes_its_own_steps(copies, change):
    expected, right = steps(pyro.infer.SVI, copies, change)
    losses, weights = steps(pv.SVI, copies, change)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(weights, right)
