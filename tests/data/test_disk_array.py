"""Arrays on disk train and score as tensors, in bounded memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr

import pyro_vae as pv
from pyro_vae.data import disk_array, prefetch
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.disk_array import DiskArray
from pyro_vae.data.errors import DataError
from tests.models.test_vae import small_vae
from tests.support.arrays import EVENT, NUM_DATA, STORES, assert_equal, memmap, trained, zarray


@STORES
def test_stored_pixels_train_as_those_in_memory(tmp_path, pixels, store):
    expected = trained(Dataset(torch.from_numpy(pixels), binarization="dynamic"))
    assert_equal(trained(Dataset(store(tmp_path, pixels), binarization="dynamic")), expected)


@STORES
def test_stored_floats_and_context_train_as_those_in_memory(tmp_path, pixels, store):
    floats = (pixels > 127).astype(">f4")
    assert_equal(trained(store(tmp_path, floats)), trained(floats))
    labels = np.arange(NUM_DATA, dtype=np.int64)[:, None]
    stored = pv.data.as_dataset((floats, memmap(tmp_path, labels)))
    generator = torch.Generator().manual_seed(0)
    for x, y in stored.batches(stored.order(generator, 16), generator):
        assert torch.equal(x, torch.from_numpy(floats[y[:, 0].numpy()].astype("f4")))


def test_an_epoch_has_every_row_once_out_of_many_blocks(tmp_path, pixels, small_windows):
    rows = DiskArray(memmap(tmp_path, pixels))
    generator = torch.Generator().manual_seed(1)
    state = generator.get_state()
    batches = list(rows.order(generator, 8, 0))
    assert [len(batch) for batch in batches] == [8] * 7 + [4]
    assert sorted(torch.cat(batches).tolist()) == list(range(NUM_DATA))
    assert len((batches[0] // 3).unique()) > 2
    assert not torch.equal(torch.cat(list(rows.order(generator, 8, 0))), torch.cat(batches))
    generator.set_state(state)
    rest = list(rows.order(generator, 8, 3))
    assert all(map(torch.equal, rest, batches[3:]))


@STORES
def test_any_index_is_read_right(tmp_path, pixels, store, small_windows):
    rows = DiskArray(store(tmp_path, pixels)).narrow(5, 50)
    expected = torch.from_numpy(pixels)[5:55]
    generator = torch.Generator().manual_seed(1)
    for size in (4, 50, 9, 200):  # at times more blocks than are held
        index = torch.randint(50, (size,), generator=generator)
        assert torch.equal(rows.select(index)[0], expected[index])
        assert torch.equal(rows[index], expected[index])
    for batch in rows.order(generator, 8, 0):
        assert torch.equal(rows.select(batch)[0], expected[batch])
    assert torch.equal(torch.cat(list(rows.split(7))), expected)
    assert torch.equal(rows[3], expected[3])
    assert torch.equal(rows[40:3:-4], torch.from_numpy(pixels[45:8:-4].copy()))
    assert rows[60:].shape == (0, *EVENT)


def test_stored_data_are_held_out_scored_and_averaged(tmp_path, pixels):
    data = Dataset(memmap(tmp_path, pixels), binarization="dynamic", seed=4, hold_out_last=True)
    first, last = data.hold_out(20)
    assert (len(first), len(last), last.event_shape) == (40, 20, EVENT)
    assert torch.equal(last.values[:], torch.from_numpy(pixels[40:]))
    assert torch.equal(data.mean(), Dataset(torch.from_numpy(pixels)).mean())
    assert torch.equal(data[:][torch.tensor([3, 50])], data[torch.tensor([3, 50])])
    assert torch.equal(data[7], data[7:8][0])
    assert set(data[:].unique().tolist()) == {0.0, 1.0}
    white = Dataset(memmap(tmp_path, np.full((900, *EVENT), 51, np.uint8)), binarization="dynamic")
    assert abs(white[:].mean() - 0.2) < 5 * (0.2 * 0.8 / 14400) ** 0.5
    torch.manual_seed(0)
    assert np.isfinite(pv.evaluate(small_vae(), data, num_samples=3).elbo).all()


FLAT = """
import sys, numpy as np, torch, pyro_vae as pv
def megabytes():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon"))
rows = np.memmap(sys.argv[1], np.uint8, "w+", shape=(1_000_000, 784))  # a file of holes
data = pv.data.Dataset(rows, binarization="threshold")
generator = torch.Generator().manual_seed(0)
before, most, seen = megabytes(), 0, 0
for i, (x,) in enumerate(data.batches(data.order(generator, 500), generator)):
    seen += len(x)
    most = max(most, megabytes()) if i % 20 == 0 else most
print(seen, most - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat(tmp_path):
    """784 MB are read, and no more than two windows and the batches ahead are held."""
    child = subprocess.run(
        [sys.executable, "-c", FLAT, str(tmp_path / "rows")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    seen, grown = map(int, child.stdout.split())
    assert seen == 1_000_000
    held = 2 * disk_array.WINDOW_BYTES + prefetch.AHEAD_BYTES
    assert grown < 2 * held / 2**20


def test_arrays_that_cannot_be_trained_on(tmp_path, pixels):
    with pytest.raises(DataError, match="cannot be a tensor"):
        pv.fit(small_vae(), memmap(tmp_path, pixels.astype("S3")))
    with pytest.raises(DataError, match=r"floating-point dtype, got torch\.uint8"):
        pv.fit(small_vae(), zarray(tmp_path, pixels[:3]))
    with pytest.raises(pv.PairError, match="support"):
        pv.fit(small_vae(), memmap(tmp_path, pixels.astype(np.float32)))


def test_rows_that_cannot_be_read_are_named(tmp_path, pixels):
    array = zarray(tmp_path, (pixels > 127).astype(np.float32))
    (tmp_path / "rows.zarr/c/4/0/0/0").write_bytes(b"damaged")
    with pytest.raises(DataError, match="rows 28 to 34 of the training data cannot be read"):
        DiskArray(array).select(torch.tensor([30]))
    with pytest.raises(DataError, match="cannot be read"):
        pv.fit(small_vae(), array, epochs=1)
    infinite = np.zeros((5, *EVENT), np.float32)
    infinite[3] = np.inf
    with pytest.raises(DataError, match="rows 0 to 4 of the data hold infinities"):
        pv.fit(small_vae(), memmap(tmp_path, infinite), epochs=1)


@pytest.mark.parametrize("missing", [0, 3])
def test_missing_chunks_of_zarr_are_refused(missing, tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", shape=(40, 6), chunks=(10, 6), dtype="f4")
    array[:] = 1
    chunks = sorted(path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file())
    assert len(pv.data.Dataset(array)) == 40
    chunks[missing].unlink()
    with pytest.raises(pv.data.DataError, match="1 of the 4 chunks"):
        pv.data.Dataset(zarr.open_array(tmp_path / "a.zarr"))


def with_fill_values(kind):
    """Return 100 rows of 6 columns, in which some chunks of zarr have only the fill value."""
    x = np.random.default_rng(0).random((100, 6)).astype("f4")
    if kind == "columns":
        x[:, :3] = 0
    elif kind == "a block and a row":
        x[20:30] = x[55] = 0
    elif kind == "sparse":
        x *= x > 0.98
    elif kind == "a block":
        x[20:30] = 0
    return x


@pytest.mark.parametrize("kind", ["columns", "a block and a row", "sparse"])
def test_chunks_of_fill_values_that_zarr_omits_are_read_with_a_warning(kind, tmp_path):
    x = with_fill_values(kind)
    array = zarr.create_array(tmp_path / "a.zarr", shape=x.shape, chunks=(10, 3), dtype="f4")
    array[:] = x
    with pytest.warns(pv.data.DataWarning, match="chunks of the array are missing") as told:
        train, test = pv.data.Dataset(array).hold_out(10)
    assert len(told) == 1
    assert len(train) + len(test) == 100


@pytest.mark.parametrize("kind", ["nothing", "a block", "one chunk"])
def test_chunks_unlike_the_stored_ones_are_refused(kind, tmp_path):
    x = with_fill_values(kind)
    array = zarr.create_array(tmp_path / "a.zarr", shape=x.shape, chunks=(10, 3), dtype="f4")
    if kind != "nothing":
        array[:] = x
    if kind == "one chunk":
        next(path for path in (tmp_path / "a.zarr" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(pv.data.DataError, match="chunks of the array are missing"):
        pv.data.Dataset(array)


@pytest.mark.parametrize("rows", [30, 40])
def test_missing_chunks_of_hdf5_are_refused(rows, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("x", (40, 6), "f4", chunks=(10, 6))
        array[:rows] = 1
        if rows == 40:
            assert len(pv.data.Dataset(array)) == 40
        else:
            with pytest.raises(pv.data.DataError, match="1 of the 4 chunks"):
                pv.data.Dataset(array)


@pytest.mark.parametrize("part", [slice(None), slice(100, 900)])
def test_a_memmap_that_is_truncated_while_it_is_mapped_is_refused(part, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones((1000, 64), np.float32))
    data = pv.data.Dataset(np.load(path, mmap_mode="r")[part])
    assert data[700].sum() == 64
    os.truncate(path, 5000)
    with pytest.raises(pv.data.DataError, match="truncated"):
        data[700]
