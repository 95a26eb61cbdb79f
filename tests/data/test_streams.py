"""Data that are not in memory train as those that are: the same numbers, in bounded memory."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae.data import data_loader, disk_array, prefetch
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.disk_array import DiskArray
from pyro_vae.data.errors import DataError
from tests.checkpointing.test_runs import Stop, stop_after, train
from tests.models.test_vae import small_vae

NUM_DATA, EVENT = 60, (1, 4, 4)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (NUM_DATA, *EVENT), dtype=np.uint8)


@pytest.fixture
def small_windows(monkeypatch):
    """Blocks of three rows of 16 bytes, windows of four blocks."""
    monkeypatch.setattr(disk_array, "BLOCK_BYTES", 48)
    monkeypatch.setattr(disk_array, "WINDOW_BYTES", 192)


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
    data = Dataset(memmap(tmp_path, pixels), binarization="dynamic", seed=4)
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


def test_a_loader_has_its_own_batches_and_their_context(pixels):
    x = (torch.from_numpy(pixels) > 127).float()
    loader = DataLoader(TensorDataset(x, torch.arange(NUM_DATA)), batch_size=7, drop_last=True)
    data = pv.data.as_dataset(loader)
    assert (len(data), data.num_batches(1)) == (56, 8)
    generator = torch.Generator().manual_seed(0)
    batches = list(data.batches(data.order(generator, 7), generator))
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(56))
    assert torch.equal(data.batch(slice(2))[1], torch.arange(2))
    torch.testing.assert_close(data.mean(), x[:56].mean(0))
    one = DataLoader(x, batch_size=7, shuffle=True)
    fit = pv.fit(small_vae(), one, epochs=1, batch_size=1000)
    assert (fit.num_steps, fit.settings["batch_size"], fit.history[0]["num_data"]) == (9, 7, 60)
    assert_equal(trained(one), trained(one))


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


class Counted(IterableDataset):
    def __init__(self, item):
        self.item = item

    def __iter__(self):
        return itertools.repeat(self.item, 5)


class Short(Counted):
    def __len__(self):
        return 6


FORK = multiprocessing.get_context("fork")


class Deadly(TensorDataset):
    def __getitem__(self, index):
        if index == 40 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: DataLoader(Counted(x[0])), "needs a length"),
        (lambda x: DataLoader(Short(x[0])), "ended after 5 batches, expected 6 by its length"),
        (lambda x: DataLoader([{"x": row} for row in x]), "must yield tensors, or tuples of tensors"),
        (lambda x: DataLoader(x[:0]), "the DataLoader is empty"),
        (lambda x: DataLoader(x.long()), "divide bytes 0..255"),
        (lambda x: Dataset(DataLoader(x), context=(x,)), "as tuples"),
        (lambda x: Dataset(x, context=(DataLoader(x),)), "one row for each datum"),
        (lambda x: Dataset(DataLoader(x)).hold_out(3), "cannot be split"),
    ],
)
def test_loaders_that_cannot_be_trained_on(pixels, make, message):
    x = (torch.from_numpy(pixels) > 127).float()
    with pytest.raises(DataError, match=message):
        pv.fit(small_vae(), make(x), epochs=1)


def test_arrays_that_cannot_be_trained_on(tmp_path, pixels):
    with pytest.raises(DataError, match="cannot be a tensor"):
        pv.fit(small_vae(), memmap(tmp_path, pixels.astype("S3")))
    with pytest.raises(DataError, match="floating-point dtype, got torch.uint8"):
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


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_that_is_killed_ends_the_run_by_a_sentence(pixels):
    # In a process of its own: torch's handler tells the death wherever Python is, and then again.
    x = (torch.from_numpy(pixels) > 127).float()
    loader = DataLoader(Deadly(x), batch_size=16, num_workers=1, collate_fn=first_of)

    def train():
        try:
            try:
                pv.fit(small_vae(), loader, epochs=1)
            finally:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except Exception as error:
            told = [error]
            while told[-1].__context__ is not None:  # the handler may have told it again since
                told.append(told[-1].__context__)
            sentences = [str(e) for e in told if isinstance(e, DataError)]
            named = ("the DataLoader fails: " in s and "DataLoader worker" in s for s in sentences)
            os._exit(not any(named))
        os._exit(2)

    child = FORK.Process(target=train)
    child.start()
    child.join(120)
    assert child.exitcode == 0


@data_loader.worker_errors_as_data_errors()
def tells_of_a_death(wrapped):
    try:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    except RuntimeError as error:
        if wrapped is None:
            raise
        raise wrapped("a check failed") from error


@pytest.mark.parametrize("wrapped", [ImportError, pv.PairError, None])
def test_a_death_that_is_told_inside_of_other_code_is_found(wrapped):
    with pytest.raises(DataError, match=r"the DataLoader fails: DataLoader worker \(pid 7\)"):
        tells_of_a_death(wrapped)


class CutOff(DataLoader):
    def __iter__(self):
        yield torch.ones(1, *EVENT)
        raise ConnectionResetError("[Errno 104] Connection reset by peer")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_that_is_cut_off_tells_of_the_worker(num_workers):
    loader = CutOff(torch.ones(6, *EVENT), num_workers=num_workers)
    with pytest.raises(DataError, match="the DataLoader fails: ConnectionResetError") as told:
        pv.fit(small_vae(), loader, epochs=1)
    assert ("a DataLoader worker ended" in str(told.value)) == (num_workers == 1)


@data_loader.worker_errors_as_data_errors()
def divide_by_zero():
    return 1 / 0


def test_errors_that_tell_of_no_death_are_left_as_they_are():
    with pytest.raises(ZeroDivisionError):
        divide_by_zero()
    try:
        tells_of_a_death(None)
    except DataError:  # a second run begins where the first one's death is handled
        with pytest.raises(ZeroDivisionError):
            divide_by_zero()


def first_of(rows):
    return torch.stack([x for x, *_ in rows])
