"""Loaders train in their own batches; dead workers and wrong lengths are reported."""

import itertools
import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae.data import data_loader
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from tests.models.test_vae import small_vae
from tests.support.arrays import EVENT, NUM_DATA, assert_equal, trained
from tests.support.runs import FORK, fork


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


class Counted(IterableDataset):
    def __init__(self, item):
        self.item = item

    def __iter__(self):
        return itertools.repeat(self.item, 5)


class Short(Counted):
    def __len__(self):
        return 6


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
        (
            lambda x: DataLoader([{"x": row} for row in x]),
            "must yield tensors, or tuples",
        ),
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


@fork
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
