"""The state of a run includes the buffers of all modules and the generators that programs use.

A run that is resumed has them, and so has the best epoch, whether a pair consists of modules, of
methods of a module, or of functions that refer to modules.
"""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from tests.support.runs import Stop, stop_after

X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
STEPS = 3  # in an epoch


class Networks(nn.Module):
    """Networks with running statistics, a count of calls, and noise of Python and numpy."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.norm = nn.Linear(3, 2), nn.Linear(1, 3), nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("not_saved", torch.zeros(()), persistent=False)

    def decode(self, z):
        self.calls = self.calls + 1  # a new tensor
        self.not_saved += 1
        noise = random.random() + random.gauss(0, 1) + np.random.rand() + np.random.randn()  # noqa: NPY002 - the state to restore
        return self.norm(self.decoder(z)) * (self.not_saved / 20).clamp(max=1) + 0.1 * noise

    def model(self, x):
        pyro.module("networks", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Method(nn.Module):
    def __init__(self, networks, name):
        super().__init__()
        self.networks, self.method = networks, name

    def forward(self, x):
        return getattr(self.networks, self.method)(x)


def functions(networks):
    return pv.Pair(lambda x: networks.model(x), lambda x: networks.guide(x))


PAIRS = {
    "modules": lambda n: pv.Pair(Method(n, "model"), Method(n, "guide")),
    "methods": lambda n: n,
    "functions": functions,
}


def trained(kind, folder, resume=False, learning_rate=0.01, **settings):
    pyro.clear_param_store()
    torch.manual_seed(0)
    networks = Networks()
    fit = pv.fit(
        PAIRS[kind](networks), X, epochs=4, batch_size=16, learning_rate=learning_rate, seed=0,
        out=folder, resume=resume, checkpoint_seconds=0, progress=False, compile=False, **settings,
    )  # fmt: skip
    return fit, networks


@pytest.fixture(autouse=True)
def _random_state():
    state = random.getstate(), np.random.get_state()  # noqa: NPY002 - of the program
    with pyro.get_param_store().scope():
        yield
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002 - of the program


@pytest.mark.thinned(2)
@pytest.mark.parametrize("stop", [0, 4, 2 * STEPS])
@pytest.mark.parametrize("kind", PAIRS)
def test_a_resumed_run_is_the_whole_run(kind, stop, tmp_path, monkeypatch):
    whole, expected = trained(kind, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stop):
            trained(kind, tmp_path / "part")
    resumed, actual = trained(kind, tmp_path / "part", resume=True)
    assert [h["train_elbo"] for h in resumed.history] == [h["train_elbo"] for h in whole.history]
    for get in (nn.Module.parameters, nn.Module.buffers):
        assert all(map(torch.equal, get(actual), get(expected)))


@pytest.mark.parametrize("kind", PAIRS)
def test_programs_run_once_in_a_step(kind, tmp_path):
    _, networks = trained(kind, tmp_path)
    assert networks.calls == networks.not_saved == 4 * STEPS


@pytest.mark.parametrize("kind", PAIRS)
def test_the_best_epoch_has_its_buffers(kind, tmp_path):
    fit, networks = trained(kind, tmp_path, learning_rate=0.5, validation=HELD_OUT)
    assert fit.best["epoch"] < 4
    assert networks.calls == networks.not_saved == fit.best["epoch"] * STEPS
