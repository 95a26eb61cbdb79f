"""All that a step does besides training is what Pyro's own step does: buffers and records.

Each program is trained by `pyro.infer.SVI` and by a compiled `pv.SVI` from one seed, and what the
program leaves behind is read after each step. A program that cannot be compiled says so.
"""

import argparse
import queue
import types

import pyro
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.support.effects import Net, assert_same

pytestmark = pytest.mark.usefixtures("graphs_in_double")


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


@pytest.mark.thinned(7)
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
