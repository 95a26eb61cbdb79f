"""Held-out data are a seeded random subset, the same of every container; means leave out NaN."""

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.data import disk_array
from pyro_vae.data.dataset import Dataset


def memmap(x, folder):
    stored = np.memmap(folder / "x", np.float32, "w+", shape=tuple(x.shape))
    stored[:] = x.numpy()
    return stored


CONTAINERS = {
    "tensor": lambda x, folder: x,
    "memmap": memmap,
    "zarr": lambda x, folder: zarr.array(x.numpy(), chunks=(7, 3)),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("count", [1, 10, 137, 999, 0.1])
def test_sorted_data_are_held_out_at_random(container, count, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_array, "BLOCK_BYTES", 60)
    x = torch.arange(3000.0).view(1000, 3)
    labels = torch.arange(1000)
    values = CONTAINERS[container](x, tmp_path)
    data = Dataset(values, labels, context=(labels.double(),))
    train, held = data.hold_out(count)
    rows = torch.cat([held[:], train[:]])
    assert torch.equal(rows[:, 0].sort().values, x[:, 0])
    for part in (train, held):
        assert torch.equal(part[:], x[part.labels])
        assert torch.equal(part.batch(slice(None))[1], part.labels.double())
        assert torch.equal(part[2:11], x[part.labels[2:11]])
        batches = part.batches(part.order(torch.Generator(), 13), torch.Generator())
        read = torch.cat([batch[0] for batch in batches])
        assert torch.equal(read[:, 0].sort().values, part[:][:, 0])
    assert torch.equal(held.labels, Dataset(x, labels).hold_out(count)[1].labels)
    if len(held) >= 100:  # the mean of a random subset, within five standard errors
        share = len(held) / 1000
        error = 289 * ((1 - share) / len(held)) ** 0.5
        assert abs(held.labels.double().mean() - 499.5) < 5 * error
    if len(held) < 999:
        assert not torch.equal(data.hold_out(count, seed=1)[1].labels, held.labels)


def test_the_data_of_load_are_split_as_published():
    train, _ = pv.data.load("mnist-5k")
    _, held = train.hold_out(5)
    assert torch.equal(held.values, train.values[-5:])


def test_parts_of_parts_are_rows_of_the_whole(tmp_path):
    x = torch.arange(300.0).view(100, 3)
    first, _ = Dataset(memmap(x, tmp_path)).hold_out(30)
    second, held = first.hold_out(20)
    expected, expected_held = Dataset(x).hold_out(30)[0].hold_out(20)
    assert torch.equal(second[:], expected[:])
    assert torch.equal(held[:], expected_held[:])


@pytest.mark.parametrize("container", [*CONTAINERS, "loader"])
def test_means_leave_out_what_is_missing(container, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(50, 3, generator=generator) < 0.3).float()
    x[::3, 1] = torch.nan
    made = CONTAINERS.get(container, lambda x, folder: DataLoader(TensorDataset(x), batch_size=9))
    data = Dataset(made(x, tmp_path))
    torch.testing.assert_close(data.mean(), x.nanmean(0))
    present = (~x.isnan()).sum(0)
    odds = torch.logit((x.nansum(0) + 0.5) / (present + 1))
    torch.testing.assert_close(data.log_odds(), odds)
    x[:, 2] = torch.nan
    empty = Dataset(x)
    assert empty.log_odds()[2] == 0
    with pytest.raises(pv.data.DataError, match=r"entry \(2,\) is NaN in all data"):
        empty.mean()
    with pytest.raises(pv.data.DataError, match="log odds need means between 0 and 1"):
        Dataset(5 * x[:, :2]).log_odds()
