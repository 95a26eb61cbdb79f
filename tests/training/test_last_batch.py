"""The last batch of an epoch: refused before training if a program cannot train on it, or left out.

The grid: numbers of data, batch sizes and layers, with torch's modules as reference.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae.data.errors import DataError
from tests.support.runs import interrupt_after


class Standardized(nn.Module):
    """Divides by the standard deviation of the batch, which is NaN for a single row."""

    def forward(self, x):
        return x if not self.training else (x - x.mean(0)) / x.std(0)


class AtLeastThree(nn.Module):
    """Needs three rows in training mode."""

    def forward(self, x):
        if self.training and len(x) == 2:
            raise RuntimeError("two rows are too few")
        return x


LAYERS = {
    "none": lambda: [],
    "BatchNorm1d": lambda: [nn.BatchNorm1d(4)],
    "BatchNorm2d, one pixel": lambda: [
        nn.Unflatten(-1, (4, 1, 1)), nn.BatchNorm2d(4), nn.Flatten(-3)
    ],
    "BatchNorm2d, two pixels": lambda: [
        nn.Unflatten(-1, (2, 2, 1)), nn.BatchNorm2d(2), nn.Flatten(-3)
    ],
    "standardized by hand": lambda: [Standardized()],
    "LayerNorm": lambda: [nn.LayerNorm(4)],
    "frozen BatchNorm1d": lambda: [nn.BatchNorm1d(4).eval()],
}  # fmt: skip
FAIL_ON_ONE = {"BatchNorm1d", "BatchNorm2d, one pixel"}
NOT_FINITE = "standardized by hand"


class Encoder(pv.Part):
    def __init__(self, kind):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), *LAYERS[kind](), nn.Linear(4, 2))

    def forward(self, x):
        return self.net(x)


def pair(kind):
    torch.manual_seed(0)
    likelihood = pv.likelihoods.Normal(pv.networks.MLP(1, [], 3))
    guide = pv.guides.DiagonalNormal(Encoder(kind))
    return pv.VAE(pv.priors.StandardNormal(1), likelihood, guide)


def state(vae):
    return [value.clone() for value in vae.state_dict().values()]


@pytest.mark.thinned(5)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_last_batch_that_cannot_be_trained_on_is_refused_at_the_start(kind):
    for num_data, batch_size, loads in itertools.product((1, 4, 5, 8), (1, 2, 4), (False, True)):
        x, vae = torch.randn(num_data, 3), pair(kind)
        data = DataLoader(x, batch_size) if loads else x
        smallest = num_data % batch_size or min(batch_size, num_data)
        before, random = state(vae), torch.get_rng_state()
        if kind == NOT_FINITE and num_data == 1:
            continue  # one row is all there is: the loss is not finite, whatever the batch size
        if (kind in FAIL_ON_ONE or kind == NOT_FINITE) and smallest == 1:
            with pytest.raises(DataError, match=r"has 1 row .* single row .*batch_size"):
                pv.fit(vae, data, epochs=1, batch_size=batch_size)
            assert all(map(torch.equal, before, state(vae)))
            assert torch.equal(random, torch.get_rng_state())
        else:
            assert pv.fit(vae, data, epochs=1, batch_size=batch_size).stopped == "finished"


@pytest.mark.thinned(2, start=1)
@pytest.mark.parametrize("kind", LAYERS)
def test_drop_last_leaves_the_short_batch_out(kind):
    for num_data, batch_size in itertools.product((4, 5, 7, 9), (2, 4)):
        fit = pv.fit(
            pair(kind), torch.randn(num_data, 3), epochs=2, batch_size=batch_size, drop_last=True
        )
        steps = num_data // batch_size
        assert [e["num_data"] for e in fit.history] == [steps * batch_size] * 2
        assert fit.num_steps == 2 * steps


def test_drop_last_of_a_loader_is_the_loaders():
    with pytest.raises(DataError, match="pass drop_last=True to the DataLoader"):
        pv.fit(pair("none"), DataLoader(torch.randn(5, 3), 2), drop_last=True)
    loader = DataLoader(torch.randn(5, 3), 2, drop_last=True)
    assert pv.fit(pair("BatchNorm1d"), loader, epochs=1).num_steps == 2


@pytest.mark.parametrize("loads", [False, True])
def test_a_short_last_batch_of_several_rows_is_tried_too(loads, monkeypatch):
    monkeypatch.setitem(LAYERS, "at least three", lambda: [AtLeastThree()])
    for num_data, batch_size in ((6, 4), (8, 6), (6, 3)):
        x, vae = torch.randn(num_data, 3), pair("at least three")
        data, before = DataLoader(x, batch_size) if loads else x, state(vae)
        if num_data % batch_size:
            with pytest.raises(DataError, match=r"has 2 rows .* so few rows .*two rows are too"):
                pv.fit(vae, data, epochs=1, batch_size=batch_size)
            assert all(map(torch.equal, before, state(vae)))
        else:
            assert pv.fit(vae, data, epochs=1, batch_size=batch_size).num_steps == 2


def test_drop_last_is_part_of_the_settings(tmp_path):
    x = torch.randn(5, 3)
    pv.fit(pair("none"), x, epochs=1, batch_size=2, drop_last=True, out=tmp_path)
    with pytest.raises(pv.CheckpointError, match="drop_last was True"):
        pv.fit(pair("none"), x, epochs=1, batch_size=2, out=tmp_path, resume=True)


def rows_in_memory(folder):
    return torch.randn(11, 3)


def dynamic_pixels(folder):
    pixels = torch.randint(0, 256, (11, 3), dtype=torch.uint8)
    return pv.data.Dataset(pixels, binarization="dynamic")


def rows_on_disk(folder):
    values = np.memmap(folder / "rows", np.float32, "w+", shape=(11, 3))
    values[:] = torch.randn(11, 3).numpy()
    return values


@pytest.mark.thinned(5)
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [rows_in_memory, dynamic_pixels, rows_on_disk])
def test_rows_that_are_left_out_stay_so_in_a_resumed_epoch(rows, stop, tmp_path, monkeypatch):
    runs = []
    for folder, resume in (("whole", False), ("part", False), ("part", True)):
        torch.manual_seed(1)
        data, vae = rows(tmp_path), pair("none")
        with monkeypatch.context() as patch:
            interrupt_after(patch, stop if (folder, resume) == ("part", False) else 0)
            fit = pv.fit(
                vae, data, epochs=3, batch_size=5, drop_last=True, out=tmp_path / folder,
                resume=resume, progress=False,
            )  # fmt: skip
        history = [(entry["num_data"], entry["train_elbo"]) for entry in fit.history]
        runs.append((fit.num_steps, history, state(vae)))
    whole, _, resumed = runs
    assert resumed[:2] == whole[:2]
    assert whole[0] == 6
    assert all(map(torch.equal, resumed[2], whole[2]))
