"""Rows outside the likelihood's support are refused in any container and place; others are scored.

The densities of Pyro and torch do not check their arguments here, so a row outside the support has
a number that is no density. A cell of the grid is one function, one container, one place of the bad
row and one support.
"""

import itertools
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zarr
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae.data import disk_array
from pyro_vae.distributions.entrywise import PartlyObserved
from pyro_vae.pairs import chunking

NUM_DATA, WIDTH, BLOCK = 60, 3, 4
PLACES = {"first": 0, "block edge": 4 * BLOCK, "between blocks": 5 * BLOCK + 1, "last": 59}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(disk_array, "BLOCK_BYTES", BLOCK * WIDTH * 4)
    monkeypatch.setattr(disk_array, "SAMPLED_BLOCKS", 3)
    monkeypatch.setattr(chunking, "CHUNK_ELEMENTS", 50 * WIDTH)


# -- supports: the likelihood, rows inside, and a row outside --------------------------------------


def normalized(x):
    return x / x.sum(-1, keepdim=True)


def counts(x):
    return (8 * x).floor()


SUPPORTS = {
    "boolean": (lambda y, n: dist.Bernoulli(logits=y).to_event(1), torch.round, 0.5),
    "unit interval": (
        lambda y, n: pv.likelihoods.ContinuousBernoulli(nn.Identity())(y), lambda x: x, 1.5,
    ),
    "positive": (lambda y, n: dist.Gamma(1 + y**2, 1.0).to_event(1), lambda x: x + 0.1, -1.0),
    "simplex": (lambda y, n: dist.Dirichlet(1 + y**2), normalized, 0.9),
    "integer": (lambda y, n: dist.Poisson(y.exp()).to_event(1), counts, 0.5),
    "missing": (
        lambda y, n: PartlyObserved(dist.Bernoulli(logits=y)).to_event(1),
        lambda x: torch.where(x < 0.3, torch.nan, x.round()), 0.5,
    ),
    "n of each datum": (
        lambda y, n: dist.Binomial(n[..., None], logits=y).to_event(1), None, 40.0,
    ),
    "n of all data": (
        lambda y, n: dist.Multinomial(8, logits=y), lambda x: counts(x / 3), 9.0,
    ),
    "tokens": (
        lambda y, n: dist.Categorical(logits=y[..., None] * torch.arange(9.0)).to_event(1),
        lambda x: counts(x).long(), 9,
    ),
}  # fmt: skip


class Pair(nn.Module):
    def __init__(self, likelihood):
        super().__init__()
        torch.manual_seed(0)
        self.likelihood = likelihood
        self.decoder, self.encoder = nn.Linear(1, WIDTH), nn.Linear(WIDTH, 2)

    def model(self, x, n):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z), n), obs=x)

    def guide(self, x, n):
        loc, scale = self.encoder(x.float().nan_to_num().clamp(-1, 1)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def rows(support, place=None):
    """Return x and n of all data; the datum at a place is outside the support."""
    _, inside, bad = SUPPORTS[support]
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(NUM_DATA, WIDTH, generator=generator)
    n = torch.arange(NUM_DATA) % 7 + 1.0
    n[::8] = 30.0
    x = (uniform * (n[:, None] + 1)).floor() if inside is None else inside(uniform)
    if place is not None:
        x[PLACES[place], 1] = bad
    return x, n


# -- containers ------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, x, n):
        self.x, self.n = x, n

    def __iter__(self):
        return zip(self.x, self.n, strict=True)

    def __len__(self):
        return len(self.x)


def memmap(x, folder):
    stored = np.memmap(folder / "x", x.numpy().dtype, "w+", shape=tuple(x.shape))
    stored[:] = x.numpy()
    return stored


CONTAINERS = {
    "tensor": lambda x, n, folder: (x, n),
    "numpy": lambda x, n, folder: (x.numpy(), n.numpy()),
    "memmap": lambda x, n, folder: (memmap(x, folder), n),
    "zarr": lambda x, n, folder: (zarr.array(x.numpy(), chunks=(BLOCK, WIDTH)), n),
    "loader": lambda x, n, folder: DataLoader(TensorDataset(x, n), batch_size=11),
    "shuffled": lambda x, n, folder: DataLoader(TensorDataset(x, n), batch_size=11, shuffle=True),
    "stream": lambda x, n, folder: DataLoader(Stream(x, n), batch_size=11),
}


# -- functions -------------------------------------------------------------------------------------


def fitted(pair, data):
    pv.fit(pair, data, epochs=1, batch_size=10, progress=False)


def validated(pair, data):
    train = next(rows(name) for name, line in SUPPORTS.items() if line[0] is pair.likelihood)
    pv.fit(pair, train, validation=data, epochs=1, batch_size=60, progress=False)


def in_a_tree(pair, data):
    args = data if isinstance(data, tuple) else next(iter(DataLoader(data.dataset, NUM_DATA)))
    args = [np.asarray(part) for part in args]
    pv.from_pyro_svi(pair.model, pair.guide, model_args=tuple(args), num_samples=3, batch_size=9)


FUNCTIONS = {
    "fit": fitted,
    "validation": validated,
    "evaluate": lambda pair, data: pv.evaluate(pair, data, num_samples=2),
    "collapse": lambda pair, data: pv.collapse(pair, data, num_samples=2),
    "gaps": lambda pair, data: pv.gaps(
        pair, data, encoder=pair.encoder, num_steps=1, num_particles=1, num_samples=2
    ),
    "ais": lambda pair, data: pv.ais(
        pair, data, num_chains=1, num_temperatures=1, num_leapfrog=1
    ),
    "from_pyro_svi": in_a_tree,
}  # fmt: skip


@pytest.mark.thinned(7)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_row_outside_the_support_is_refused(function, seed, tmp_path):
    cells = list(itertools.product(CONTAINERS, PLACES, SUPPORTS))
    for container, place, support in random.Random(f"{function}{seed}").sample(cells, 20):
        pair = Pair(SUPPORTS[support][0])
        data = CONTAINERS[container](*rows(support, place), tmp_path)
        with pytest.raises(ValueError, match="support") as caught:
            FUNCTIONS[function](pair, data)
        assert isinstance(caught.value, pv.PairError), (container, place, support)


@pytest.mark.thinned(7)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:.*log density:UserWarning")
def test_rows_in_the_support_are_scored(function, seed, tmp_path):
    cells = list(itertools.product(CONTAINERS, SUPPORTS))
    for container, support in random.Random(f"{function}{seed}").sample(cells, 8):
        data = CONTAINERS[container](*rows(support), tmp_path)
        FUNCTIONS[function](Pair(SUPPORTS[support][0]), data)


class Passes(torch.utils.data.IterableDataset):
    """Rows that are outside the support from some pass on."""

    def __init__(self, first_bad):
        self.first_bad, self.passes = first_bad, 0

    def __len__(self):
        return 60

    def __iter__(self):
        self.passes += 1
        rows = (torch.rand(60, 4) < 0.3).float()
        if self.passes >= self.first_bad:
            rows[47] = 0.5
        return iter(rows)


@pytest.mark.parametrize("role", ["train", "validation"])
def test_rows_of_a_loader_are_checked_in_every_pass(role):
    torch.manual_seed(0)
    good = torch.utils.data.DataLoader(Passes(100), batch_size=20)
    bad = torch.utils.data.DataLoader(Passes(5), batch_size=20)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [], 4)),
        pv.guides.DiagonalNormal(pv.networks.MLP(4, [], 4)),
    )
    train, validation = (bad, good) if role == "train" else (good, bad)
    place = "row 7 of a batch" if role == "train" else "datum 47"
    with pytest.raises(pv.PairError, match=rf"\[0.5, 0.5\] \(first at {place}\)"):
        pv.fit(vae, train, validation=validation, epochs=8, progress=False)
    assert 5 <= bad.dataset.passes < 8
