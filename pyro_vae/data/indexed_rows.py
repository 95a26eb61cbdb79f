"""Rows that are read by their numbers, a batch at a time."""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.binarization import fixed_draw_of_rows
from pyro_vae.data.chunks import empty_rows, spans
from pyro_vae.data.order import shuffled
from pyro_vae.data.rows import Batch, Chunk, Index

SPLIT_BYTES = 2**25  # rows of one part of `split`
SAMPLE_BYTES, CONTENT_BYTES = 2**22, 2**24  # rows that identify the data


class IndexedRows(ABC):
    """Rows that can be read in any order, as `Rows`. A subclass defines `_read`.

    Only the rows of one batch are in memory.

    Args:
        num_data: Number of rows.
        event_shape: Shape of one row.
        dtype: Type of the rows.
    """

    random_access = True
    reads_ahead = True

    def __init__(self, num_data: int, event_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.dtype, self.device = dtype, torch.device("cpu")
        self._event_shape, self._numbers = event_shape, np.arange(num_data)
        self._start = 0  # first row, for the alignment of rows in memory

    @abstractmethod
    def _read(self, numbers: np.ndarray, rows: Tensor) -> None:
        """Read the rows with these numbers into a contiguous tensor on the CPU."""

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def shape(self) -> torch.Size:
        """Shape `(num_data, *event)`."""
        return torch.Size([len(self), *self._event_shape])

    @property
    def unwrapped(self) -> Self:
        """The container, without reading it."""
        return self

    def has_infinities(self) -> bool:
        """Return False: readers check the rows."""
        return False

    def training_batch_size(self, requested: int) -> int:
        """Return the requested size, or the number of rows if it is smaller."""
        return min(requested, len(self))

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self) // batch_size)

    def order(self, generator: torch.Generator, batch_size: int, skip: int) -> Iterator[Tensor]:
        """Return the indices of an epoch's batches in random order, without the first `skip`."""
        return shuffled(len(self), generator, batch_size, skip)

    def select(self, entry: Tensor) -> Batch:
        """Read the rows of a training batch."""
        return self.take(entry)

    def take(self, index: Index) -> Batch:
        """Read the rows at an index."""
        if isinstance(index, int):
            return (self.take(torch.tensor([index]))[0][0],)
        begin = index.indices(len(self))[0] if isinstance(index, slice) else 0
        numbers = self._numbers[index if isinstance(index, slice) else index.cpu().numpy()]
        rows = empty_rows(self._start + begin, (len(numbers), *self._event_shape), self.dtype)
        self._read(numbers, rows)
        return (rows.to(self.device, non_blocking=True),)

    def chunks(self, rows: int, least: int) -> Iterator[Chunk]:
        """Yield all rows in order, as slices and functions that read them."""
        for span in spans(len(self), rows, least):
            yield span, functools.partial(self.take, span)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all rows in order, `size` at a time or as many as `SPLIT_BYTES` hold."""
        size = min(size, self._rows_in(SPLIT_BYTES))
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))[0]

    def sample(self) -> tuple[Index, Tensor]:
        """Return evenly spaced rows, including the first and the last, and their index."""
        index = self._spaced(SAMPLE_BYTES)
        return index, self.take(index)[0]

    def fingerprint(self) -> Iterable[Tensor]:
        """Return the sample, because reading all rows takes too long."""
        return (self.sample()[1],)

    def content_samples(self) -> Iterator[Tensor]:
        """Yield evenly spaced rows of `CONTENT_BYTES` in all."""
        for index in self._spaced(CONTENT_BYTES).split(self._rows_in(SAMPLE_BYTES)):
            yield self.take(index)[0]

    def binarize(self, pixels: Tensor, index: Index, seed: int) -> Tensor:
        """Return a Bernoulli draw of each row, from the seed and the number of the row."""
        return fixed_draw_of_rows(pixels, range(len(self)), index, seed)

    def narrow(self, start: int, length: int) -> Self:
        """Return `length` rows from row `start` on, without reading them."""
        return self._with(
            _numbers=self._numbers[start : start + length], _start=self._start + start
        )

    def subset(self, numbers: Tensor) -> Self:
        """Return the rows with these ascending numbers, without reading them."""
        return self._with(_numbers=self._numbers[numbers.cpu().numpy()], _start=0)

    def to(self, device: str | torch.device) -> Self:
        """Return the rows on a device."""
        return self._with(device=torch.device(device))

    def _with(self, **changed: object) -> Self:
        rows = copy.copy(self)
        vars(rows).update(changed)
        return rows

    def _rows_in(self, size: int) -> int:
        return max(1, size // (math.prod(self._event_shape) * self.dtype.itemsize))

    def _spaced(self, size: int) -> Tensor:
        count = min(len(self), self._rows_in(size))
        return torch.linspace(0, len(self) - 1, count, dtype=torch.float64).long()
