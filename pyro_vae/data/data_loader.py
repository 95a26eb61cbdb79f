"""Batches of a torch `DataLoader` in place of a tensor of rows."""

import contextlib
import itertools
import math
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.data.prefetch import (
    DataError,
    Rows,
    draw_seed,
)


class LoaderBatches:
    """The batches of a torch `DataLoader` in the place of a tensor of rows.

    A loader that has workers prepares batches while others train. Its order and what its workers
    draw follow from the run's seed, unless it has a generator of its own.

    Args:
        loader: gives tensors, or tuples of tensors: x and what else belongs to each datum.
        device: where its batches go.

    Raises:
        DataError: when it has no length or gives something else.
    """

    def __init__(self, loader: DataLoader[Any], device: str | torch.device = "cpu") -> None:
        self._loader, self.device = loader, torch.device(device)
        try:
            self.num_batches = len(loader)
            try:
                self._num_data = len(loader.sampler)  # type: ignore[arg-type]
            except TypeError:  # of an IterableDataset
                self._num_data = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(
                "a DataLoader needs a length, so that the number of its data is known: give its "
                "IterableDataset a __len__"
            ) from error
        self.first = next(self.passed(), ())
        if not self.first:
            raise DataError("the DataLoader is empty")
        x = self.first[0]
        self.batch_size = loader.batch_size or len(x)
        if loader.drop_last or loader.batch_sampler is None:  # or its items are batches
            self._num_data = self.num_batches * self.batch_size
        self.dtype, self.shape = x.dtype, torch.Size([self._num_data, *x.shape[1:]])

    def __len__(self) -> int:
        return self._num_data

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.first[0].dim()

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        """Tell whether the rows are floats."""
        return self.dtype.is_floating_point

    def to(self, device: str | torch.device) -> "LoaderBatches":
        """Return the loader with its batches on a device."""
        return LoaderBatches(self._loader, device)

    def narrow(self, dim: int, start: int, length: int) -> "LoaderBatches":
        """Raise `DataError`: what a loader gives has no places."""
        raise DataError("a DataLoader cannot be split: make validation data of their own")

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all rows, as many at a time as the loader gives."""
        return (x for x, *_ in self.passed())

    def some(self) -> Tensor:
        """Return the first batch."""
        return self.first[0]

    def passed(self) -> Iterator[Rows]:
        """Yield the batches of one pass for scoring, as many as the loader gives.

        The loader draws from random states of its own, the same in each pass and process, so that
        its rows do not depend on the draws that score them, nor these on the loader.

        Raises:
            DataError: when x is infinite, or batches differ in the types or shapes of their rows.
        """
        batches = self._checked(0)
        own = {
            "torch": torch.Generator().manual_seed(0).get_state(),
            "random": random.Random(0).getstate(),
            "numpy": np.random.RandomState(0).get_state(),
        }
        kinds = None
        while True:
            before = get_rng_state()
            set_rng_state(own)
            try:
                batch = next(batches, None)
            finally:
                own = get_rng_state()
                set_rng_state(before)
            if batch is None:
                return
            found = [(part.dtype, tuple(part.shape[1:])) for part in batch]
            kinds = kinds or found
            if found != kinds:
                raise DataError(
                    f"the DataLoader gives batches of rows {kinds} and of rows {found}: to be "
                    "scored, all rows need the same types and shapes"
                )
            if batch[0].is_floating_point() and torch.isinf(batch[0]).any():
                raise DataError("the DataLoader gives infinite values")
            yield batch

    def order(self, generator: torch.Generator, batch_size: int, skip: int) -> Iterator[Rows]:
        """Return an epoch's batches, without the first `skip`, which are made and let go.

        What is random about them is drawn from the generator at once.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(generator))
            batches = self._checked(len(self._loader))
            # The loader draws its order with the first batch.
            first = next(itertools.islice(batches, skip, None), None)
        return iter(()) if first is None else itertools.chain([first], batches)

    def _checked(self, expected: int) -> Iterator[Rows]:
        """Yield the batches of the loader, which are at least as many as expected."""
        batches = iter(self._loader)
        for count in itertools.count():
            try:
                batch = next(batches)
            except StopIteration:
                if count < expected:
                    raise DataError(
                        f"the DataLoader ended after {count} batches, and its length says "
                        f"{expected}: give its data set the length that it has"
                    ) from None
                return
            except Exception as error:  # of the data set's code, or a worker that was killed
                told = f"the DataLoader fails: {type(error).__name__}: {error}"
                cut_off = isinstance(error, ConnectionError | EOFError) and self._loader.num_workers
                if cut_off and "DataLoader worker" not in told:
                    told += " (a DataLoader worker ended before a batch of its was taken over)"
                raise DataError(told) from error
            rows = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            if not rows or not all(isinstance(part, Tensor) for part in rows):
                kinds = [type(part).__name__ for part in rows]
                raise DataError(
                    "a DataLoader gives tensors, or tuples of tensors (x and what else the "
                    f"programs take for each datum), got {kinds}: let its collate_fn choose them"
                )
            yield tuple(part.to(self.device, non_blocking=True) for part in rows)


@contextlib.contextmanager
def worker_errors_as_data_errors() -> Iterator[None]:
    """Turn the death of a loader's worker into a `DataError`.

    torch tells it by an exception of a signal handler, wherever Python is then: in a step, or in a
    check or an import, which wrap it in errors of their own.
    """
    before = sys.exception()  # is being handled by the caller: a death that it has been told of
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause not in (None, before) and "DataLoader worker" not in str(cause):
            cause = cause.__cause__ or cause.__context__
        if cause in (None, before):
            raise
        raise DataError(f"the DataLoader fails: {cause}") from error
