"""`Rows`: the protocol between `Dataset` and the containers that hold its rows."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

Batch: TypeAlias = tuple[Tensor, ...]  # x and its context: the arguments of model and guide
Index: TypeAlias = int | slice | Tensor
Chunk: TypeAlias = tuple[slice, Callable[[], Batch]]
Entry: TypeAlias = Any  # an index tensor, or a batch that a loader has read
Order: TypeAlias = Iterator[Entry]


@runtime_checkable
class Rows(Protocol):
    """Rows of one array, or of x and its context if they are stored together.

    Implemented by `InMemory`, `DiskArray`, `LoaderBatches` and `IndexedRows`. To support another
    container, implement this protocol, or derive it from `IndexedRows`.

    Attributes:
        random_access: Whether rows can be read at any index. Otherwise only in one order.
        reads_ahead: Whether a background thread should read batches ahead of training.
    """

    random_access: bool
    reads_ahead: bool

    @property
    def shape(self) -> torch.Size:
        """Shape `(num_data, *event)`."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the rows as tensors."""

    @property
    def device(self) -> torch.device:
        """Device of the tensors that are returned."""

    @property
    def unwrapped(self) -> "Tensor | Rows":
        """Value of `Dataset.values`: the tensor in memory, or else the container itself."""

    def __len__(self) -> int:
        """Number of rows."""

    def has_infinities(self) -> bool:
        """Whether the rows in memory have infinities. Other rows are checked when they are read."""

    def training_batch_size(self, requested: int) -> int:
        """Return the size of training batches if this size is requested."""

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""

    def order(self, generator: torch.Generator, batch_size: int, skip: int) -> Order:
        """Return the batches of an epoch in random order, as arguments of `select`.

        Args:
            generator: Source of the random order. All draws are made in this call.
            batch_size: Number of rows in a batch.
            skip: Number of batches to skip at the beginning.
        """

    def select(self, entry: Entry) -> Batch:
        """Return the rows of one entry of an order."""

    def take(self, index: Index) -> Batch:
        """Return the rows at an index."""

    def chunks(self, rows: int, least: int) -> Iterator[Chunk]:
        """Yield all rows in order: slices of `rows` of them, and functions that read these.

        Fewer than `least` rows at the end join the chunk before them.
        """

    def split(self, size: int) -> Iterable[Tensor]:
        """Yield all rows in order, about `size` at a time and without context."""

    def sample(self) -> tuple[Index, Tensor]:
        """Return a sample of the rows for checks, all if they are in memory, and its index."""

    def fingerprint(self) -> Iterable[Tensor]:
        """Yield the rows that identify the data when a run is resumed."""

    def content_samples(self) -> Iterable[Tensor]:
        """Yield further rows that identify the data if `fingerprint` does not yield all of them."""

    def binarize(self, pixels: Tensor, index: Index, seed: int) -> Tensor:
        """Return the fixed Bernoulli draw of the pixels at an index, the same in each call."""

    def narrow(self, start: int, length: int) -> "Rows":
        """Return `length` rows from row `start` on, without reading them."""

    def subset(self, numbers: Tensor) -> "Rows":
        """Return the rows with these ascending numbers. Rows on disk are not read."""

    def to(self, device: str | torch.device) -> "Rows":
        """Return the rows on a device."""


def subset(rows: Rows, numbers: Tensor) -> Rows:
    """Return the rows with these ascending numbers, without a copy if they are adjacent."""
    start, length = int(numbers[0]), len(numbers)
    is_adjacent = int(numbers[-1]) - start + 1 == length
    return rows.narrow(start, length) if is_adjacent else rows.subset(numbers)
