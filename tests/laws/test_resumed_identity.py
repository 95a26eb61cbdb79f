"""A run is resumed as the same run only: each other setting, constant or function is named."""

import dataclasses
import functools
import types

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import pyro_vae as pv
from tests.support.runs import Stop, stop_after

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
SCALE = 1.0


def vae(prior=None, likelihood=None, guide=None, latent_dim=2):
    networks = pv.networks
    return pv.VAE(
        prior or pv.priors.StandardNormal(latent_dim),
        likelihood or pv.likelihoods.Normal(networks.MLP(latent_dim, [4], 6)),
        guide or pv.guides.DiagonalNormal(networks.MLP(6, [4], 2 * latent_dim)),
    )


def plain(prior):
    """Return a pair, because a model with a `Fixed` prior cannot be saved."""
    made = vae(prior)
    return pv.Pair(made.model, made.guide)


def in_mode(training):
    """Return a pair with a layer that computes something else in training mode."""
    layers = nn.Linear(6, 4), nn.Dropout(), nn.Linear(4, 4)
    made = vae(guide=pv.guides.DiagonalNormal(nn.Sequential(*layers)))
    return pv.Pair(made.model, made.guide.train(training))


class Pair(nn.Module):
    """A pair of a user, with attributes that its code reads."""

    def __init__(self, link=torch.tanh, **settings):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 2), nn.Linear(2, 6)
        self.link, self.width, self.bias, self.epochs = link, 1.0, torch.zeros(6), 3
        self.config, self.table = types.SimpleNamespace(power=1, out="a"), {"low": [0.5, 2.0]}
        for name, value in settings.items():
            setattr(self, name, value)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            scale = self.width * self.config.power * self.table["low"][1] * SCALE
            mean = self.link(self.decoder(z)) + self.bias
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


class Narrow(Pair):
    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.25).to_event(1))


@dataclasses.dataclass(frozen=True)
class Times:
    factor: float = 1.0  # also an attribute of the class

    def __call__(self, value):
        return self.factor * value


def with_closure(scale):
    return Pair(link=lambda value: scale * value)


def with_code(number):
    link = (lambda value: value.sin()) if number else (lambda value: value.cos())
    return Pair(link=link)


class Damped(torch.optim.Adam):
    def step(self, closure=None):
        super().step(closure)


def steep(optimizer, total_steps):  # differs from `flat` after the first half only
    return LambdaLR(optimizer, lambda step: 1.0 if 2 * step < total_steps else 0.1)


def flat(optimizer, total_steps):
    return LambdaLR(optimizer, lambda step: 1.0)


def one_cycle(share):
    return lambda optimizer, steps: OneCycleLR(optimizer, 1e-2, steps, pct_start=share)


def loader(data):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=16)


def zeroed(path, rows=slice(0, 0)):
    """Return a memmap of 16 MB, with some rows zeroed."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, (400_000, 6))
    array[:] = 1
    array[rows] = 0
    return np.lib.format.open_memmap(path, "r")


MLP = pv.networks.MLP
normal, fixed = pv.likelihoods.Normal, lambda scale: dist.Normal(torch.zeros(2), scale).to_event(1)
# What a run is made of, and another instance of it.
CHANGES = {
    "StudentT df": [vae(pv.priors.StudentT(2, df=df)) for df in (3.0, 30.0)],
    "StudentT default": [vae(pv.priors.StudentT(2)), vae(pv.priors.StudentT(2, df=9.0))],
    "Fixed scale": [plain(pv.priors.Fixed(fixed(scale))) for scale in (1.0, 2.0)],
    "Fixed family": [
        plain(pv.priors.Fixed(kind(torch.zeros(2), torch.ones(2)).to_event(1)))
        for kind in (dist.Normal, dist.Laplace)
    ],
    "training mode": [in_mode(training) for training in (True, False)],
    "likelihood scale": [vae(likelihood=normal(MLP(2, [4], 6), scale=s)) for s in (0.5, 0.7)],
    "activation": [vae(likelihood=normal(MLP(2, [4], 6, activation=a))) for a in ("relu", "tanh")],
    "attribute": [Pair(width=width) for width in (1.0, 1.5)],
    "attribute, a tensor": [Pair(bias=torch.full((6,), b)) for b in (0.0, 0.1)],
    "attribute of an attribute": [
        Pair(config=types.SimpleNamespace(power=power, out="a")) for power in (1, 2)
    ],
    "entry of a list in a dict": [Pair(table={"low": [0.5, high]}) for high in (2.0, 3.0)],
    "attribute with a default of its class": [Pair(link=Times(f)) for f in (1.0, 2.0)],
    "a function": [Pair(link=link) for link in (torch.tanh, torch.sin)],
    "closure": [with_closure(scale) for scale in (1.0, 2.0)],
    "code": [with_code(number) for number in (0, 1)],
    "class": [Pair(), Narrow()],
    "partial": [Pair(link=functools.partial(torch.mul, other=o)) for o in (1.0, 2.0)],
}
SETTINGS = {
    "optimizer class": ("optimizer", [torch.optim.Adam, Damped]),
    "schedule, later": ("schedule", [flat, steep]),
    "schedule, its setting": ("schedule", [one_cycle(0.3), one_cycle(0.31)]),
    "beta, between its samples": (
        "objective",
        [
            pv.objectives.Beta(lambda step: 1.0),
            pv.objectives.Beta(lambda step: 1 + (step == 4) / 9),
        ],
    ),
}


def run(pair, folder, data=X, **settings):
    torch.manual_seed(0)
    settings = {"epochs": 6, "batch_size": 16, "optimizer": torch.optim.Adam, **settings}
    return pv.fit(pair, data, out=folder, checkpoint_seconds=0, progress=False, **settings)


def stopped(monkeypatch, *args, **settings):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            run(*args, **settings)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", CHANGES)
def test_another_program_is_refused(name, tmp_path, monkeypatch):
    one, other = CHANGES[name]
    stopped(monkeypatch, one, tmp_path)
    with pytest.raises(pv.CheckpointError, match="cannot be resumed with other"):
        run(other, tmp_path, resume=True)
    assert run(one, tmp_path, resume=True).stopped == "finished"


@pytest.mark.thinned(2)
@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_is_refused(name, tmp_path, monkeypatch):
    key, (one, other) = SETTINGS[name]
    stopped(monkeypatch, vae(), tmp_path, **{key: one})
    with pytest.raises(pv.CheckpointError, match="cannot be resumed with other"):
        run(vae(), tmp_path, resume=True, **{key: other})
    assert run(vae(), tmp_path, resume=True, **{key: one}).stopped == "finished"


@pytest.mark.parametrize("shuffle", [False, True])
def test_other_data_behind_a_loader_are_refused(shuffle, tmp_path, monkeypatch):
    stopped(monkeypatch, vae(), tmp_path, loader(X))
    with pytest.raises(pv.CheckpointError, match="training data was"):
        run(vae(), tmp_path, loader(X + 1), resume=True)
    assert run(vae(), tmp_path, loader(X), resume=True).stopped == "finished"


# Between the 16 blocks that the fingerprint of the settings reads, too.
@pytest.mark.parametrize("is_subset", [False, True])
def test_late_rows_behind_a_loader_are_compared(is_subset, tmp_path, monkeypatch):
    one = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0))
    other = one.clone()
    other[990, 3] += 1

    def loader(data):
        rows = torch.utils.data.TensorDataset(data)
        rows = torch.utils.data.Subset(rows, range(1000)) if is_subset else rows
        return torch.utils.data.DataLoader(rows, batch_size=100)

    stopped(monkeypatch, vae(), tmp_path, loader(one))
    with pytest.raises(pv.CheckpointError, match="training data of the loader was"):
        run(vae(), tmp_path, loader(other), resume=True)
    run(vae(), tmp_path, loader(one.clone()), resume=True)


@pytest.mark.parametrize("start", [0, 11_000, 33_000, 100_000, 320_000])
def test_a_file_with_zeroed_rows_is_refused(start, tmp_path, monkeypatch):
    settings = {"batch_size": 20_000}
    stopped(monkeypatch, vae(), tmp_path / "run", zeroed(tmp_path / "a.npy"), **settings)
    with pytest.raises(pv.CheckpointError, match=r"data|train_sha256"):
        run(
            vae(),
            tmp_path / "run",
            zeroed(tmp_path / "b.npy", slice(start, start + 10_000)),
            resume=True,
            **settings,
        )


def test_a_global_of_the_programs_is_part_of_the_run(tmp_path, monkeypatch):
    stopped(monkeypatch, Pair(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "SCALE", 2.0)
        with pytest.raises(pv.CheckpointError, match=r"SCALE was 1\.0 and is 2\.0"):
            run(Pair(), tmp_path, resume=True)


def test_attributes_that_no_code_reads_are_free(tmp_path, monkeypatch):
    stopped(monkeypatch, Pair(), tmp_path)
    other = Pair(epochs=9, config=types.SimpleNamespace(power=1, out="b"))
    assert run(other, tmp_path, resume=True).stopped == "finished"
