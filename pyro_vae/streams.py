"""Data that are not in memory: read from an array on disk, or taken from a torch `DataLoader`.

Rows of an array on disk are not read one by one, in an order that jumps about: a disk gives a
thousand neighbours in the time of one. They are read in blocks of neighbours. An epoch takes the
blocks in random order, `WINDOW_BYTES` of them together, and shuffles their rows: a minibatch is
drawn without replacement from some hundred blocks out of all places of the array. Its rows are
therefore a little alike where neighbours are, as in an array that is sorted by class. Data of one
window or less are shuffled as a whole, in the order that they would have in memory.
"""

import contextlib
import itertools
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor
from torch.utils.data import DataLoader

WINDOW_BYTES = 2**25  # of which two are held
BLOCK_BYTES = 2**18  # of an array that has no chunks of its own
AHEAD_BYTES = 2**24  # of batches that wait for the step: a pause of the disk does not stop it
SAMPLED_BLOCKS = 16
ALIGNMENT = 64  # bytes, of the memory of a tensor

Rows = tuple[Tensor, ...]


class DataError(ValueError):
    """Data that cannot be had or are not what they should be; the message says what to do."""


def is_stored(x: Any) -> bool:
    """Tell whether x is an array on disk: a `numpy.memmap`, or in chunks, as zarr and HDF5 have."""
    chunked = all(hasattr(x, name) for name in ("shape", "dtype", "chunks"))
    return isinstance(x, np.memmap) or (chunked and not isinstance(x, Tensor))


class Stored:
    """An array on disk in the place of a tensor of rows, as far as a data set needs one.

    Args:
        array: has a shape, a dtype and slices, such as a `numpy.memmap` or a zarr array.
        device: where its rows go.
        start, stop: a part of its rows.

    Raises:
        DataError: for a type that torch has not.
    """

    def __init__(
        self,
        array: Any,
        device: str | torch.device = "cpu",
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        self._array, self.device = array, torch.device(device)
        self._start, self._stop = start, array.shape[0] if stop is None else stop
        self._dtype = np.dtype(array.dtype).newbyteorder("=")
        try:
            self.dtype = torch.from_numpy(np.empty(0, self._dtype)).dtype
        except TypeError as error:
            raise DataError(
                f"an array of dtype {array.dtype} cannot be a tensor: {error}"
            ) from error
        self.shape = torch.Size([self._stop - self._start, *array.shape[1:]])
        row_bytes = max(1, math.prod(self.shape[1:]) * self._dtype.itemsize)
        chunks = getattr(array, "chunks", None)
        own = chunks[0] if chunks and isinstance(chunks[0], int) else BLOCK_BYTES // row_bytes
        self._block = max(1, own)
        self._num_blocks = -(-len(self) // self._block)
        self._window = max(1, WINDOW_BYTES // (self._block * row_bytes))
        # Two windows' blocks, the oldest of which makes room for the next; made when needed.
        self._slots = min(2 * self._window, self._num_blocks)
        self._held: Tensor | None = None
        self._block_in = [-1] * self._slots
        self._slot_of = torch.full((self._num_blocks,), -1)
        self._next = 0

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        """Tell whether the rows are floats."""
        return self.dtype.is_floating_point

    def to(self, device: str | torch.device) -> "Stored":
        """Return the array with its rows on a device."""
        return Stored(self._array, device, self._start, self._stop)

    def narrow(self, dim: int, start: int, length: int) -> "Stored":
        """Return a part of the rows, without reading them."""
        begin = self._start + start
        return Stored(self._array, self.device, begin, begin + length)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all rows, `size` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def some(self) -> Tensor:
        """Return a sample: some blocks from evenly spaced places, the first and the last."""
        places = np.linspace(0, self._num_blocks - 1, min(SAMPLED_BLOCKS, self._num_blocks))
        starts = [int(place) * self._block for place in places]
        return torch.cat([self[start : start + self._block] for start in starts])

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Read rows, as a tensor on the device."""
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(len(self))
            shape = (max(0, stop - start), *self.shape[1:])
            rows = room(self._start + start, shape, self.dtype)
            return self._read(start, rows.numpy()).to(self.device)
        numbers = range(len(self))[index] if isinstance(index, int | slice) else index.tolist()
        if isinstance(numbers, int):
            return self[numbers : numbers + 1][0]
        return torch.cat([self[number : number + 1] for number in numbers])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the rows of a batch, from blocks that are kept for the next batches."""
        index = index.cpu()
        blocks = index // self._block
        for block in blocks[self._slot_of[blocks] < 0].unique().tolist():
            self._load(block)
        slots = self._slot_of[blocks]
        if (slots < 0).any():  # more blocks than are held
            return self[index]
        assert self._held is not None
        places = slots * self._block + index % self._block
        return self._held.index_select(0, places).to(self.device, non_blocking=True)

    def order(self, generator: torch.Generator, batch_size: int, skip: int) -> Iterator[Tensor]:
        """Return the indices of an epoch's batches, without the first `skip`.

        What is random about them is drawn from the generator at once.
        """
        if self._num_blocks <= self._window:
            return shuffled(len(self), generator, batch_size, skip)
        return itertools.islice(self._windows(draw_seed(generator), batch_size), skip, None)

    def _windows(self, seed: int, batch_size: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        left = torch.empty(0, dtype=torch.long)
        for blocks in torch.randperm(self._num_blocks, generator=generator).split(self._window):
            rows = (blocks[:, None] * self._block + torch.arange(self._block)).flatten()
            rows = rows[rows < len(self)]
            rows = rows[torch.randperm(len(rows), generator=generator)]
            *batches, left = torch.cat([left, rows]).split(batch_size)
            yield from batches
        yield left

    def _load(self, block: int) -> None:
        if self._held is None:
            self._held = torch.empty((self._slots * self._block, *self.shape[1:]), dtype=self.dtype)
        slot, self._next = self._next, (self._next + 1) % self._slots
        if self._block_in[slot] >= 0:
            self._slot_of[self._block_in[slot]] = -1
            self._block_in[slot] = -1
        start = block * self._block
        count = min(self._block, len(self) - start)
        self._read(start, self._held.narrow(0, slot * self._block, count).numpy())
        self._block_in[slot], self._slot_of[block] = block, slot

    def _read(self, start: int, rows: np.ndarray) -> Tensor:
        """Read as many rows as `rows` has into it."""
        begin = self._start + start
        try:
            rows[...] = self._array[begin : begin + len(rows)]
        except Exception as error:  # whatever a foreign array raises
            raise DataError(
                f"rows {begin} to {begin + len(rows) - 1} of the training data cannot be read: "
                f"{type(error).__name__}: {error}"
            ) from error
        values = torch.from_numpy(rows)
        if values.is_floating_point() and torch.isinf(values).any():
            raise DataError(f"rows {begin} to {begin + len(rows) - 1} of the data hold infinities")
        return values


class Loaded:
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

    def to(self, device: str | torch.device) -> "Loaded":
        """Return the loader with its batches on a device."""
        return Loaded(self._loader, device)

    def narrow(self, dim: int, start: int, length: int) -> "Loaded":
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
def worker_deaths_told() -> Iterator[None]:
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


def room(start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return memory for rows that is aligned as in a tensor with `start` rows before them.

    How a matrix product rounds depends on the alignment: so all containers give the same scores.
    """
    period = ALIGNMENT // math.gcd(ALIGNMENT, math.prod(shape[1:]) * dtype.itemsize)
    before = start % period
    return torch.empty((before + shape[0], *shape[1:]), dtype=dtype)[before:]


def shuffled(
    num_data: int, generator: torch.Generator, batch_size: int, skip: int
) -> Iterator[Tensor]:
    """Return the indices of batches of all data in random order, without the first `skip`."""
    order = torch.randperm(num_data, generator=generator, device=generator.device)
    return iter(order.split(batch_size)[skip:])


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def ahead(order: Iterator[Tensor], read: Callable[[Tensor], Rows]) -> Iterator[Rows]:
    """Yield what `read` makes of each index, read by a thread while earlier ones are used."""
    waiting: deque[Future[Rows]] = deque()
    depth = 1
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pyro_vae")
    try:
        for index in order:
            waiting.append(executor.submit(read, index))
            if len(waiting) > depth:
                rows = waiting.popleft().result()
                depth = max(1, AHEAD_BYTES // sum(part.nbytes for part in rows))
                yield rows
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
