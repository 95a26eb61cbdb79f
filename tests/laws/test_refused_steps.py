"""Steps are refused, and follow optimizers, contexts and shared memory, as Pyro's own steps."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pyro_vae as pv
from pyro_vae.engine.compilation_warning import CompilationWarning
from tests.support.effects import Net, adam, assert_same, trained

pytestmark = pytest.mark.usefixtures("graphs_in_double")


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


@pytest.mark.thinned(3)
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


@pytest.mark.thinned(5)
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


class Saved(Net):
    def prepare(self):
        self.saved = []

    def left(self):
        return len(self.saved)


def counting(i, svi, net, x):
    if i == 30:
        optimizer = svi.optim.optimizer
        optimizer.register_step_post_hook(lambda *_: net.saved.append(1))
    svi.step(x)


def test_a_hook_of_the_optimizer_that_keeps_results_takes_no_steps_back():
    def optim(net):
        return torch.optim.Adam(net.parameters(), lr=1e-2)

    assert_same(True, make=Saved, step=counting, optim=optim, reference=False)


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


def offloaded(i, svi, net, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: net.saved.append(1) or t, lambda t: t):
        svi.step(x)


def watching(i, svi, net, x):
    with torch.autograd.set_detect_anomaly(True):
        svi.step(x)


@pytest.mark.parametrize(
    ("step", "make"),
    [(cached, Spectral), (scaled, Net), (watching, Net), (offloaded, Saved)],
    ids=lambda v: v.__name__,
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


@pytest.mark.parametrize("times", [1, 3])
def test_steps_with_ever_new_shapes_run_eagerly_and_say_so(times):
    assert_same(step=lambda i, svi, net, x: svi.step(x.repeat(4, 1)[: 1 + i // times]))
