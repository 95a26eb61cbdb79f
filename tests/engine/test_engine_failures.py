"""A compiled step fails without a trace: the eager step follows, on the same random numbers."""

import copy
import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_vae as pv
from pyro_vae.engine import compiled_step, compiler, verification
from pyro_vae.engine import guards as surroundings
from pyro_vae.engine.capture import same_strides
from pyro_vae.engine.compiler import CompilationWarning

ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


@pytest.fixture
def graph_only(monkeypatch):
    """Run the graph itself, without the seconds that compiling it takes."""
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)


class Net(nn.Module):
    """A VAE in plain Pyro; `loc` is the mean of its prior, a tensor that is not a parameter."""

    def __init__(self, loc=None):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.loc = torch.zeros(2) if loc is None else loc

    def model(self, x):
        pyro.module("decoder", self.decoder)
        x = x.to_dense() if x.layout is not torch.strided else x
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        x = x.to_dense() if x.layout is not torch.strided else x
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(compile, batch, loc=None, steps=14, between=lambda i, svi: None):
    """Return the losses and the final parameters of a run from a seed, and its SVI."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    net = Net(loc)
    svi = pv.SVI(net.model, net.guide, ADAM, compile=compile)
    losses = []
    for i in range(steps):
        between(i, svi)
        losses.append(svi.step(batch))
    parameters = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    return np.array(losses), parameters, svi


def assert_equal_runs(ours, eager):
    np.testing.assert_allclose(ours[0], eager[0], rtol=1e-5)
    torch.testing.assert_close(ours[1], eager[1], rtol=1e-5, atol=1e-6)


TABLE = (torch.rand(9, 20, generator=torch.Generator().manual_seed(1)) < 0.4).float()

# The same kind of tensor in memory of every form; the first dimension has 9 rows, the second 6.
LAYOUTS = {
    "dense": lambda: TABLE[:, :6].contiguous(),
    "columns of a table": lambda: TABLE[:, 2:8],
    "every third column": lambda: TABLE[:, 1:18:3],
    "transposed": lambda: TABLE[:, :6].t().contiguous().t(),
    "one row repeated": lambda: TABLE[0, :6].expand(9, 6),
    "one column repeated": lambda: TABLE[:, :1].expand(9, 6),
    "one number repeated": lambda: torch.ones(()).expand(9, 6),
    "stride 0 and a gap": lambda: TABLE[0, ::3][:6].expand(9, 6),
    "overlapping rows": lambda: TABLE.flatten().as_strided((9, 6), (2, 1)),
    "a part of a part": lambda: TABLE.t()[3:9, :].t(),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_copy_has_the_strides_and_the_values(name):
    tensor = LAYOUTS[name]()
    made = same_strides(tensor)
    assert made.stride() == tensor.stride()
    assert torch.equal(made, tensor)
    assert made.data_ptr() != tensor.data_ptr()


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_batch_in_memory_of_any_form(name):
    batch = LAYOUTS[name]()
    ours = train(True, batch)
    assert_equal_runs(ours, train(False, batch))
    assert ours[2].num_compiled_steps == 13


def test_compiled_code_takes_strided_batches_and_priors():
    loc = torch.full((), 0.3).expand(2)
    for batch in (TABLE[:, 2:8], TABLE[0, :6].expand(9, 6)):
        ours = train(True, batch, loc, steps=6)
        assert_equal_runs(ours, train(False, batch, loc, steps=6))
        assert ours[2].num_compiled_steps == 5


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a_sparse_batch_runs_eagerly_and_says_so(layout):
    batch = TABLE[:, :6].to_sparse(layout=layout)
    with pytest.warns(CompilationWarning, match=r"torch\.sparse"):
        ours = train(True, batch)
    assert_equal_runs(ours, train(False, batch))
    assert ours[2].num_compiled_steps == 0


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


# -- failures -------------------------------------------------------------------------------------

# Every function that the engine calls in a step: where it is found, and its name.
FAILING = {
    "split": (compiler, "split"),
    "signature": (compiler.Compiler, "_signature"),
    "guards": (surroundings.GuardedState, "key"),
    "decision": (compiler.Compiler, "_consider"),
    "reuse": (compiler.Compiler, "_usable"),
    "reference": (verification.Verifier, "reference"),
    "capture": (compiler, "capture"),
    "comparison": (verification.Verifier, "compare"),
    "optimizers": (compiler, "graph_optimizers"),
    "program": (compiler, "CompiledStep"),
    "compiler": (compiled_step, "compile_graph"),
    "call": (compiled_step.CompiledStep, "__call__"),
    "schedule": (compiled_step.CompiledStep, "_follow_schedule"),
}


FIRST = ("decision", "capture", "optimizers", "program", "compiler")  # called once, at the start


@pytest.mark.usefixtures("graph_only")
@pytest.mark.parametrize("error", [KeyError, MemoryError])
@pytest.mark.parametrize("name", FAILING)
def test_an_error_in_the_engine_becomes_an_eager_step(name, error, monkeypatch):
    batch = TABLE[:, :6].contiguous()
    eager = train(False, batch)
    owner, attribute = FAILING[name]
    whole = getattr(owner, attribute)

    def fails(*args, **kwargs):
        torch.rand(3)  # the engine may have drawn random numbers before it failed
        raise error("broken")

    def break_it(i, svi):
        if i == (0 if name in FIRST else 4):
            monkeypatch.setattr(owner, attribute, fails)
            if name in ("reference", "comparison"):  # of the next checked run
                monkeypatch.setattr(compiler, "CHECKED_RUNS", range(1, 100))

    with pytest.warns(CompilationWarning, match=f"{error.__name__}: .*broken"):
        ours = train(True, batch, between=break_it)
    monkeypatch.setattr(owner, attribute, whole)
    assert_equal_runs(ours, eager)


@pytest.mark.usefixtures("graph_only")
def test_gradients_of_a_reference_that_failed_are_not_added_to_the_next():
    batch = TABLE[:, :6].contiguous()
    eager = train(False, batch)

    def fail_after_backward(i, svi):
        if i != 1:
            return
        whole = svi.gradients

        def gradients(*args):
            svi.gradients = whole
            whole(*args)
            raise RuntimeError("broken")

        svi.gradients = gradients

    with pytest.warns(CompilationWarning, match="broken"):
        ours = train(True, batch, between=fail_after_backward)
    assert_equal_runs(ours, eager)


def test_a_weight_of_other_strides_runs_eagerly():
    batch = TABLE[:, :6].contiguous()

    def transpose(i, svi):
        if i == 3:
            weight = svi.model.__self__.decoder.weight
            weight.data = weight.data.t().contiguous().t()

    with pytest.warns(CompilationWarning, match="the compiled step fails"):
        ours = train(True, batch, steps=6, between=transpose)
    assert_equal_runs(ours, train(False, batch, steps=6, between=transpose))


@pytest.mark.usefixtures("graph_only")
def test_a_prior_of_another_type_is_another_program():
    batch, runs = TABLE[:, :6].contiguous(), {}

    def widen(i, svi):
        if i == 5:
            svi.model.__self__.loc.data = svi.model.__self__.loc.data.double() + 0.5

    for compile in (True, False):
        runs[compile] = train(compile, batch, torch.zeros(2), between=widen)
    assert_equal_runs(runs[True], runs[False])
    assert runs[True][2].num_compiled_steps == 4


@pytest.mark.usefixtures("graph_only")
def test_gradients_that_belong_to_others_stay():
    batch = TABLE[:, :6].contiguous()

    def critic_has_a_gradient(i, svi):
        net = svi.model.__self__
        if i == 0:
            net.critic = nn.Linear(6, 1)
            net.critic(batch).sum().backward()
        assert torch.equal(net.critic.weight.grad, batch.sum(0, keepdim=True))

    assert_equal_runs(
        train(True, batch, between=critic_has_a_gradient),
        train(False, batch, between=critic_has_a_gradient),
    )


# -- which programs compile by themselves ---------------------------------------------------------


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
        """A model of the user's own, whatever it is derived from."""

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
