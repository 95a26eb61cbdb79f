"""A program that changes in the middle of a run gives the eager run's parameters, or is noticed.

Each row of a table changes the behaviour of a program before a random step. A compiled and an eager
run start from one seed. The parameters agree at the end, or a verified step notices the change
within 50 steps, returns to the last verified state and names the steps that it took back.
"""

import contextvars
import os
import random
import re
import types
import warnings
from collections import deque

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import pyro_vae as pv
from pyro_vae.engine import compiled_step
from tests.support.mutations import (
    add_weight_norm,
    entry,
    group,
    negate_gradient,
    new_optimizer,
    own_step,
    patch_linear,
    wrap,
)

STEPS, WITHIN = 90, 50
settings = types.ModuleType("settings_of_a_user")
settings.beta = settings.gamma = 1.0
settings.kl = types.ModuleType("kl_settings_of_a_user")
settings.kl.beta = 1.0
CONTEXT = contextvars.ContextVar("beta", default=1.0)
GLOBAL = 1.0
HIDDEN = {}  # values that no guard finds


class Base:
    inherited = 1.0


class Config(Base):
    beta = 1.0
    items = [1.0, 2.0]  # noqa: RUF012 - the kind of program that is tested

    def __init__(self):
        self.own = 1.0

    @property
    def weight(self):
        return self.own

    @staticmethod
    def static():
        return 1.0

    @classmethod
    def of_class(cls):
        return cls.beta


class Slotted:
    __slots__ = ("beta",)

    def __init__(self):
        self.beta = 1.0


class Hidden:
    """A function object that claims to be of a library, so that guards do not look into it."""

    __module__ = "torch"

    def __call__(self):
        return HIDDEN_BOX[0][0]

    def detaches(self):
        return DETACHES[0]

    def scale(self):
        return GRADIENTS["scale"]

    def hook(self, tensor):
        if GRADIENTS["hook"]:
            tensor.register_hook(lambda gradient: -gradient)


HIDDEN_BOX = [[1.0]]
DETACHES = [False]  # a hidden value that changes gradients only
GRADIENTS = {"scale": 1.0, "hook": False}  # these, too; the operations of the gradients stay
HANDLES = []  # of hooks that are registered globally


def marked():
    return marked.beta


marked.beta = 1.0


class Net(nn.Module):
    default = 1.0

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)
        self.config, self.slots, self.hidden = Config(), Slotted(), Hidden()
        self.table, self.list, self.members = {"a": {"b": 1.0}}, [1.0, 1.0], {1.0}
        self.queue, self.array, self.long = deque([1.0]), np.ones(3), [1.0] * 300
        self.nested, self.lambda_ = (([1.0],),), lambda: 1.0
        self.register_buffer("scale", torch.ones(()))
        self.tensor, self.prior = torch.zeros(2), dist.Normal(torch.zeros(2), 1.0)
        self.detach, self.tables = False, (settings, np, torch)

    def helper(self):
        return 1.0

    def weight(self):
        from sys import modules

        config = modules["settings_of_a_user"]
        parts = (
            self.config.weight, self.config.inherited, Config.beta, Config.static(),
            Config.of_class(), Config.items[0], self.slots.beta, self.hidden(), GLOBAL,
            self.table["a"]["b"], self.list[0], max(self.members), self.queue[0],
            float(self.array.sum()) / 3, self.long[200], self.nested[0][0][0], self.lambda_(),
            self.helper(), self.default, config.beta, settings.kl.beta, self.tables[0].gamma,
            CONTEXT.get(), marked(),
            float(os.environ.get("PYRO_VAE_TEST_BETA", "1.0")), *HIDDEN.values(),
        )  # fmt: skip
        return float(np.prod(parts))

    def decode(self, z):
        return self.decoder(z)

    def model(self, x):
        pyro.module("net", self)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.weight()):
            z = pyro.sample("z", dist.Normal(self.prior.loc + self.tensor, 1.0).to_event(1))
            detach = self.detach or self.hidden.detaches()
            logits = self.decode(z.detach() if detach else z) * self.scale
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Scaled(Net):
    """Scales gradients by a hidden number, by a tensor that is detached."""

    def decode(self, z):
        scale = self.hidden.scale()
        return self.decoder(scale * z + (1 - scale) * z.detach())


class WithoutGradients(Net):
    """The same, by a part without gradients."""

    def decode(self, z):
        scale = self.hidden.scale()
        with torch.no_grad():
            constant = z * (1 - scale)
        return self.decoder(scale * z + constant)


class Custom(Net):
    """The same, in the backward pass of an `autograd.Function`."""

    def decode(self, z):
        return self.decoder(Scale.apply(z, self.hidden))


class Hooked(Net):
    """Registers a hook if a hidden value is set."""

    def decode(self, z):
        logits = self.decoder(z)
        self.hidden.hook(logits)
        return logits


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, hidden):
        ctx.hidden = hidden
        return z.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.hidden.scale(), None


def set_global(svi, net):
    globals()["GLOBAL"] = 0.3


def hook_of_all_modules(svi, net):
    def half(module, inputs, output):
        return 0.5 * output if isinstance(module, nn.Linear) else None

    HANDLES.append(nn.modules.module.register_module_forward_hook(half))


def hook_of_all_optimizers(svi, net):
    def negate(optimizer, args, kwargs):
        for p in net.parameters():
            p.grad.mul_(-1)

    HANDLES.append(register_optimizer_step_pre_hook(negate))


MUTATIONS = {
    "instance attribute": lambda s, n: setattr(n.config, "own", 0.3),
    "inherited class attribute": lambda s, n: setattr(Base, "inherited", 0.3),
    "inherited default set on the instance": lambda s, n: setattr(n.config, "inherited", 0.3),
    "class attribute": lambda s, n: setattr(Config, "beta", 0.3),
    "class attribute of the subclass": lambda s, n: setattr(Config, "inherited", 0.3),
    "static method": lambda s, n: setattr(Config, "static", staticmethod(lambda: 0.3)),
    "class method": lambda s, n: setattr(Config, "of_class", classmethod(lambda cls: 0.3)),
    "property": lambda s, n: setattr(Config, "weight", property(lambda self: 0.3)),
    "list of a class": lambda s, n: Config.items.__setitem__(0, 0.3),
    "slot": lambda s, n: setattr(n.slots, "beta", 0.3),
    "hidden": lambda s, n: HIDDEN_BOX[0].__setitem__(0, 0.3),
    "hidden gradient": lambda s, n: DETACHES.__setitem__(0, True),
    "hidden list": lambda s, n: HIDDEN_BOX.__setitem__(0, [0.3]),
    "new key of a global dictionary": lambda s, n: HIDDEN.update(more=0.3),
    "global": set_global,
    "nested dictionary": lambda s, n: n.table["a"].update(b=0.3),
    "replaced dictionary": lambda s, n: n.table.update(a={"b": 0.3}),
    "list": lambda s, n: n.list.__setitem__(0, 0.3),
    "list insertion": lambda s, n: n.list.insert(0, 0.3),
    "list removal": lambda s, n: (n.list.append(0.3), n.list.reverse()),
    "set": lambda s, n: n.members.add(3.0),
    "deque": lambda s, n: n.queue.appendleft(0.3),
    "array": lambda s, n: n.array.fill(0.3),
    "replaced array": lambda s, n: setattr(n, "array", np.full(3, 0.3)),
    "long list": lambda s, n: n.long.__setitem__(200, 0.3),
    "nested tuple": lambda s, n: n.nested[0][0].__setitem__(0, 0.3),
    "lambda": lambda s, n: setattr(n, "lambda_", lambda: 0.3),
    "patched method of an object": lambda s, n: setattr(n, "helper", lambda: 0.3),
    "patched method of a class": lambda s, n: setattr(Net, "helper", lambda self: 0.3),
    "class default": lambda s, n: setattr(Net, "default", 0.3),
    "class default set on the instance": lambda s, n: setattr(n, "default", 0.3),
    "module of settings": lambda s, n: setattr(settings, "beta", 0.3),
    "module in a module of settings": lambda s, n: setattr(settings.kl, "beta", 0.3),
    "tuple of modules": lambda s, n: setattr(settings, "gamma", 0.3),
    "context variable": lambda s, n: CONTEXT.set(0.3),
    "function attribute": lambda s, n: setattr(marked, "beta", 0.3),
    "environment": lambda s, n: os.environ.update(PYRO_VAE_TEST_BETA="0.3"),
    "buffer in place": lambda s, n: n.scale.fill_(0.3),
    "buffer replaced": lambda s, n: setattr(n, "scale", torch.tensor(0.3, dtype=torch.double)),
    "tensor in place": lambda s, n: n.tensor.fill_(0.7),
    "tensor replaced": lambda s, n: setattr(n, "tensor", torch.full((2,), 0.7)),
    "tensor of a distribution": lambda s, n: setattr(n.prior, "loc", torch.ones(2)),
    "tensor of a distribution in place": lambda s, n: n.prior.loc.fill_(1.0),
    "distribution": lambda s, n: setattr(n, "prior", dist.Normal(torch.ones(2), 1.0)),
    "detached": lambda s, n: setattr(n, "detach", True),
    "hook": lambda s, n: n.decoder.register_forward_hook(lambda m, i, o: 0.5 * o),
    "pre-hook": add_weight_norm,
    "patched forward": patch_linear,
    "hook of all modules": hook_of_all_modules,
    "hook of all optimizers": hook_of_all_optimizers,
    "hook of a gradient": lambda s, n: n.decoder.weight.register_hook(lambda g: -g),
    "hook after a gradient": lambda s, n: n.decoder.weight.register_post_accumulate_grad_hook(
        negate_gradient
    ),
    "frozen weight": lambda s, n: n.decoder.weight.requires_grad_(False),
    "weight in place": lambda s, n: n.decoder.weight.data.mul_(0.5),
    "weight's data replaced": lambda s, n: setattr(n.decoder.weight, "data", torch.ones(4, 2)),
    "layer replaced by a function": lambda s, n: setattr(n, "decoder", n.decoder.double()),
    "bias removed": lambda s, n: setattr(n.decoder, "bias", None),
    "float64 validation": lambda s, n: n.double(),
    "rate": group(lr=0.1),
    "betas": group(betas=(0.5, 0.9)),
    "decay": group(weight_decay=0.1),
    "epsilon": group(eps=0.1),
    "maximize": group(maximize=True),
    "cleared state": lambda s, n: s.optim.optimizer.state.clear(),
    "popped state": lambda s, n: s.optim.optimizer.state.pop(n.decoder.weight),
    "replaced moment": lambda s, n: entry(s, n).update(exp_avg=torch.ones(4, 2)),
    "moment in place": lambda s, n: entry(s, n)["exp_avg"].fill_(1.0),
    "step count": lambda s, n: entry(s, n)["step"].fill_(1.0),
    "wrapped step": wrap,
    "a step of the user": own_step,
    "another optimizer": new_optimizer,
    "another model": lambda s, n: setattr(s, "model", pyro.poutine.scale(s.model, 0.3)),
    "another guide": lambda s, n: setattr(s, "guide", pyro.poutine.scale(s.guide, 0.3)),
    "another loss": lambda s, n: setattr(
        s, "loss_and_grads", pyro.infer.TraceMeanField_ELBO().loss_and_grads
    ),
}
# Changes of gradients alone, of programs that define gradients of their own.
NETS = {
    "hidden scale of a gradient": Scaled,
    "hidden scale of a gradient under no_grad": WithoutGradients,
    "hidden scale in an autograd.Function": Custom,
    "hidden hook of a gradient": Hooked,
}
MUTATIONS |= dict.fromkeys(NETS, lambda s, n: GRADIENTS.update(scale=-1.0, hook=True))
OWNERS = (Base, Config, Net, settings, settings.kl, marked)


@pytest.fixture(autouse=True)
def _original(monkeypatch):
    monkeypatch.setattr(compiled_step, "compile_graph", lambda graph, inputs: graph)
    monkeypatch.setitem(__import__("sys").modules, "settings_of_a_user", settings)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def train(name, compile):
    attributes = [(owner, dict(vars(owner))) for owner in OWNERS]
    items, context = list(Config.items), contextvars.copy_context()
    pyro.clear_param_store()
    torch.manual_seed(0)
    at = random.Random(name).randrange(36, 44)  # after the runs that are always compared

    def run():
        net, x = NETS.get(name, Net)(), (torch.rand(8, 4) < 0.4).double()
        optim = torch.optim.Adam(net.parameters(), lr=1e-2)
        svi = pv.SVI(net.model, net.guide, optim, compile=compile)
        noticed = None
        for step in range(1, STEPS + 1):
            if step == at:
                assert not compile or svi.num_compiled_steps >= at - 3  # compiled before the change
                with torch.no_grad():
                    MUTATIONS[name](svi, net)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                svi.step(x)
            for warning in caught:
                found = re.search(r"Steps (\d+) to (\d+) are taken back", str(warning.message))
                if found:
                    noticed = step, int(found[1])
        weights = [p.detach() for p in net.parameters()]
        return nn.utils.parameters_to_vector(weights), noticed, at

    try:
        return context.run(run)
    finally:
        for owner, former in attributes:
            for key in set(vars(owner)) - set(former):
                delattr(owner, key)
            for key, value in former.items():
                if not key.startswith("__") and vars(owner)[key] is not value:
                    setattr(owner, key, value)
        Config.items[:] = items
        HIDDEN.clear()
        HIDDEN_BOX[:], DETACHES[:] = [[1.0]], [False]
        GRADIENTS.update(scale=1.0, hook=False)
        while HANDLES:
            HANDLES.pop().remove()
        globals()["GLOBAL"] = 1.0
        os.environ.pop("PYRO_VAE_TEST_BETA", None)


FAST = {*list(MUTATIONS)[::7], *NETS}


@pytest.mark.parametrize(
    "name",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MUTATIONS],
)
def test_a_change_is_followed_or_taken_back(name):
    eager, _, _ = train(name, False)
    ours, noticed, at = train(name, True)
    if noticed is None:
        torch.testing.assert_close(ours, eager, rtol=0, atol=1e-6)
    else:
        step, first = noticed
        assert first <= at
        assert step - at <= WITHIN
