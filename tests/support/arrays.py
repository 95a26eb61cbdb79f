"""Arrays on disk and short training runs on them."""

import numpy as np
import pytest
import torch
import zarr

import pyro_vae as pv
from tests.models.test_vae import small_vae

NUM_DATA, EVENT = 60, (1, 4, 4)


def memmap(path, array):
    file = np.memmap(path / "rows", array.dtype, "w+", shape=array.shape)
    file[:] = array
    file.flush()
    return np.memmap(path / "rows", array.dtype, "r", shape=array.shape)


def zarray(path, array):
    return zarr.create_array(str(path / "rows.zarr"), data=array, chunks=(7, *array.shape[1:]))


STORES = pytest.mark.parametrize("store", [memmap, zarray])


def trained(data, **changed):
    torch.manual_seed(7)
    vae = small_vae()
    fit = pv.fit(vae, data, epochs=2, batch_size=16, seed=3, **changed)
    return [entry["train_elbo"] for entry in fit.history], list(vae.parameters())


def assert_equal(one, other):
    assert one[0] == other[0]
    assert all(map(torch.equal, one[1], other[1]))
