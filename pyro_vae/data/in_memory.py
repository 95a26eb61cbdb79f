"""Rows of a tensor in memory."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae.data.binarization import fixed_draw
from pyro_vae.data.chunks import spans
from pyro_vae.data.order import shuffled
from pyro_vae.data.rows import Batch, Chunk, Index


class InMemory:
    """A tensor that implements `Rows`.

    Args:
        tensor: Tensor of shape `(num_data, *event)`.
    """

    random_access = True
    reads_ahead = False

    def __init__(self, tensor: Tensor) -> None:
        self.unwrapped = tensor
        self._draws: dict[int, Tensor] = {}

    @property
    def shape(self) -> torch.Size:
        """Shape `(num_data, *event)`."""
        return self.unwrapped.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tensor."""
        return self.unwrapped.dtype

    @property
    def device(self) -> torch.device:
        """Device of the tensor."""
        return self.unwrapped.device

    def __len__(self) -> int:
        return len(self.unwrapped)

    def has_infinities(self) -> bool:
        """Whether any value is infinite."""
        return self.dtype.is_floating_point and bool(torch.isinf(self.unwrapped).any())

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
        return (self.unwrapped.index_select(0, entry),)  # several times faster than tensor[entry]

    def take(self, index: Index) -> Batch:
        """Return the rows at an index."""
        return (self.unwrapped[index],)

    def chunks(self, rows: int, least: int) -> Iterator[Chunk]:
        """Yield all rows in order, as slices and functions that return them."""
        for span in spans(len(self), rows, least):
            yield span, functools.partial(self.take, span)

    def split(self, size: int) -> tuple[Tensor, ...]:
        """Return all rows in order, `size` at a time."""
        return self.unwrapped.split(size)

    def sample(self) -> tuple[Index, Tensor]:
        """Return all rows."""
        return slice(None), self.unwrapped

    def fingerprint(self) -> tuple[Tensor, ...]:
        """Return all rows."""
        return self.split(4096)

    def content_samples(self) -> tuple[Tensor, ...]:
        """Return no rows, because the fingerprint has all of them."""
        return ()

    def binarize(self, pixels: Tensor, index: Index, seed: int) -> Tensor:
        """Return rows of one Bernoulli draw of the whole tensor, made at the first call."""
        if seed not in self._draws:
            self._draws[seed] = fixed_draw(self.unwrapped, seed)
        return self._draws[seed][index].float()

    def narrow(self, start: int, length: int) -> "InMemory":
        """Return a view of `length` rows from row `start` on."""
        return InMemory(self.unwrapped.narrow(0, start, length))

    def subset(self, numbers: Tensor) -> "InMemory":
        """Return a copy of the rows with these numbers."""
        return InMemory(self.unwrapped[numbers.to(self.device)])

    def to(self, device: str | torch.device) -> "InMemory":
        """Return the rows on a device."""
        return InMemory(self.unwrapped.to(device))
