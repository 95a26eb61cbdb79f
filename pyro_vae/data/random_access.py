"""Base class of rows that can be read at any index."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pyro_vae.data.binarization import fixed_draw_of_rows
from pyro_vae.data.chunks import spans
from pyro_vae.data.order import shuffled
from pyro_vae.data.rows import Batch, Chunk, Index, Rows


class RandomAccess(ABC):
    """The part of `Rows` that follows from `shape` and `take`.

    Attributes:
        shape: Shape `(num_data, *event)`.
        dtype: Type of the rows as tensors.
        device: Device of the tensors that are returned.
    """

    random_access = True
    reads_ahead = True
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def take(self, index: Index) -> Batch:
        """Return the rows at an index."""

    @abstractmethod
    def sample(self) -> tuple[Index, Tensor]:
        """Return a sample of the rows, and its index."""

    @property
    def unwrapped(self) -> "Tensor | Rows":
        """The container, without reading it."""
        return self  # type: ignore[return-value]

    def has_infinities(self) -> bool:
        """Return False: rows are checked when they are read."""
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
        """Return the rows of a training batch."""
        return self.take(entry)

    def chunks(self, rows: int, least: int) -> Iterator[Chunk]:
        """Yield all rows in order, as slices and functions that return them."""
        for span in spans(len(self), rows, least):
            yield span, functools.partial(self.take, span)

    def split(self, size: int) -> Iterable[Tensor]:
        """Yield all rows in order, `size` at a time."""
        return (self.take(slice(i, i + size))[0] for i in range(0, len(self), size))

    def fingerprint(self) -> Iterable[Tensor]:
        """Return the sample, because reading all rows takes too long."""
        return (self.sample()[1],)

    def binarize(self, pixels: Tensor, index: Index, seed: int) -> Tensor:
        """Return a Bernoulli draw of each row, from the seed and the number of the row."""
        return fixed_draw_of_rows(pixels, range(len(self)), index, seed)
