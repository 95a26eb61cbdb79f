"""Arrays on disk in place of a tensor of rows.

Rows are not read one by one: a disk reads a thousand adjacent rows in the time of one. They are
read in blocks of adjacent rows. An epoch takes the blocks in random order, `WINDOW_BYTES` of them
at a time, and shuffles the rows of each window: a minibatch is drawn without replacement from some
hundred blocks spread over the array. Its rows are therefore slightly correlated if adjacent rows
are, as in an array sorted by class. Data of at most one window are shuffled completely, in the same
order as in memory.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.prefetch import (
    DataError,
    draw_seed,
    room,
    shuffled,
)

WINDOW_BYTES = 2**25  # of which two are held
BLOCK_BYTES = 2**18  # of an array that has no chunks of its own
SAMPLED_BLOCKS = 16


def is_stored(x: Any) -> bool:
    """Tell whether x is an array on disk: a `numpy.memmap`, or in chunks, as zarr and HDF5 have."""
    chunked = all(hasattr(x, name) for name in ("shape", "dtype", "chunks"))
    return isinstance(x, np.memmap) or (chunked and not isinstance(x, Tensor))


class DiskArray:
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

    def to(self, device: str | torch.device) -> "DiskArray":
        """Return the array with its rows on a device."""
        return DiskArray(self._array, device, self._start, self._stop)

    def narrow(self, dim: int, start: int, length: int) -> "DiskArray":
        """Return a part of the rows, without reading them."""
        begin = self._start + start
        return DiskArray(self._array, self.device, begin, begin + length)

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
