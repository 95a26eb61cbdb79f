"""A failing engine leaves no trace: the eager step follows, on the same random numbers."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_vae as pv
from pyro_vae.engine import comparison, compiled_step, compiler, guards, program_maker, verification
from pyro_vae.engine.compilation_warning import CompilationWarning
from tests.support.strided_net import ADAM, TABLE, Net, assert_equal_runs, train_net


class Regression(PyroModule):
    """Bayesian regression with priors made by `expand`, which have stride 0."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def test_expanded_priors_compile():
    runs = []
    for compile in (True, False):
        pyro.clear_param_store()
        torch.manual_seed(0)
        x, y = torch.randn(20, 3), torch.randn(20)
        model = Regression()
        svi = pv.SVI(
            model, AutoDiagonalNormal(model), pyro.optim.Adam({"lr": 0.01}), compile=compile
        )
        runs.append([svi.step(x, y) for _ in range(8)])
    assert svi.num_compiled_steps == 0
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)


# Functions that the engine calls in a step: module or class, and name.
FAILING = {
    "split": (compiler, "split"),
    "signature": (compiler.Compiler, "_signature"),
    "guards": (guards.GuardedState, "key"),
    "decision": (compiler.Compiler, "_consider"),
    "reuse": (compiler.Compiler, "_usable"),
    "reference": (verification.Verifier, "reference"),
    "capture": (program_maker, "capture"),
    "comparison": (verification.Verifier, "compare"),
    "verified step": (comparison.Comparison, "__init__"),
    "its comparison": (comparison.Comparison, "check"),
    "optimizers": (program_maker, "graph_optimizers"),
    "program": (program_maker, "CompiledStep"),
    "compiler": (compiled_step, "compile_graph"),
    "call": (compiled_step.CompiledStep, "__call__"),
    "schedule": (compiled_step.CompiledStep, "_follow_schedule"),
}

FIRST = (
    "decision",
    "reference",
    "capture",
    "comparison",
    "optimizers",
    "program",
    "compiler",
)  # called once, at the start


@pytest.mark.usefixtures("graph_only")
@pytest.mark.thinned(3)
@pytest.mark.parametrize("error", [KeyError, MemoryError])
@pytest.mark.parametrize("name", FAILING)
def test_an_error_in_the_engine_becomes_an_eager_step(name, error, monkeypatch):
    batch = TABLE[:, :6].contiguous()
    eager = train_net(False, batch)
    owner, attribute = FAILING[name]
    whole = getattr(owner, attribute)

    def fails(*args, **kwargs):
        torch.rand(3)  # the engine can draw random numbers before it fails
        raise error("broken")

    def break_it(i, svi):
        if i == (0 if name in FIRST else 4):
            monkeypatch.setattr(owner, attribute, fails)
            if name in ("verified step", "its comparison"):  # called in the next checked run
                monkeypatch.setattr(compiler, "CHECKED_RUNS", range(1, 100))

    with pytest.warns(CompilationWarning, match=f"{error.__name__}: .*broken"):
        ours = train_net(True, batch, between=break_it)
    monkeypatch.setattr(owner, attribute, whole)
    assert_equal_runs(ours, eager)


def test_a_weight_of_other_strides_runs_eagerly():
    batch = TABLE[:, :6].contiguous()

    def transpose(i, svi):
        if i == 3:
            weight = svi.model.__self__.decoder.weight
            weight.data = weight.data.t().contiguous().t()

    with pytest.warns(CompilationWarning, match="the compiled step fails"):
        ours = train_net(True, batch, steps=6, between=transpose)
    assert_equal_runs(ours, train_net(False, batch, steps=6, between=transpose))


@pytest.mark.usefixtures("graph_only")
def test_a_prior_of_another_type_is_another_program():
    batch, runs = TABLE[:, :6].contiguous(), {}

    def widen(i, svi):
        if i == 5:
            svi.model.__self__.loc.data = svi.model.__self__.loc.data.double() + 0.5

    for compile in (True, False):
        runs[compile] = train_net(compile, batch, torch.zeros(2), between=widen)
    assert_equal_runs(runs[True], runs[False])
    assert runs[True][2].num_compiled_steps == 4


def own_vae():
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 6)),
        pv.guides.DiagonalNormal(pv.networks.MLP(6, [4], 4)),
    )


@pytest.mark.usefixtures("graph_only")
def test_auto_compiles_own_models_only(monkeypatch):
    monkeypatch.setattr(compiler, "STEPS_BEFORE_COMPILING", 3)
    batch = TABLE[:, :6].contiguous()
    vae, net = own_vae(), Net()

    class User(type(vae.model)):
        """A user's subclass of the package's model."""

    user = User(vae.model.prior, vae.model.likelihood)
    programs = {
        "own": (vae.model, vae.guide, 6),
        "a user's": (net.model, net.guide, 0),
        "a user's model": (user, vae.guide, 0),
        "a function around it": (lambda x: vae.model(x), vae.guide, 0),
    }
    for name, (model, guide, expected) in programs.items():
        pyro.clear_param_store()
        svi = pv.SVI(model, guide, ADAM)
        for _ in range(10):
            svi.step(batch)
        assert svi.num_compiled_steps == expected, name


@pytest.mark.usefixtures("graph_only")
def test_fit_compiles_own_models_only_by_itself(monkeypatch):
    monkeypatch.setattr("pyro_vae.training.setup.STEPS_WORTH_COMPILING", 5)
    data = TABLE[:, :6].contiguous()
    vae, net = own_vae(), Net()
    settings = {"epochs": 3, "batch_size": 3, "progress": False}
    assert pv.fit(vae, data, **settings).settings["engine"] == "compiled"
    assert pv.fit(pv.Pair(net.model, net.guide), data, **settings).settings["engine"] == "eager"
    pair = pv.Pair(copy.deepcopy(vae).model, copy.deepcopy(vae).guide)
    assert pv.fit(pair, data, **settings, compile=True).settings["engine"] == "compiled"


@pytest.mark.usefixtures("graph_only")
@pytest.mark.filterwarnings("ignore:steps with other values")
def test_signatures_that_differ_from_step_to_step_are_forgotten(monkeypatch):
    monkeypatch.setattr(compiler, "MAX_SIGNATURES", 5)
    net = Net()
    svi = pv.SVI(net.model, net.guide, ADAM, compile=True)
    for i in range(40):
        svi.step(TABLE[: 1 + i % 9, :6].contiguous())
        net.count = i
    assert len(svi._compiler._counts) <= 5
