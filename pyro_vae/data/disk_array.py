"""Rows of an array on disk.

A disk reads a thousand adjacent rows in the time of one. Rows are therefore read in blocks of
adjacent rows. An epoch visits the blocks in random order, `WINDOW_BYTES` of them at a time, and
shuffles the rows of each window. A minibatch is drawn without replacement from about a hundred
blocks spread over the array. Its rows are slightly correlated if adjacent rows are, as in an array
sorted by class. Data of at most one window are shuffled completely, in the same order as in memory.
"""

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyro_vae.data.chunks import empty_rows
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.order import draw_seed, shuffled
from pyro_vae.data.random_access import RandomAccess
from pyro_vae.data.rows import Batch, Index

if TYPE_CHECKING:
    import zarr

WINDOW_BYTES = 2**25  # two windows are held in memory
BLOCK_BYTES = 2**18  # if the array has no chunks
SAMPLED_BLOCKS = 16
FILL_BLOCKS = 64  # that are searched for rows of only fill values if chunks are missing
CONTENT_BLOCKS, CONTENT_BYTES = 512, 2**15  # of the rows that identify the data


class StoredArray(Protocol):
    """An array of any package that returns slices of its rows, such as a zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(num_data, *event)`."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the rows."""

    def __getitem__(self, index: slice, /) -> ArrayLike:
        """Read rows."""


def is_stored(x: object) -> TypeGuard[StoredArray]:
    """Return whether x is an array on disk: a `numpy.memmap`, or chunked, as in zarr and HDF5."""
    if isinstance(x, Tensor):
        return False
    return isinstance(x, np.memmap) or all(hasattr(x, n) for n in ("shape", "dtype", "chunks"))


class _Selected:
    """Rows of a stored array, by ascending numbers.

    Args:
        array: The array.
        numbers: Numbers of the rows.
        block: Number of adjacent rows that are read in about the time of one.
    """

    def __init__(self, array: StoredArray, numbers: np.ndarray, block: int) -> None:
        self._array, self._numbers, self._block = array, numbers, block
        self.shape, self.dtype = (len(numbers), *array.shape[1:]), array.dtype
        self.chunks = (block,)

    def __getitem__(self, index: slice) -> np.ndarray:
        numbers = self._numbers[index]
        rows = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        start = 0
        while start < len(numbers):
            # Rows up to two blocks away are read at once, with those between them.
            first = numbers[start]
            stop = int(np.searchsorted(numbers, first + 2 * self._block))
            read = np.asarray(self._array[first : numbers[stop - 1] + 1])
            rows[start:stop] = read[numbers[start:stop] - first]
            start = stop
        return rows


class DiskArray(RandomAccess):
    """An array on disk that implements `Rows`.

    Args:
        array: Array with a shape, a dtype and slices, such as a `numpy.memmap` or a zarr array.
        device: Device of the rows that are read.
        start: First row.
        stop: Row after the last row; by default the end of the array.
        check: Whether to check that all chunks of the array are stored.

    Raises:
        DataError: If torch has no such dtype, or chunks of the array are missing.
    """

    def __init__(
        self,
        array: StoredArray,
        device: str | torch.device = "cpu",
        start: int = 0,
        stop: int | None = None,
        *,
        check: bool = True,
    ) -> None:
        if check:
            _check_chunks(array)
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
        chunks = getattr(array, "chunks", None) or (None,)
        block = chunks[0] if isinstance(chunks[0], int) else BLOCK_BYTES // row_bytes
        self._block = max(1, block)
        self._num_blocks = -(-len(self) // self._block)
        self._window = max(1, WINDOW_BYTES // (self._block * row_bytes))
        # A ring buffer with the blocks of two windows, allocated at the first batch.
        self._slots = min(2 * self._window, self._num_blocks)
        self._held: Tensor | None = None
        self._block_in = [-1] * self._slots
        self._slot_of = torch.full((self._num_blocks,), -1)
        self._next = 0

    def to(self, device: str | torch.device) -> "DiskArray":
        """Return the array with its rows on a device."""
        return DiskArray(self._array, device, self._start, self._stop, check=False)

    def narrow(self, start: int, length: int) -> "DiskArray":
        """Return `length` rows from row `start` on, without reading them."""
        begin = self._start + start
        return DiskArray(self._array, self.device, begin, begin + length, check=False)

    def subset(self, numbers: Tensor) -> "DiskArray":
        """Return the rows with these ascending numbers, without reading them."""
        rows = _Selected(self._array, numbers.cpu().numpy() + self._start, self._block)
        return DiskArray(rows, self.device)

    def sample(self) -> tuple[Index, Tensor]:
        """Return evenly spaced blocks, including the first and the last, and their index."""
        places = np.linspace(0, self._num_blocks - 1, min(SAMPLED_BLOCKS, self._num_blocks))
        starts = [int(place) * self._block for place in places]
        rows = torch.arange(len(self))
        index = torch.cat([rows[start : start + self._block] for start in starts])
        return index, torch.cat([self[start : start + self._block] for start in starts])

    def content_samples(self) -> Iterator[Tensor]:
        """Yield up to `CONTENT_BLOCKS` short blocks of rows, spread over the array."""
        size = max(1, CONTENT_BYTES // max(1, math.prod(self.shape[1:]) * self._dtype.itemsize))
        starts = np.linspace(0, max(0, len(self) - size), CONTENT_BLOCKS).astype(int)
        if len(self) <= size * CONTENT_BLOCKS:
            starts = np.arange(0, len(self), size)
        for start in np.unique(starts).tolist():
            yield self[start : start + size]

    def take(self, index: Index) -> Batch:
        """Read the rows at an index."""
        return (self[index],)

    def __getitem__(self, index: Index) -> Tensor:
        """Read rows as a tensor on the device."""
        if isinstance(index, slice) and index.step in (None, 1):
            start, stop, _ = index.indices(len(self))
            shape = (max(0, stop - start), *self.shape[1:])
            rows = empty_rows(self._start + start, shape, self.dtype)
            return self._read(start, rows.numpy()).to(self.device)
        numbers = range(len(self))[index] if isinstance(index, int | slice) else index.tolist()
        if isinstance(numbers, int):
            return self[numbers : numbers + 1][0]
        return torch.cat([self[number : number + 1] for number in numbers])

    def select(self, entry: Tensor) -> Batch:
        """Return the rows of a training batch. Their blocks are kept for the next batches."""
        index = entry.cpu()
        blocks = index // self._block
        for block in blocks[self._slot_of[blocks] < 0].unique().tolist():
            self._load(block)
        slots = self._slot_of[blocks]
        if (slots < 0).any():  # the batch has more blocks than memory holds
            return self.take(index)
        assert self._held is not None
        places = slots * self._block + index % self._block
        return (self._held.index_select(0, places).to(self.device, non_blocking=True),)

    def order(self, generator: torch.Generator, batch_size: int, skip: int) -> Iterator[Tensor]:
        """Return the indices of an epoch's batches in random order, without the first `skip`.

        All draws from the generator are made in this call.
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
        """Read rows from row `start` on into an array, and return it as a tensor."""
        begin = self._start + start
        _check_size(self._array)
        try:
            rows[...] = self._array[begin : begin + len(rows)]
        except Exception as error:  # arrays of other packages raise their own errors
            raise DataError(
                f"rows {begin} to {begin + len(rows) - 1} of the training data cannot be read: "
                f"{type(error).__name__}: {error}"
            ) from error
        values = torch.from_numpy(rows)
        if values.is_floating_point() and torch.isinf(values).any():
            raise DataError(f"rows {begin} to {begin + len(rows) - 1} of the data hold infinities")
        return values


def _check_chunks(array: Any) -> None:
    """Check that a zarr array or an HDF5 dataset has all chunks. Missing ones read as fill value.

    HDF5 stores every chunk that was written. zarr may omit a chunk of only fill values. Missing
    chunks are accepted with a warning if `_may_omit`.

    Raises:
        DataError: If chunks are missing, and were probably lost or not written.

    Warns:
        DataWarning: If chunks are missing, and were probably omitted.
    """
    is_zarr = hasattr(array, "nchunks_initialized")
    if is_zarr:
        found, expected = array.nchunks_initialized, array.nchunks
    elif hasattr(array, "chunks") and hasattr(getattr(array, "id", None), "get_num_chunks"):  # h5py
        if array.chunks is None:
            found, expected = int(array.id.get_storage_size() > 0), int(array.size > 0)
        else:
            found = array.id.get_num_chunks()
            sizes = zip(array.shape, array.chunks, strict=True)
            expected = math.prod(-(-size // chunk) for size, chunk in sizes)
    else:
        return
    if found >= expected:
        return
    missing = f"{expected - found} of the {expected} chunks of the array are missing"
    if not is_zarr or not _may_omit(array):
        raise DataError(
            f"{missing} and would be read as its fill value: write it again (in zarr with "
            "write_empty_chunks=True if a chunk has only fill values)"
        )
    warnings.warn(
        f"{missing} and are read as its fill value. zarr omits chunks of only fill values: if "
        "yours have other values, write the array again",
        DataWarning,
        stacklevel=2,
    )


def _may_omit(array: "zarr.Array") -> bool:
    """Return whether the missing chunks of a zarr array are like what is stored.

    Compares the chunks of the same columns. If one of them has only fill values, either all have,
    or another one has some rows of only fill values.
    """
    fill = 0 if array.fill_value is None else array.fill_value
    size, *widths = array.chunks
    starts = np.arange(0, array.shape[0], size)
    chosen = np.unique(np.linspace(0, len(starts) - 1, FILL_BLOCKS).astype(int))
    columns = [
        [slice(start, start + width) for start in range(0, length, width)]
        for length, width in zip(array.shape[1:], widths, strict=True)
    ]
    parts = list(itertools.product(*columns))
    is_whole = np.ones((len(chosen), len(parts)), bool)  # only fill values
    is_partial = np.zeros_like(is_whole)  # some rows of only fill values
    for i, start in enumerate(starts[chosen].tolist()):
        rows = np.asarray(array[start : start + size])
        is_fill = (rows == fill) | ((rows != rows) & (fill != fill))
        for j, part in enumerate(parts):
            empty = is_fill[(slice(None), *part)].reshape(len(rows), -1).all(1)
            is_whole[i, j], is_partial[i, j] = empty.all(), empty.any() and not empty.all()
    like = is_partial.any(0) | ~is_whole.any(0) | is_whole.all(0)
    return bool(like.all() and not is_whole.all())


def _check_size(array: object) -> None:
    """Raise `DataError` if the file of a memmap is shorter than the array.

    Reading beyond the end of the file would end the process.
    """
    if isinstance(array, _Selected):
        return _check_size(array._array)
    while isinstance(array, np.memmap) and isinstance(array.base, np.memmap):
        array = array.base
    if not isinstance(array, np.memmap) or array.filename is None:
        return None
    with contextlib.suppress(FileNotFoundError):  # a removed file is readable while it is mapped
        size, expected = Path(array.filename).stat().st_size, array.offset + array.nbytes
        if size < expected:
            raise DataError(
                f"{array.filename} was truncated: expected {expected:,} bytes, got {size:,}"
            )
    return None
