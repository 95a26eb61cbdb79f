"""A compiled step depends on the attributes that its program reads, and on no others.

An object that runs a training loop has counters and histories. They change in each step, and the
program does not read them. Attributes that it reads by a computed name are followed, though.
"""

import operator
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv

pytestmark = pytest.mark.usefixtures("graphs_in_double")
NUM_STEPS, CHANGED_AT = 49, 26  # between two steps that are compared
beta_of = operator.attrgetter("beta")
take = getattr  # by another name


class Setting:
    beta = 1.0


@dataclass
class Settings:
    beta: float = 1.0


class Trainer:
    """Holds its SVI, as the training loops of most projects do."""

    counts = True

    def __init__(self):
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(3, 1), nn.Linear(1, 3)
        self.epoch, self.losses, self.best = 0, [], None
        self.seen: dict[int, float] = {}
        self.beta, self.name, self.settings = 1.0, "be" + "ta", Settings()
        self.setting = Setting()
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.svi = pv.SVI(
            self.model, self.guide, torch.optim.Adam(parameters, lr=1e-2), compile=self.compile
        )

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.weight()):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def weight(self):
        return 1.0

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    def run(self, x):
        for step in range(NUM_STEPS):
            self.before(step)
            loss = self.svi.step(x)
            if self.counts:
                self.count(step, loss)
        return self

    def count(self, step, loss):
        self.epoch += 1
        self.losses.append(loss)
        self.seen[step] = loss
        self.best = (step, loss)
        self.last = object()

    def before(self, step):
        """Change a setting."""


class Network(nn.Module, Trainer):
    def __init__(self):
        nn.Module.__init__(self)
        Trainer.__init__(self)


def trained(kind, compile):
    pyro.clear_param_store()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    trainer = type("Own", (kind,), {"compile": compile, "__module__": __name__})()
    torch.manual_seed(1)
    return trainer.run(x)


def assert_followed(kind):
    compiled, eager = trained(kind, True), trained(kind, False)
    for name in ("encoder", "decoder"):
        pairs = zip(
            getattr(compiled, name).parameters(), getattr(eager, name).parameters(), strict=True
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    return compiled.svi.num_compiled_steps


@pytest.mark.parametrize("kind", [Trainer, Network])
def test_attributes_of_the_training_loop_are_not_read(kind):
    assert assert_followed(kind) == NUM_STEPS - 1


# How the model reads a setting, and how the training loop changes it.
READ = {
    "by name": (lambda self: self.beta, lambda self: setattr(self, "beta", 0.1)),
    "getattr": (lambda self: getattr(self, self.name), lambda self: setattr(self, "beta", 0.1)),
    "getattr by another name": (
        lambda self: take(self, self.name), lambda self: setattr(self, "beta", 0.1)
    ),
    "attrgetter": (lambda self: beta_of(self), lambda self: setattr(self, "beta", 0.1)),
    "vars": (lambda self: vars(self)[self.name], lambda self: setattr(self, "beta", 0.1)),
    "__dict__": (lambda self: self.__dict__[self.name], lambda self: setattr(self, "beta", 0.1)),
    "hasattr": (
        lambda self: 0.1 if hasattr(self, "late") else 1.0, lambda self: setattr(self, "late", 1)
    ),
    "a default of the class": (
        lambda self: self.setting.beta, lambda self: setattr(self.setting, "beta", 0.1)
    ),
    "a class": (lambda self: self.setting.beta, lambda self: setattr(Setting, "beta", 0.1)),
    "a dataclass": (
        lambda self: self.settings.beta, lambda self: setattr(self.settings, "beta", 0.1)
    ),
    "a method": (lambda self: 1.0 * self.factor(), lambda self: setattr(self, "factor", tenth)),
    "the number of losses": (
        lambda self: 0.1 if len(self.losses) > CHANGED_AT else 1.0, lambda self: None
    ),
}  # fmt: skip


def tenth():
    return 0.1


def matched(self):
    match self.settings:
        case Settings(beta=value):
            return value


READ["a pattern"] = (matched, lambda self: setattr(self.settings, "beta", 0.1))


@pytest.mark.thinned(5)
@pytest.mark.parametrize("name", [n for n in READ if n != "the number of losses"])
def test_a_setting_is_followed_however_it_is_read(name, monkeypatch):
    monkeypatch.setattr(Setting, "beta", 1.0)
    read, change = READ[name]

    def before(self, step):
        Setting.beta = 1.0 if not step else Setting.beta
        if step == CHANGED_AT:
            change(self)

    # With computed names, all attributes are compared: counters would keep the steps eager.
    counts = name in ("by name", "a default of the class", "a class", "a dataclass", "a method")
    members = {"counts": counts, "weight": read, "before": before, "factor": lambda self: 1.0}
    assert assert_followed(type("Reader", (Trainer,), {**members, "__module__": __name__})) > 20


def test_a_list_that_the_program_reads_is_followed():
    read, _ = READ["the number of losses"]
    with pytest.warns(UserWarning, match="run eagerly"):
        assert_followed(type("Reader", (Trainer,), {"weight": read, "__module__": __name__}))
