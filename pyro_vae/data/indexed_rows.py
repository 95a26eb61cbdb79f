"""Rows that are read by their numbers, a batch at a time."""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.chunks import empty_rows
from pyro_vae.data.random_access import RandomAccess
from pyro_vae.data.rows import Batch, Index

SPLIT_BYTES = 2**25  # rows of one part of `split`
SAMPLE_BYTES, CONTENT_BYTES = 2**22, 2**24  # rows that identify the data


class IndexedRows(RandomAccess):
    """Rows of a source that reads any of its rows as fast as the next. A subclass defines `_read`.

    Only the rows of one batch are in memory.

    Args:
        num_data: Number of rows.
        event_shape: Shape of one row.
        dtype: Type of the rows.
    """

    def __init__(self, num_data: int, event_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.dtype, self.device = dtype, torch.device("cpu")
        self.shape = torch.Size([num_data, *event_shape])
        self._numbers = np.arange(num_data)
        self._start = 0  # first row, for the alignment of rows in memory

    @abstractmethod
    def _read(self, numbers: np.ndarray, rows: Tensor) -> None:
        """Read the rows with these numbers into a contiguous tensor on the CPU."""

    def take(self, index: Index) -> Batch:
        """Read the rows at an index."""
        if isinstance(index, int):
            return (self.take(torch.tensor([index]))[0][0],)
        begin = index.indices(len(self))[0] if isinstance(index, slice) else 0
        numbers = self._numbers[index if isinstance(index, slice) else index.cpu().numpy()]
        rows = empty_rows(self._start + begin, (len(numbers), *self.shape[1:]), self.dtype)
        self._read(numbers, rows)
        return (rows.to(self.device, non_blocking=True),)

    def split(self, size: int) -> Iterable[Tensor]:
        """Yield all rows in order, `size` at a time or as many as `SPLIT_BYTES` hold."""
        return super().split(min(size, self._rows_in(SPLIT_BYTES)))

    def sample(self) -> tuple[Index, Tensor]:
        """Return evenly spaced rows, including the first and the last, and their index."""
        index = self._spaced(SAMPLE_BYTES)
        return index, self.take(index)[0]

    def content_samples(self) -> Iterable[Tensor]:
        """Return evenly spaced rows, of `CONTENT_BYTES` in all."""
        parts = self._spaced(CONTENT_BYTES).split(self._rows_in(SAMPLE_BYTES))
        return (self.take(index)[0] for index in parts)

    def narrow(self, start: int, length: int) -> Self:
        """Return `length` rows from row `start` on, without reading them."""
        return self._part(self._numbers[start : start + length], self._start + start)

    def subset(self, numbers: Tensor) -> Self:
        """Return the rows with these ascending numbers, without reading them."""
        return self._part(self._numbers[numbers.cpu().numpy()], 0)

    def to(self, device: str | torch.device) -> Self:
        """Return the rows on a device."""
        rows = copy.copy(self)
        rows.device = torch.device(device)
        return rows

    def _part(self, numbers: np.ndarray, start: int) -> Self:
        rows = copy.copy(self)
        rows.shape = torch.Size([len(numbers), *self.shape[1:]])
        rows._numbers, rows._start = numbers, start
        return rows

    def _rows_in(self, size: int) -> int:
        return max(1, size // (math.prod(self.shape[1:]) * self.dtype.itemsize))

    def _spaced(self, size: int) -> Tensor:
        count = min(len(self), self._rows_in(size))
        return torch.linspace(0, len(self) - 1, count, dtype=torch.float64).long()
