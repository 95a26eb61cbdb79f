"""Batches are read ahead, and a run resumes in the middle of an epoch."""

import threading

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae.data import prefetch
from pyro_vae.data.dataset import Dataset
from tests.support.arrays import memmap
from tests.support.runs import Stop, stop_after, train


def test_the_next_batch_is_read_while_this_one_is_used():
    was_read = [threading.Event() for _ in range(3)]

    def read(index):
        assert threading.current_thread() is not threading.main_thread()
        was_read[int(index)].set()
        return (index,)

    batches = prefetch.read_ahead(iter(torch.arange(3)), read)
    assert next(batches)[0] == 0
    assert was_read[1].wait(timeout=60)
    assert [int(rows[0]) for rows in batches] == [1, 2]


@pytest.mark.parametrize("kind", ["stored", "loader", "workers"])
def test_a_run_goes_on_bit_for_bit_in_the_middle_of_an_epoch(
    tmp_path, monkeypatch, small_windows, pixels, kind
):
    def data():
        if kind == "stored":
            return Dataset(memmap(tmp_path, pixels), binarization="dynamic")
        workers = 2 if kind == "workers" else 0
        tensors = TensorDataset(torch.from_numpy(pixels))
        loader = DataLoader(tensors, batch_size=16, shuffle=True, num_workers=workers)
        return Dataset(loader, binarization="dynamic")

    expected = train(tmp_path / "whole", train=data(), epochs=2)
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Stop):
            train(tmp_path / "cut", train=data(), epochs=2, seconds=0.0)
    fit, parameters, _ = train(tmp_path / "cut", resume=True, train=data(), epochs=2)
    assert [e["train_elbo"] for e in fit.history] == [e["train_elbo"] for e in expected[0].history]
    assert all(map(torch.equal, parameters, expected[1]))
