"""A setting that the user's code changes within an epoch takes effect in the next step of `fit`.

Between two steps, `fit` runs the user's code in schedules, weights of the KL divergence, datasets
and loaders. If it runs none, compiled steps read the settings of a program in some steps only.
"""

import dataclasses
import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

import pyro_vae as pv
from pyro_vae.engine.compiler import STEPS_BETWEEN_READS

pytestmark = pytest.mark.usefixtures("graphs_in_double")
NUM_DATA, BATCH, CHANGED_AT = 240, 8, 26  # between two steps that are compared


class Net(nn.Module):
    """A pair whose likelihood has a setting, its scale."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder, self.encoder = nn.Linear(1, 3), nn.Linear(3, 1)
        self.scale = 1.0

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


class Counter:
    """Changes the scale of a net at its n-th call."""

    def __init__(self, net, calls=CHANGED_AT):
        self.net, self.calls = net, calls

    def __call__(self, _=None):
        self.calls -= 1
        if not self.calls:
            self.net.scale = 3.0
        return 1.0


class Items(TorchDataset):
    def __init__(self, x, counter):
        self.x, self.counter = x, counter

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.counter()
        return self.x[i]


@dataclasses.dataclass(frozen=True, eq=False)
class Noisy(pv.data.Dataset):
    counter: object = None

    def batches(self, order, generator):
        for batch in super().batches(order, generator):
            self.counter()
            yield batch


def of_schedule(net, x):
    counter = Counter(net)
    return x, {"schedule": lambda optimizer, _: LambdaLR(optimizer, counter)}


def of_partial_schedule(net, x):
    return x, {"schedule": functools.partial(schedule_of, lr_lambda=Counter(net))}


def schedule_of(optimizer, num_steps, lr_lambda):
    return LambdaLR(optimizer, lr_lambda)


def beta_of(net):
    def beta(step):
        net.scale = 3.0 if step >= CHANGED_AT else 1.0
        return 1.0

    return beta


def of_beta(net, x):
    return x, {"objective": pv.objectives.Beta(beta_of(net))}


def of_betas(net, x):
    return x, {"objective": pv.objectives.Beta({"z": beta_of(net)})}


def of_loader(net, x):
    return DataLoader(Items(x, Counter(net, CHANGED_AT * BATCH)), batch_size=BATCH), {}


def of_dataset(net, x):
    return Noisy(x, counter=Counter(net)), {}


def trained(change, compile):
    pyro.clear_param_store()
    net, generator = Net(), torch.Generator().manual_seed(0)
    x = torch.randn(NUM_DATA, 3, generator=generator)
    data, settings = change(net, x)
    pair = pv.Pair(net.model, net.guide)
    fit = pv.fit(pair, data, epochs=2, batch_size=BATCH, compile=compile, **settings)
    assert net.scale == 3.0
    return fit, [p.detach().clone() for p in net.parameters()]


@pytest.mark.thinned(3)
@pytest.mark.parametrize(
    "change", [of_schedule, of_partial_schedule, of_beta, of_betas, of_loader, of_dataset]
)
def test_a_setting_that_code_of_the_user_changes_within_an_epoch_is_followed(change):
    (fit, actual), (_, expected) = trained(change, True), trained(change, False)
    assert fit.settings["engine"] == "compiled"
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class WithFactor(Net):
    """The loss contains the setting."""

    def model(self, x):
        super().model(x)
        pyro.factor("setting", torch.as_tensor(-1e6 * self.scale))


@pytest.mark.parametrize("promised", [False, True])
def test_without_the_promise_settings_are_read_in_each_step(promised):
    net, x = WithFactor(), torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0))
    svi = pv.SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), compile=True)
    wrong = []
    for step in range(49):
        if step == CHANGED_AT:
            net.scale = 3.0
        if promised and not 20 < step < 24:  # a step without the promise reads everything
            svi.nothing_changed()
        wrong.append(abs(svi.step(x) - 1e6 * net.scale) > 1e5)
    assert svi.num_compiled_steps > 20
    assert not any(wrong) if not promised else 0 < sum(wrong) < STEPS_BETWEEN_READS
