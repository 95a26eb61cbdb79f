"""Changes of Pyro's parameter store between the steps of a compiled run.

A program depends on the entries that it reads, and on no others: entries of other programs change
neither its numbers nor its compiled steps, and an entry that it reads changes its numbers as in an
eager run.
"""

import gc
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.engine import compiled_step

BEFORE, AFTER = 6, 12
X = (torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) < 0.4).double()


@pytest.fixture(autouse=True)
def _store(monkeypatch):
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)
    torch.set_default_dtype(torch.float64)
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(torch.float32)


def store():
    return pyro.get_param_store()


def of_other_program():
    """Train another program for a step, with the store's names of its own."""
    net = nn.Linear(4, 2)

    def model(x):
        pyro.module("other", net)
        scale = pyro.param("other scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(net(x).sum(-1), scale), obs=x.sum(-1))

    optim = pyro.optim.Adam({"lr": 1e-3})
    pyro.infer.SVI(model, lambda x: None, optim, pyro.infer.Trace_ELBO()).step(X)


def replaced():
    if "other" in store():
        del store()["other"]
    gc.collect()
    store()["other"] = torch.rand(3)


def deleted():
    store()["other"] = torch.rand(3)
    del store()["other"]


# What another program does to the store before each step.
OTHERS = {
    "new entry": lambda i: store().setdefault(f"other {i}", torch.ones(2)),
    "another SVI": lambda i: of_other_program(),
    "replaced entry": lambda i: replaced(),
    "deleted entry": lambda i: deleted(),
    "pyro.param": lambda i: pyro.param(f"other {i}", torch.ones(2)),
    "PyroModule": lambda i: pyro.nn.PyroModule[nn.Linear](2, 2)(torch.ones(2)),
    "state of a file": lambda i: store().set_state(
        {
            "params": {f"other {i}": torch.ones(1)},
            "constraints": {f"other {i}": dist.constraints.real},
        }
    ),
}


# What a program computes of the store: a penalty, which is different if other entries exist.
READS = {
    "items": lambda: sum(p.sum() for name, p in store().items() if name.startswith("other")),
    "values": lambda: sum(p.sum() for p in store().values()) * 1e-3,
    "keys": lambda: len([name for name in sorted(store().keys()) if name.startswith("other")]),
    "iteration": lambda: len([name for name in store() if name.startswith("other")]),
    "match": lambda: sum(p.sum() for p in store().match("other.*").values()),
    "named_parameters": lambda: sum(p.sum() for _, p in store().named_parameters()) * 1e-3,
    "len": lambda: len(store()),
    "in": lambda: float("other" in store()),
    "entry": lambda: store()["other"].sum() if "other" in store() else 0.0,
    "table": lambda: store()._params.get("other", torch.zeros(1)).sum(),
    "pyro.param": lambda: pyro.param("other", torch.zeros(2)).sum(),
}
# How the entries that it reads change.
CHANGES = {
    "new entry": lambda: store().setdefault("other", torch.full((2,), 0.3)),
    "new value": lambda: store().__setitem__("other", torch.full((2,), 0.7)),
}


class Program(nn.Module):
    """A VAE with an entry of the store, which can add a penalty on what the store holds."""

    def __init__(self, penalty=None):
        super().__init__()
        self.encoder, self.decoder, self.penalty = nn.Linear(4, 4), nn.Linear(2, 4), penalty

    def model(self, x):
        pyro.module("program", self)
        shift = pyro.param("shift", torch.zeros(4))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z) + shift
            if self.penalty is not None:
                pyro.factor("penalty", -self.penalty() * logits.square().sum(-1))
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def trained(compile, change, penalty=None):
    """Return the weights of a run, and the number of its compiled steps."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    program = Program(penalty)
    svi = pv.SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), compile=compile)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(BEFORE + AFTER):
            state = torch.get_rng_state()
            if i >= BEFORE:
                change(i)
            torch.set_rng_state(state)
            svi.step(X)
    weights = [p.detach() for p in program.parameters()]
    return nn.utils.parameters_to_vector(weights), svi.num_compiled_steps


@pytest.mark.thinned(3)
@pytest.mark.parametrize("kind", OTHERS)
def test_entries_of_other_programs_change_nothing(kind):
    ours, num_compiled = trained(True, OTHERS[kind])
    alone, expected = trained(True, lambda i: None)
    assert num_compiled == expected > 0
    torch.testing.assert_close(ours, alone, rtol=0, atol=0)


@pytest.mark.thinned(7)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("read", READS)
def test_entries_that_a_program_reads_are_followed(read, change):
    def changed(i):
        if i == BEFORE + 3:
            CHANGES[change]()

    ours, num_compiled = trained(True, changed, READS[read])
    eager, _ = trained(False, changed, READS[read])
    assert num_compiled
    torch.testing.assert_close(ours, eager, rtol=0, atol=1e-9)
