"""`pyro.module` of a stored name: training moves the module's parameters, or is refused.

Pyro returns the stored parameters, and the module computes with its own, so steps have no effect.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


class Programs:
    """A linear VAE, whose modules are registered by the given names."""

    def __init__(self, decoder="decoder", encoder="encoder", **settings):
        self.names, self.settings = (decoder, encoder), settings
        self.decoder, self.encoder = nn.Linear(3, 3), nn.Linear(3, 3)

    def model(self, x):
        pyro.module(self.names[0], self.decoder, **self.settings)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(self.names[1], self.encoder, **self.settings)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))

    def weights(self):
        return [module.weight.detach().clone() for module in (self.decoder, self.encoder)]


def by_fit(pair):
    pv.fit(pv.Pair(pair.model, pair.guide), X, epochs=1, batch_size=6)


def by_step(pair):
    pv.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01})).step(X)


def by_torch(pair):
    parameters = [*pair.decoder.parameters(), *pair.encoder.parameters()]
    pv.SVI(pair.model, pair.guide, torch.optim.Adam(parameters, lr=0.01)).step(X)


def trained_before():
    by_step(Programs())
    return Programs()


def one_name():
    return Programs("net", "net")


def copied():
    """The store has a contiguous copy of a transposed weight."""
    pair = Programs()
    pair.decoder.weight = nn.Parameter(torch.randn(3, 3).T)
    return pair


@pytest.mark.parametrize("train", [by_fit, by_step, by_torch])
@pytest.mark.parametrize("make", [trained_before, one_name, copied])
def test_steps_without_effect_are_refused(make, train):
    pair = make()
    before = pair.weights()
    with pytest.raises(
        pv.PairError, match=r"pyro.module finds another parameter.*clear_param_store"
    ):
        train(pair)
    assert all(map(torch.equal, before, pair.weights()))


def again():
    """The same modules in new programs."""
    first, second = Programs(), Programs()
    by_step(first)
    second.decoder, second.encoder = first.decoder, first.encoder
    return second


def cleared():
    by_step(Programs())
    pyro.clear_param_store()
    return Programs()


def other_names():
    by_step(Programs())
    return Programs("decoder 2", "encoder 2")


def stored():
    by_step(Programs())
    return Programs(update_module_params=True)


def continued():
    pair = stored()
    pair.model(X), pair.guide(X)  # the modules have the parameters of the first pair
    return pair


@pytest.mark.parametrize("train", [by_fit, by_step])
@pytest.mark.parametrize("make", [Programs, again, cleared, other_names, stored, continued])
def test_other_steps_move_the_modules(make, train):
    pair = make()
    before = pair.weights()
    train(pair)
    assert not any(map(torch.equal, before, pair.weights()))
