"""All that a step does besides training is what Pyro's own step does: buffers, records, errors.

Each program is trained by `pyro.infer.SVI` and by a compiled `pv.SVI` from one seed, and what the
program leaves behind is read after each step. A program that cannot be compiled says so.
"""

import argparse
import queue
import types
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.engine import compiled_step
from pyro_vae.engine.compilation_warning import CompilationWarning

STEPS = 60


@pytest.fixture(autouse=True)
def _without_compiler(monkeypatch):
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Net(nn.Module):
    """A VAE; subclasses do something in `decode`, and `left` returns what they leave behind."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.prepare()

    def prepare(self):
        pass

    def decode(self, z):
        return self.decoder(z)

    def left(self):
        return None

    def observed(self, z, x):
        return dist.Bernoulli(logits=self.decode(z)).to_event(1)

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", self.observed(z, x), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x.nan_to_num()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def adam(net):
    return pyro.optim.Adam({"lr": 1e-2})


def plain(i, svi, net, x):
    svi.step(x)


def trained(compile, make=Net, step=plain, before=None, optim=adam, loss=None):
    """Return weights, what was left after each step, the error, compiled steps, and warnings.

    Args:
        compile: Whether to compile; None for the step of Pyro.
        make: Class of the network.
        step: Function that takes the step with a number.
        before: Function of the same arguments, called before each step.
        optim: Function of the network that returns the optimizer.
        loss: Objective, or a function for `loss_and_grads`.
    """
    pyro.clear_param_store()
    torch.manual_seed(0)
    net, x = make(), (torch.rand(16, 6) < 0.4).double()
    losses = (pyro.infer.Trace_ELBO(),) if loss is None else loss
    settings = {} if compile is None else {"compile": compile}
    kind = pyro.infer.SVI if compile is None else pv.SVI
    svi, left, error = kind(net.model, net.guide, optim(net), *losses, **settings), [], None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(STEPS):
            if before is not None:
                before(i, svi, net, x)
            try:
                step(i, svi, net, x)
            except (ValueError, RuntimeError) as failure:
                error = error or (i, type(failure))
            left.append(net.left())
    told = [w for w in caught if issubclass(w.category, CompilationWarning)]
    weights = nn.utils.parameters_to_vector(net.parameters()).detach()
    return weights, left, error, getattr(svi, "num_compiled_steps", 0), told


def assert_same(compiled=None, reference=None, **program):
    """The compiled run equals the reference; it is compiled, or a warning says that it is not."""
    (right, expected, stock_error, *_), (weights, left, error, num_compiled, told) = (
        trained(reference, **program), trained(True, **program)
    )  # fmt: skip
    torch.testing.assert_close(weights, right, rtol=0, atol=1e-6)
    assert error == stock_error
    for a, b in zip(left, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert told or num_compiled > STEPS // 2
    if compiled is not None:
        assert (num_compiled > STEPS // 2) == compiled


# -- buffers ---------------------------------------------------------------------------------------


def buffer_changed(change):
    class Buffers(Net):
        def prepare(self):
            self.register_buffer("b", torch.zeros(3, 6))

        def decode(self, z):
            y = self.decoder(z)
            with torch.no_grad():
                change(self.b, y.mean(0))
            return y

        def left(self):
            return self.b.clone()

    return Buffers


BUFFERS = {
    "row": lambda b, y: b[1].add_(1),
    "entry": lambda b, y: b[1, 2].add_(1),
    "index": lambda b, y: b.__setitem__(0, b[0] + y),
    "slice": lambda b, y: b[:2].mul_(0.9).add_(y),
    "column": lambda b, y: b[:, 0].lerp_(y[:3], 0.1),
    "transpose": lambda b, y: b.t()[0].add_(y[:3]),
    "view of a view": lambda b, y: b.view(18)[3:9].view(2, 3)[1].add_(1),
    "unsqueeze": lambda b, y: b.unsqueeze(0).add_(y),
    "split": lambda b, y: b.split(1)[2].add_(y),
    "unbind": lambda b, y: b.unbind(0)[1].add_(y),
    "chunk": lambda b, y: b.chunk(3, 1)[1].add_(1),
    "diagonal": lambda b, y: b.diagonal().add_(1),
    "out": lambda b, y: torch.add(b, y, out=b),
    "out of a row": lambda b, y: torch.mul(b[0], 0.9, out=b[0]).add_(y),
    "foreach": lambda b, y: torch._foreach_add_([b[0], b[1]], [y, y]),
    "index_add_": lambda b, y: b.index_add_(0, torch.tensor([1]), y[None]),
    "copy_": lambda b, y: b[0].copy_(y),
    "data": lambda b, y: b.data[0].add_(y),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_a_buffer_changes_once_in_each_step(name):
    assert_same(make=buffer_changed(BUFFERS[name]), compiled=True)


# -- what programs keep, take and leave behind -----------------------------------------------------


class Global(Net):
    def decode(self, z):
        global GLOBAL
        GLOBAL = z.detach()
        return self.decoder(z)

    def left(self):
        return GLOBAL


class Namespace(Net):
    def prepare(self):
        self.out = types.SimpleNamespace()

    def decode(self, z):
        self.out.z = z.detach()
        return self.decoder(z)

    def left(self):
        return self.out.z


class Options(Namespace):
    def prepare(self):
        self.out = argparse.Namespace()


class ForwardHook(Net):
    def prepare(self):
        self.decoder.register_forward_hook(lambda m, i, o: setattr(m, "activation", o.detach()))

    def left(self):
        return self.decoder.activation


class BackwardHook(Net):
    def prepare(self):
        self.decoder.register_full_backward_hook(lambda m, i, o: setattr(m, "norm", o[0].norm()))

    def left(self):
        return self.decoder.norm


class Traced(Net):
    def prepare(self):
        self.model = pyro.poutine.trace(self.model)

    def left(self):
        return self.model.trace.nodes["z"]["value"].detach()


class RunningMean(Net):
    def prepare(self):
        self.s = types.SimpleNamespace(mean=torch.zeros(6))

    def entry(self):
        return self.s.mean

    def decode(self, z):
        y = self.decoder(z)
        self.entry().mul_(0.9).add_(0.1 * y.detach().mean(0))
        return y + self.entry()

    def left(self):
        return self.entry().clone()


class Bank(RunningMean):
    def prepare(self):
        self.s = [torch.zeros(6) for _ in range(101)]

    def entry(self):
        return self.s[7]


class Table(Bank):
    def prepare(self):
        self.s = {i: torch.zeros(6) for i in range(1001)}


class Deep(Net):
    def prepare(self):
        layers = [nn.BatchNorm1d(6) if i == 50 else nn.Identity() for i in range(110)]
        self.blocks = nn.Sequential(*layers)

    def decode(self, z):
        return self.blocks(self.decoder(z))

    def left(self):
        return self.blocks[50].num_batches_tracked.clone()


class Loader(Net):
    def prepare(self):
        self.batches = iter(DataLoader(TensorDataset(torch.randn(1600, 2)), batch_size=16))

    def taken(self):
        return next(self.batches)[0]

    def decode(self, z):
        return self.decoder(z + self.taken())


class Queue(Loader):
    def prepare(self):
        self.batches = queue.Queue()
        for noise in torch.randn(100, 16, 2):
            self.batches.put(noise)

    def taken(self):
        return self.batches.get()

    def left(self):
        return self.batches.qsize()


class Simple(Queue):
    def prepare(self):
        self.batches = queue.SimpleQueue()
        for noise in torch.randn(100, 16, 2):
            self.batches.put(noise)


class Nonlocal(Net):
    def prepare(self):
        last = torch.zeros(2)

        def keep(z):
            nonlocal last
            last = z.detach()[0]

        self.keep, self.last = keep, lambda: last

    def decode(self, z):
        self.keep(z)
        return self.decoder(z)

    def left(self):
        return self.last()


EAGER = [Global, Namespace, Options, ForwardHook, BackwardHook, Traced, RunningMean, Bank, Table,
         Loader, Queue, Simple, Nonlocal]  # fmt: skip


@pytest.mark.parametrize("make", EAGER, ids=lambda make: make.__name__)
def test_programs_that_keep_results_run_eagerly_and_say_so(make):
    assert_same(make=make, compiled=False)


def test_a_deep_network_is_seen_as_a_whole():
    assert_same(make=Deep, compiled=True)


# -- gradients -------------------------------------------------------------------------------------


def hooked(register):
    class Hooked(Net):
        def prepare(self):
            self.norms, self.limit = [], {"clip": 1e9}

        def left(self):
            return len(self.norms)

    def before(i, svi, net, x):
        if i == 1:
            register(net, next(net.parameters()))
        if i == 50:
            net.limit["clip"] = 0.05

    return {"make": Hooked, "before": before}


HOOKS = {
    "record": lambda net, p: p.register_hook(lambda g: net.norms.append(g.norm())),
    "number": lambda net, p: p.register_hook(lambda g: net.norms.append(g.norm().item())),
    "clip": lambda net, p: p.register_hook(
        lambda g: g.clamp(-net.limit["clip"], net.limit["clip"])
    ),
    "after": lambda net, p: p.register_post_accumulate_grad_hook(
        lambda p: net.norms.append(p.grad.norm().item())
    ),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_parameters_are_called_in_each_step(name):
    sgd = {"optim": lambda net: pyro.optim.SGD({"lr": 1e-3})}
    assert_same(**hooked(HOOKS[name]), **sgd, compiled=False)


ELBO = pyro.infer.Trace_ELBO()


def by_function(model, guide, *args):
    loss = ELBO.differentiable_loss(model, guide, *args)
    torch.autograd.backward(loss)
    return loss.item()


def by_sequence(model, guide, *args):
    loss = ELBO.differentiable_loss(model, guide, *args)
    torch.autograd.backward([loss / 2, loss / 2])
    return loss.item()


def by_method(model, guide, *args):
    loss = ELBO.differentiable_loss(model, guide, *args)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("backward", [by_function, by_sequence, by_method])
def test_a_comparison_leaves_no_gradients(backward):
    assert_same(loss=(ELBO.loss, backward), compiled=True)


# -- optimizers ------------------------------------------------------------------------------------


def removed(svi, net):
    svi.optim.optimizer.param_groups[0]["params"] = list(net.decoder.parameters())


def removed_in_place(svi, net):
    del svi.optim.optimizer.param_groups[0]["params"][:2]


def moved(svi, net):
    removed(svi, net)
    svi.optim.optimizer.add_param_group({"params": list(net.encoder.parameters()), "lr": 1e-5})


def of_pyro(svi, net):
    for parameter in net.encoder.parameters():
        svi.optim.optim_objs[parameter].param_groups[0]["params"] = []


@pytest.mark.parametrize("change", [removed, removed_in_place, moved, of_pyro])
def test_parameters_leave_a_group_of_the_optimizer(change):
    own = change is of_pyro

    def before(i, svi, net, x):
        if i == 40:
            change(svi, net)

    optim = adam if own else lambda net: torch.optim.Adam(net.parameters(), lr=1e-2)
    assert_same(before=before, optim=optim, reference=None if own else False)


# -- errors ----------------------------------------------------------------------------------------


def refused_by(observed, value):
    """A program, and a batch that its checks refuse in step 40."""

    class Checked(Net):
        def prepare(self):
            with torch.no_grad():
                self.decoder.bias.fill_(0.5)
                self.decoder.weight.mul_(0.02)

        def observed(self, z, x):
            return observed(self.decode(z), x)

    def step(i, svi, net, x):
        x = torch.full((16, 6), 0.25)
        x[3, 2] = value if i == 40 else 0.25
        svi.step(x)

    return {"make": Checked, "step": step, "optim": lambda net: pyro.optim.Adam({"lr": 1e-3})}


MASK = torch.ones(16, 6, dtype=torch.bool)
MASK[3, 2] = False
NAN = float("nan")
REFUSED = {
    "masked NaN": (lambda y, x: dist.Normal(y, 1.0).mask(MASK).to_event(1), NAN),
    "NaN": (lambda y, x: dist.Normal(y, 1.0).to_event(1), NAN),
    "outside the support": (lambda y, x: dist.Beta(y.exp(), 1.0).to_event(1), 1.5),
    "parameter below 0": (lambda y, x: dist.Gamma(y + 0.5 - x[:, 2:3], 1.0).to_event(1), 3.0),
    "scale of 0": (lambda y, x: dist.Normal(y, 2 - x[:, 2:3]).to_event(1), 2.0),
    "masked parameter": (
        lambda y, x: dist.Normal(torch.where(x == 7, NAN, y), 1.0).mask(MASK).to_event(1), 7.0
    ),
    "probability above 1": (
        lambda y, x: dist.ContinuousBernoulli(probs=y / 2 + x[:, 2:3] / 8).to_event(1), 1.0 + 7
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_batches_that_pyro_refuses_are_refused(name):
    program = refused_by(*REFUSED[name])
    assert trained(None, **program)[2] == (40, ValueError)
    assert_same(**program)


class Unstable(Net):
    def prepare(self):
        self.register_buffer("on", torch.ones(()))

    def decode(self, z):
        y = self.decoder(z)
        return y + torch.sqrt(torch.relu(self.on) * y.square()).sum() * 0


def watched(i, svi, net, x):
    if i == 40:
        net.on.fill_(0.0)
    if i <= 40:
        with torch.autograd.set_detect_anomaly(i >= 35):
            svi.step(x)


def test_anomalies_are_detected():
    assert trained(None, make=Unstable, step=watched)[2] == (40, RuntimeError)
    assert_same(make=Unstable, step=watched)


# -- contexts --------------------------------------------------------------------------------------


class Spectral(Net):
    def prepare(self):
        parametrizations.orthogonal(self.encoder)


def cached(i, svi, net, x):
    with parametrize.cached():
        svi.step(x)


def scaled(i, svi, net, x):
    with pyro.poutine.scale(scale=0.1):
        svi.step(x)


def watching(i, svi, net, x):
    with torch.autograd.set_detect_anomaly(True):
        svi.step(x)


@pytest.mark.parametrize(
    ("step", "make"), [(cached, Spectral), (scaled, Net), (watching, Net)], ids=lambda v: v.__name__
)
def test_steps_in_a_context_run_eagerly_and_say_so(step, make):
    assert_same(make=make, step=step, compiled=False)


# -- memory ----------------------------------------------------------------------------------------


class Flat(nn.Module):
    """A program with an argument, and possibly its own tensor, in the memory of a parameter."""

    def __init__(self, held):
        super().__init__()
        self.loc, self.held = nn.Parameter(torch.randn(1000)), None
        if held:
            self.held = self.loc.detach()

    def model(self, x, now=None):
        now = self.held if now is None else now
        z = pyro.sample("z", dist.Normal(nn.functional.pad(now[:-1], (1, 0)), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x, now=None):
        pyro.sample("z", dist.Normal(pyro.param("loc", self.loc), 1.0).to_event(1))


@pytest.mark.parametrize("held", [False, True], ids=["argument", "attribute"])
def test_memory_of_a_parameter_is_read_before_it_changes(held, monkeypatch):
    monkeypatch.undo()  # the compiler reorders reads and writes
    torch.set_default_dtype(torch.float32)

    def run(compile):
        pyro.clear_param_store()
        torch.manual_seed(0)
        net, x = Flat(held), torch.randn(8, 1000)
        svi = pv.SVI(net.model, net.guide, pyro.optim.SGD({"lr": 0.02}), compile=compile)
        for _ in range(45):
            svi.step(x, *([] if held else [net.loc.detach()]))
        return net.loc.detach()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompilationWarning)
        torch.testing.assert_close(run(True), run(False), rtol=0, atol=2e-5)
