"""Checks, scores, diagnostics and trees restore pairs, parameter store and random states."""

import functools
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import nn

import pyro_vae as pv
from pyro_vae.objectives.nats_per_datum import per_datum

X = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """Has buffers, counters and parameters that a call changes."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.count, self.seen, self.sizes = 0, [], {}

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.seen.append(len(x))
        self.sizes[len(x)] = True
        if self.count == 1:
            self.late = nn.Parameter(torch.zeros(()))
            self.register_buffer("late_buffer", torch.ones(()))
        loc, scale = self.linear(self.norm(x)).chunk(2, -1)
        return loc + self.late, scale.exp()


def plain():
    """Return functions that refer to a module and create entries of the parameter store."""
    encoder, decoder = Encoder(), nn.Sequential(nn.Linear(2, 3), nn.Dropout())

    def model(x):
        scale = pyro.param("scale", lambda: torch.rand(()) + 1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = decoder(z)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder.linear", encoder.linear)
        random.random(), np.random.rand()  # noqa: NPY002 - the state to restore
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    return pv.Pair(model, guide), [encoder, decoder]


def methods():
    """Return the methods of an object that holds modules."""
    (pair, modules) = plain()

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(modules)

        def model(self, x):
            return pair.model(x)

        def guide(self, x):
            return pair.guide(x)

    holder = Holder()
    return pv.Pair(holder.model, holder.guide), [holder, *modules]


def model_of_a_mean(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)


def automatic(kind):
    guide = kind(model_of_a_mean)
    return pv.Pair(model_of_a_mean, guide), [guide]


PAIRS = {"functions": plain, "methods": methods} | {
    name: functools.partial(automatic, getattr(autoguide, name))
    for name in (
        "AutoNormal", "AutoDiagonalNormal", "AutoDelta", "AutoIAFNormal", "AutoStructured",
        "AutoNormalMessenger", "AutoRegressiveMessenger",
    )
}  # fmt: skip

CALLS = {
    "check": lambda pair: pv.check(pair, X),
    "evaluate": lambda pair: pv.evaluate(pair, X, num_samples=3),
    "diagnose": lambda pair: pv.diagnose(pair, X, num_samples=30),
    "from_pyro_svi": lambda pair: pv.from_pyro_svi(
        pair.model, pair.guide, model_args=(X,), num_samples=3, groups=["posterior"]
    ),
    "collapse": lambda pair: pv.collapse(pair, X, num_samples=3),
    "ais": lambda pair: pv.ais(pair, X, num_chains=2, num_temperatures=3),
    "sbc": lambda pair: pv.sbc(pair, X, num_simulations=4, num_draws=3),
    "per_datum": lambda pair: per_datum(pair.model, 9, "data") and pv.check(pair, X[:4]),
}


def state_of(modules):
    """Return everything that a call could change, as comparable values."""
    everything = [module for root in modules for module in root.modules()]
    kept = [
        {
            name: value.copy() if isinstance(value, dict | list) else value
            for name, value in vars(module).items()
            if not name.startswith("_") or name in ("_parameters", "_buffers", "_modules")
        }
        for module in everything
    ]
    tensors = [[t.detach().clone() for t in (*m.parameters(), *m.buffers())] for m in everything]
    legacy = np.random.get_state(legacy=True)  # noqa: NPY002 - the state to restore
    generators = random.getstate(), legacy[1].tobytes(), torch.get_rng_state()
    store = {name: p.clone() for name, p in pyro.get_param_store().named_parameters()}
    return everything, kept, tensors, generators, store


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one is other or bool(one == other)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", PAIRS)
def test_a_call_changes_nothing(kind, call):
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        pair, modules = PAIRS[kind]()
        before = state_of(modules)
        try:
            CALLS[call](pair)
        except pv.PairError:
            assert kind.startswith("Auto")  # global latents have no scores per datum
        assert same(before, state_of(modules))
