"""Steps that turn out to be wrong are taken back, and `fit` takes them again."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import pyro_vae as pv
from pyro_vae.engine import comparison, compiler, verified_state
from pyro_vae.engine.compilation_warning import CompilationWarning
from tests.support.strided_net import ADAM, TABLE, Net, assert_equal_runs, train_net

pytestmark = pytest.mark.usefixtures("graph_only")
STEPS_PER_EPOCH, EPOCHS = 8, 20
TOTAL = STEPS_PER_EPOCH * EPOCHS


class Hidden:
    """A setting that guards do not find, because its class claims to be of a library.

    It changes if the learning rate has fallen, so that it has its former value in a step that is
    taken again.
    """

    __module__ = "torch"

    def __init__(self):
        self.group, self.rate = {"lr": 1.0}, 0.0

    def __call__(self):
        return 1.0 if self.group["lr"] > self.rate else 0.3


class HiddenNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)
        self.hidden = Hidden()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.module("decoder", self.decoder)
            likelihood = dist.Bernoulli(logits=self.decoder(z) * self.hidden())
            pyro.sample("x", likelihood.to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def fitted(compile, at):
    """Return the weights of a run in which a hidden setting changes after step `at`."""
    pyro.clear_param_store()
    net = HiddenNet()

    def rate(step):
        return 1.0 / (1 + step)

    def schedule(optimizer, total):
        if at is not None:
            net.hidden.group, net.hidden.rate = optimizer.param_groups[0], 0.1 * rate(at)
        return LambdaLR(optimizer, rate)

    generator = torch.Generator().manual_seed(1)
    data = (torch.rand(8 * STEPS_PER_EPOCH, 4, generator=generator) < 0.4).double()
    pv.fit(
        pv.Pair(net.model, net.guide),
        data,
        epochs=EPOCHS,
        batch_size=8,
        learning_rate=0.1,
        schedule=schedule,
        objective=pv.objectives.Beta(pv.objectives.Linear(TOTAL)),
        compile=compile,
        progress=False,
        seed=0,
    )
    return nn.utils.parameters_to_vector([p.detach() for p in net.parameters()])


@pytest.mark.usefixtures("double")
@pytest.mark.thinned(2)
@pytest.mark.parametrize("at", [20, 60, 100, TOTAL - 3])
def test_fit_takes_wrong_steps_again_with_their_learning_rates_and_beta(at):
    with pytest.warns(CompilationWarning, match="are taken again eagerly"):
        ours = fitted(True, at)
    torch.testing.assert_close(ours, fitted(False, at), rtol=0, atol=1e-9)
    assert (ours - fitted(False, None)).abs().max() > 1e-5  # the change has an effect


class Switch:
    """Hidden from the guards, because its class claims to be of a library."""

    __module__ = "torch"

    def __init__(self):
        self.values = [2.0]


def offset(size):
    def terms(net, value):
        pyro.factor("offset", torch.tensor(size))
        return value  # the backward pass has the same operations

    return terms


def not_finite(*sizes):
    def terms(net, value):
        for i, size in enumerate(sizes):
            pyro.factor(f"not_finite_{i}", torch.tensor(0.0 if value == 2.0 else size))
        return 1.0

    return terms


HIDDEN_CHANGES = {
    "NaN": not_finite(torch.inf, -torch.inf),
    "inf": not_finite(torch.inf),
    "minus inf": not_finite(-torch.inf),
    "of a loss of 1e6": offset(1e6),
    "of a loss of -1e7": offset(-1e7),
}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("at", [20, 60])
@pytest.mark.parametrize("kind", HIDDEN_CHANGES)
def test_a_hidden_change_of_the_loss_is_found_within_51_steps(kind, at):
    net, switch, terms = Net(), Switch(), HIDDEN_CHANGES[kind]

    def model(x):
        scale = terms(net, switch.values[0])
        with pyro.poutine.scale(scale=scale):
            net.model(x)

    svi = pv.SVI(model, net.guide, ADAM, compile=True)
    for i in range(at + 51):
        switch.values[0] = 2.0 if i < at else 2.5
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            svi.step(TABLE[:, :6].contiguous())
        found = [str(w.message) for w in caught if w.category is CompilationWarning]
        assert i >= at or not found
        if found:
            break
    assert "compiled step is wrong" in found[0]


@pytest.mark.usefixtures("double")
def test_steps_are_compared_more_often_if_their_arguments_take_much_memory(monkeypatch):
    compared = []
    check = comparison.Comparison.check
    monkeypatch.setattr(
        comparison.Comparison, "check", lambda *args: (compared.append(1), check(*args))
    )
    fitted(True, None)
    often = len(compared)
    compared.clear()
    monkeypatch.setattr(verified_state, "MAX_BYTES", 10 * 8 * 4 * 8)  # ten batches
    fitted(True, None)
    assert len(compared) > often + 5


def test_backward_passes_of_other_threads_run():
    import threading

    weight = torch.ones(2, requires_grad=True)
    with comparison.backward_passes(run=False) as passes:
        thread = threading.Thread(target=(3 * weight).sum().backward)
        thread.start()
        thread.join()
        (2 * weight).sum().backward()
    assert weight.grad.tolist() == [3.0, 3.0]
    assert len(passes) == 1
    (2 * weight).sum().backward()
    assert weight.grad.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("error", [KeyError, ValueError])
@pytest.mark.parametrize("name", ["__init__", "check"])
def test_an_error_in_the_comparison_of_bounds_leaves_the_step_as_it_is(name, error, monkeypatch):
    batch, steps = TABLE[:, :6].contiguous(), 100
    eager = train_net(False, batch, steps=steps)
    called = []

    def fails(*args):
        called.append(1)
        raise error("broken")

    monkeypatch.setattr(comparison.EagerBound, name, fails)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompilationWarning)
        ours = train_net(True, batch, steps=steps)
    assert called
    assert_equal_runs(ours, eager)


def test_an_observation_outside_its_support_is_an_error_in_a_step_that_compares_bounds():
    net, batch = Net(), TABLE[:, :6].contiguous()
    with pyro.validation_enabled(True):
        svi = pv.SVI(net.model, net.guide, ADAM, compile=True)
        for _ in range(84):
            svi.step(batch)
        assert svi.num_compiled_steps == 83
        with pytest.raises(ValueError, match="support"):
            svi.step(batch + 0.5)


@pytest.mark.parametrize("num_alternating", [0, 7])
def test_several_programs_do_not_compare_every_step(num_alternating, monkeypatch):
    """A program that never runs again, or runs once in seven steps, has unverified steps."""
    monkeypatch.setattr(compiler, "STEPS_BEFORE_COMPILING", 3)
    compared, check = [], comparison.Comparison.check
    monkeypatch.setattr(
        comparison.Comparison, "check", lambda *args: (compared.append(1), check(*args))
    )
    net = Net()
    svi = pv.SVI(net.model, net.guide, ADAM, compile=True)
    for i in range(500):
        is_first = i < 40 if not num_alternating else i % num_alternating
        svi.step(TABLE[: 9 if is_first else 5, :6].contiguous())
    assert svi.num_compiled_steps > 450
    assert len(compared) < 30
    assert svi._compiler.verified._kept.clock > (40 if num_alternating else 400)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_between_full_comparisons_only_the_bound_is_compared(precision, monkeypatch):
    compared = []
    check = comparison.EagerBound.check
    monkeypatch.setattr(
        comparison.EagerBound, "check", lambda *args: compared.append(args) or check(*args)
    )
    net = Net()
    svi = pv.SVI(net.model, net.guide, ADAM, compile=True, precision=precision)
    full = 0
    for _ in range(200):
        runs = svi._compiler.verified._kept.clock
        svi.step(TABLE[:, :6])
        full += svi._compiler.verified._kept.clock != runs
    assert (len(compared), full) == (3, len(compiler.CHECKED_RUNS))
