"""Programs with state of any kind: trial runs of the package leave no trace in it.

A program changes a state in each run and computes with it. The compiler runs it on trial before it
compiles; checks and scores run it, too. Afterwards, steps continue from the former state.
"""

import contextlib
import itertools
import random
import types
import warnings
from collections import deque

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.engine import compiled_step
from pyro_vae.engine.compilation_warning import CompilationWarning

GLOBAL = 0.0


class Shared:
    """Has a class attribute that programs change."""

    calls = 0.0


class Program(nn.Module):
    """A small VAE; a subclass gives `state`, which changes in each run, and `change`.

    Attributes:
        fixed: Whether the state cannot be set back.
    """

    fixed = False

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(1, 3)
        self.start()

    def start(self):
        """Create the state."""

    def decode(self, z):
        return self.decoder(z) * self.change()

    def change(self):
        """Change the state; return a number that depends on it."""
        return 1.0

    def state(self):
        """Return the state as a value or a tensor."""
        return 0

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("program", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Attribute(Program):
    def start(self):
        self.calls = 0.0

    def change(self):
        self.calls += 0.25
        return self.calls

    def state(self):
        return self.calls


class ClassAttribute(Program):
    def start(self):
        Shared.calls = 0.0

    def change(self):
        Shared.calls += 0.25
        return Shared.calls

    def state(self):
        return Shared.calls


class Global(Program):
    def start(self):
        globals()["GLOBAL"] = 0.0

    def change(self):
        global GLOBAL
        GLOBAL += 0.25
        return GLOBAL

    def state(self):
        return GLOBAL


class Closure(Program):
    def start(self):
        calls = 0.0

        def count():
            nonlocal calls
            calls += 0.25
            return calls

        self.count, self.read = count, lambda: calls

    def change(self):
        return self.count()

    def state(self):
        return self.read()


class NestedObject(Program):
    def start(self):
        self.settings = {"inner": [types.SimpleNamespace(calls=0.0)]}

    def change(self):
        self.settings["inner"][0].calls += 0.25
        return self.settings["inner"][0].calls

    def state(self):
        return self.settings["inner"][0].calls


class KeyOfADictionary(Program):
    def start(self):
        self.sizes = {0: True}

    def change(self):
        (last,) = self.sizes
        self.sizes.clear()
        self.sizes[last + 1] = True
        return 0.25 * (last + 1)

    def state(self):
        return list(self.sizes)


class Queue(Program):
    def start(self):
        self.queue = deque([0.0], maxlen=3)

    def change(self):
        self.queue.append(self.queue[-1] + 0.25)
        return self.queue[-1]

    def state(self):
        return list(self.queue)


class Array(Program):
    def start(self):
        self.array = np.zeros((2, 3))[:, ::2]  # not contiguous

    def change(self):
        self.array += 0.25
        return float(self.array[0, 0])

    def state(self):
        return self.array.tolist()


class NumpyGenerator(Program):
    def start(self):
        self.generator = np.random.default_rng(0)

    def change(self):
        return float(self.generator.random())

    def state(self):
        return self.generator.bit_generator.state


class NumpyRandomState(NumpyGenerator):
    def start(self):
        self.generator = np.random.RandomState(0)

    def change(self):
        return float(self.generator.random_sample())

    def state(self):
        return [*self.generator.get_state()[1].tolist(), self.generator.get_state()[2]]


class PythonGenerator(Program):
    def start(self):
        self.generator = random.Random(0)

    def change(self):
        return self.generator.random()

    def state(self):
        return self.generator.getstate()


class TorchGenerator(Program):
    def start(self):
        self.generator = torch.Generator().manual_seed(0)

    def change(self):
        return torch.rand(3, generator=self.generator)

    def state(self):
        return self.generator.get_state()


class GeneratorOfNumbers(TorchGenerator):
    def change(self):
        return torch.rand((), generator=self.generator).item()


class Count(Program):
    fixed = True

    def start(self):
        self.steps = itertools.count(1)

    def change(self):
        return 0.25 * next(self.steps)


class Schedule(Count):
    def start(self):
        self.steps = (step for step in range(1, 100))


class TensorInPlace(Program):
    def start(self):
        self.mean = torch.zeros(3)

    def decode(self, z):
        logits = self.decoder(z)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(logits.mean(0) + 0.1)
        return logits - self.mean

    def state(self):
        return self.mean


class TensorData(TensorInPlace):
    def decode(self, z):
        logits = self.decoder(z)
        self.mean.data.mul_(0.9).add_(0.1)  # the version of the tensor does not change
        return logits - self.mean


class Buffer(TensorInPlace):
    def start(self):
        self.register_buffer("mean", torch.zeros(3))


class BatchNorm(Program):
    def start(self):
        self.norm = nn.BatchNorm1d(3)  # changes its running statistics, not their versions

    def decode(self, z):
        return self.norm(self.decoder(z))

    def state(self):
        return torch.stack([self.norm.running_mean, self.norm.running_var])


class FunctionalBatchNorm(TensorInPlace):
    def decode(self, z):
        variance = torch.ones(3)
        return nn.functional.batch_norm(self.decoder(z), self.mean, variance, training=True)


class Argument(Program):
    fixed = True  # an argument of the caller, which each run changes

    def guide(self, x):
        x.mul_(0.5)
        super().guide(x)


class ParameterData(Program):
    fixed = True  # parameters are not restored by checks and scores

    def decode(self, z):
        self.decoder.weight.data.mul_(0.9)
        return self.decoder(z)


class StoredParameterData(ParameterData):
    def decode(self, z):
        scale = pyro.param("scale", torch.ones(3))
        scale.data.mul_(0.9)
        return self.decoder(z) * scale


KINDS = {
    kind.__name__: kind
    for kind in globals().copy().values()
    if isinstance(kind, type) and issubclass(kind, Program) and kind is not Program
}
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _graph(monkeypatch):
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)
    with pyro.get_param_store().scope():
        yield


def trained(kind, compile):
    pyro.clear_param_store()
    torch.manual_seed(0)
    program = KINDS[kind]()
    optim = pyro.optim.SGD({"lr": 1e-3})
    svi = pv.SVI(program.model, program.guide, optim, compile=compile)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompilationWarning)
        losses = [svi.step(X.clone()) for _ in range(6)]
    return losses, program.state()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_eager_training(kind):
    (ours, state), (eager, expected) = (trained(kind, compile) for compile in (True, False))
    np.testing.assert_allclose(ours, eager, rtol=1e-6)
    torch.testing.assert_close(state, expected) if isinstance(state, torch.Tensor) else None
    assert isinstance(state, torch.Tensor) or state == expected


CALLS = {
    "check": lambda pair: pv.check(pair, X),
    "evaluate": lambda pair: pv.evaluate(pair, X, num_samples=3),
    "from_pyro_svi": lambda pair: pv.from_pyro_svi(
        pair.model, pair.guide, model_args=(X,), num_samples=3
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.fixed])
def test_a_call_changes_no_state(kind, call):
    program = KINDS[kind]()
    before = program.state()
    before = before.clone() if isinstance(before, torch.Tensor) else before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of densities that change from run to run
        # A program that gives other densities in each run cannot be scored.
        with contextlib.suppress(pv.PairError):
            CALLS[call](pv.Pair(program.model, program.guide))
    after = program.state()
    assert after.equal(before) if isinstance(after, torch.Tensor) else after == before
