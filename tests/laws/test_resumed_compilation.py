"""A resumed run compiles the steps that the whole run compiles, because they round differently.

Which steps are compiled depends on the sizes of the minibatches and on how often each occurred.
Which steps are compared with eager ones may differ, because it does not change the numbers.
"""

import functools
import random
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.optim.clipped_adam import ClippedAdam
from torch import nn

import pyro_vae as pv
from pyro_vae.engine import compiled_step, compiler
from pyro_vae.training import run_state
from tests.support.runs import Stop

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
EPOCHS = 6


class Pair(nn.Module):
    """A pair; `extra` is a term of the decoder."""

    optimizer = functools.partial(torch.optim.Adam, lr=0.01)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(1, 3)
        self.register_buffer("calls", torch.tensor(0))

    def extra(self):
        return 0.0

    def model(self, x):
        pyro.module("decoder", self.decoder)
        if self.training:
            self.calls += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z) + self.extra(), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Stateless(Pair):
    """Its optimizer keeps no state."""

    optimizer = functools.partial(torch.optim.SGD, lr=1e-3)


class Late(Pair):
    """A parameter with a constraint appears in the sixth call."""

    def extra(self):
        if self.calls < 6:
            return 0.0
        return pyro.param("late", torch.tensor(0.3), constraint=constraints.positive)


class Seldom(Pair):
    """A parameter with a constraint is used in every fifth call."""

    def extra(self):
        if self.calls % 5 < 4:
            return 0.0
        return pyro.param("late", torch.tensor(0.3), constraint=constraints.positive)


class Random(Pair):
    """Draws from a generator of Python from the sixth call on, so that compilation ends."""

    def extra(self):
        return 0.0 if self.calls < 6 else 0.1 * random.random()


def run(make, num_data, batch_size, folder, monkeypatch, stop=None, resume=False):
    """Return weights, the steps that were compiled, and warnings."""
    pyro.clear_param_store()
    pair, real, compiled = make(), run_state.RunState.count, {}

    def count(self, loss, num_rows):
        if self.progress.step == stop:
            raise Stop
        before = sum(compiled.values())
        real(self, loss, num_rows)
        compiled[self.progress.step] = self.svi.num_compiled_steps - before

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(run_state.RunState, "count", count)
        pv.fit(
            pair, X[:num_data], epochs=EPOCHS, batch_size=batch_size, compile=True, out=folder,
            resume=resume, checkpoint_seconds=0, progress=False, optimizer=make.optimizer,
        )  # fmt: skip
    told = {str(w.message).partition(",")[0] for w in caught if "compil" in str(w.message)}
    weights = {**dict(pair.named_parameters()), **dict(pyro.get_param_store().items())}
    return {name: x.detach().clone() for name, x in weights.items()}, compiled, told


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)
    monkeypatch.setattr(compiler, "STEPS_BEFORE_COMPILING", 3)
    with pyro.get_param_store().scope():
        yield


@pytest.mark.thinned(9)
@pytest.mark.parametrize(
    ("make", "num_data", "batch_size"),
    [
        (Pair, 24, 16),  # the second step, at which compilation begins, is a short one
        (Pair, 40, 16),  # a short batch is compiled after some epochs
        (Stateless, 16, 8),
        (Late, 16, 8),
        (Seldom, 24, 16),
        (Random, 24, 16),
    ],
)
@pytest.mark.parametrize("stop", [7, 1, 2, 5])
def test_the_same_steps_are_compiled(make, num_data, batch_size, stop, tmp_path, monkeypatch):
    settings = make, num_data, batch_size
    whole, compiled, told = run(*settings, tmp_path / "whole", monkeypatch)
    with pytest.raises(Stop):
        run(*settings, tmp_path / "part", monkeypatch, stop=stop)
    resumed, again, told_again = run(*settings, tmp_path / "part", monkeypatch, resume=True)
    assert again == {step: compiled[step] for step in again}
    assert told_again == told
    for name, weights in whole.items():
        assert torch.equal(resumed[name], weights), name


class Normalized(Pair):
    """Batch normalization, of which a recorded graph computes the running statistics by itself."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, ClippedAdam])
def test_numbers_do_not_depend_on_the_verified_steps(optimizer, monkeypatch):
    tensors = []
    for runs in ({1}, {1, 3, 4, 6, 9}):
        monkeypatch.setattr(compiler, "CHECKED_RUNS", runs)
        pyro.clear_param_store()
        torch.manual_seed(1)
        pair = Normalized()
        svi = pv.SVI(pair.model, pair.guide, functools.partial(optimizer, lr=1e-3), compile=True)
        for _ in range(12):
            svi.step(X)
        assert svi.num_compiled_steps >= 10
        tensors.append([*pair.parameters(), *pair.buffers()])
    assert all(map(torch.equal, *tensors))
