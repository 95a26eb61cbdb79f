"""Pyro programs as users write them; training with Pyro's SVI and with the package's SVI."""

import functools
import random

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn

from pyro_vae.svi import SVI

D = torch.float64


def batches(shape=(6, 4), num=8):
    g = torch.Generator().manual_seed(0)
    return [((torch.rand(shape, generator=g) < 0.4).to(D),) for _ in range(num)]


def regression(guide):
    def model(x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x[:, :3] @ weight, scale), obs=x[:, 3])

    return model, guide(model), batches()


def vae(batch_norm=False, discrete=False):
    encoder, decoder = nn.Linear(4, 4), nn.Linear(2, 4)
    if batch_norm:
        decoder = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = dist.Bernoulli(x.new_full((2,), 0.5)) if discrete else dist.Normal(
                x.new_zeros(2), 1.0)  # fmt: skip
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x).chunk(2, -1)
            q = dist.Bernoulli(logits=loc) if discrete else dist.Normal(loc, scale.exp())
            pyro.sample("z", q.to_event(1))

    return model, guide, batches()


def mixture():
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x.sum(-1))

    return model, AutoDelta(poutine.block(model, expose=["weights", "locs"])), batches()


def joined(*values):
    batch = torch.broadcast_shapes(*[value.shape[:-1] for value in values])
    return torch.cat([value.expand(batch + value.shape[-1:]) for value in values], -1)


def semi_supervised():
    """SS-VAE: the guide enumerates the label if it is not observed."""
    encoder_y, encoder_z, decoder = nn.Linear(4, 3), nn.Linear(7, 4), nn.Linear(5, 4)

    def model(x, y=None):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(3) / 3), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=decoder(joined(z, y))).to_event(1), obs=x)

    @config_enumerate
    def guide(x, y=None):
        pyro.module("encoder_y", encoder_y)
        pyro.module("encoder_z", encoder_z)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=encoder_y(x)))
            loc, scale = encoder_z(joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    labels = torch.eye(3, dtype=D)[torch.arange(6) % 3]
    return model, guide, [x if i % 4 else (*x, labels) for i, x in enumerate(batches(num=12))]


def subsampled():
    data = torch.linspace(-1, 1, 20, dtype=D)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=5) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data[index])

    def guide():
        loc = pyro.param("loc_loc", lambda: torch.tensor(0.1))
        scale = pyro.param("scale", lambda: torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(loc, scale))
        with pyro.plate("data", 20, subsample_size=5):
            pass

    return model, guide, [()] * 8


def deep_markov_model(length=3):
    rnn, combiner = nn.GRU(4, 5, batch_first=True), nn.Linear(7, 4)
    transition, emission = nn.Linear(2, 4), nn.Linear(2, 4)

    def model(x):
        pyro.module("transition", transition)
        pyro.module("emission", emission)
        z = x.new_zeros(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(length):
                loc, scale = transition(z).chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale.exp()).to_event(1))
                p = dist.Bernoulli(logits=emission(z)).to_event(1)
                pyro.sample(f"x_{t}", p, obs=x[:, t])

    def guide(x):
        pyro.module("rnn", rnn)
        pyro.module("combiner", combiner)
        hidden, _ = rnn(x.flip(1))
        z = x.new_zeros(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(length):
                loc, scale = combiner(torch.cat([z, hidden[:, -1 - t]], -1)).chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide, batches((6, length, 4))


PROGRAMS = {
    "AutoNormal": (lambda: regression(AutoNormal), Trace_ELBO),
    "AutoMultivariateNormal": (lambda: regression(AutoMultivariateNormal), Trace_ELBO),
    "vae": (vae, Trace_ELBO),
    "mean field": (vae, TraceMeanField_ELBO),
    "particles": (vae, lambda: Trace_ELBO(num_particles=3)),
    "vectorized": (vae, lambda: Trace_ELBO(num_particles=3, vectorize_particles=True)),
    "batch norm": (lambda: vae(batch_norm=True), Trace_ELBO),
    "score function": (lambda: vae(discrete=True), Trace_ELBO),
    "graph": (lambda: vae(discrete=True), TraceGraph_ELBO),
    "wake-sleep": (vae, lambda: ReweightedWakeSleep(num_particles=2)),
    "differentiable loss": (vae, lambda: Trace_ELBO().differentiable_loss),
    "mixture": (mixture, lambda: TraceEnum_ELBO(max_plate_nesting=1)),
    "semi-supervised": (
        semi_supervised,
        lambda: TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    ),
    "subsampled": (subsampled, Trace_ELBO),
    "deep Markov model": (deep_markov_model, Trace_ELBO),
}


def run(svi_class, program, loss, optim=None, seed=1, **kwargs):
    """Train from seeded parameters; return the SVI, its losses and its parameters."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    model, guide, data = program()
    svi = svi_class(model, guide, optim or pyro.optim.Adam({"lr": 0.01}), loss(), **kwargs)
    losses = [svi.step(*args) for args in data]
    parameters = {k: v.detach().clone() for k, v in pyro.get_param_store().named_parameters()}
    return svi, losses, parameters


def assert_same(ours, stock, tolerance=1e-9):
    np.testing.assert_allclose(ours[1], stock[1], rtol=tolerance)
    assert ours[2].keys() == stock[2].keys()
    for name, expected in stock[2].items():
        torch.testing.assert_close(ours[2][name], expected, rtol=tolerance, atol=tolerance)


def normal(scale_of=lambda x: 1.0):
    """Return a model with scale `scale_of(x)`, its guide and batches."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, scale_of(x)), obs=x[:, 0])

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))

    return model, guide, batches(num=14)


calls = 0


def counts_calls(x):
    global calls
    calls += 1
    return 1.0 + calls % 3


def both(scale_of, between=lambda i: None, **kwargs):
    """Train with Pyro's SVI and with ours, calling `between(i)` before step i."""
    results = []
    for svi_class, more in ((pyro.infer.SVI, {}), (SVI, {"compile": True, **kwargs})):
        pyro.clear_param_store()
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        globals()["calls"] = 0
        model, guide, data = normal(scale_of)
        svi = svi_class(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(), **more)
        losses = []
        for i, args in enumerate(data):
            between(i)
            losses.append(svi.step(*args))
        results.append((svi, losses, {"loc": pyro.param("loc").detach()}))
    stock, ours = results
    assert_same(ours, stock)
    return ours[0]


OPTIMIZERS = {
    "Adam": functools.partial(torch.optim.Adam, lr=0.01),
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "amsgrad": functools.partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "fused": functools.partial(torch.optim.Adam, lr=0.01, fused=True),
    "SGD": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "plain SGD": functools.partial(torch.optim.SGD, lr=0.01),
    "Adagrad": functools.partial(torch.optim.Adagrad, lr=0.01, lr_decay=0.1),
    "RMSprop": functools.partial(torch.optim.RMSprop, lr=0.01),
    "RAdam": functools.partial(torch.optim.RAdam, lr=0.01),
}


def train_vae(optim, compile, between=lambda i, svi: None, steps=8):
    pyro.clear_param_store()
    torch.manual_seed(1)
    model, guide, data = vae()
    svi = SVI(model, guide, optim, Trace_ELBO(), compile=compile)
    losses = []
    for i, args in enumerate(data[:steps]):
        between(i, svi)
        losses.append(svi.step(*args))
    parameters = {k: v.detach().clone() for k, v in pyro.get_param_store().named_parameters()}
    return svi, losses, parameters
