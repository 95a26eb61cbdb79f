"""`Dataset`: data that are checked, binarized, split and drawn in batches."""

import dataclasses
import functools
import numbers
import sys
from collections.abc import Callable, Iterator
from typing import Any, Self, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.data.binarization import BINARIZATIONS, _where, bernoulli
from pyro_vae.data.chunks import recut, taken
from pyro_vae.data.data_loader import LoaderBatches
from pyro_vae.data.disk_array import DiskArray, is_stored
from pyro_vae.data.prefetch import DataError, ahead, room, shuffled

Split = tuple["Dataset", "Dataset"]
Chunk = tuple[int, Callable[[], tuple[Tensor, ...]]]  # of `Dataset.chunks`
# What `as_dataset` takes: or another array on disk, as zarr has.
Data = Union["Dataset", Tensor, np.ndarray, tuple[Any, ...], DataLoader[Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data held as one tensor, or read as they are needed, and how a batch of them is fed.

    Attributes:
        values: shape `(num_data, *event)`; 8-bit pixels, or a float type. A tensor, or what does
            not fit into memory: an array on disk (a `numpy.memmap`, a zarr array), or a torch
            `DataLoader` of batches, which may be tuples `(x, y, ...)`; see `pyro_vae.streams`.
        labels: int64 classes, shape `(num_data,)`, or None.
        name: of the data set, as results name it.
        split: `"train"`, `"validation"` or `"test"`.
        binarization: `"dynamic"`, pixels drawn from Bernoulli(pixel/255), anew each time in
            training and fixed by `seed` otherwise; `"static"`, drawn once for all; `"threshold"`,
            1 from 0.5 on; or `"none"`, grey values pixel/255, or floats as they are (NaN: missing).
        seed: of the fixed draws.
        context: what else the programs of a pair take for each datum, after x: labels, lengths;
            tensors of num_data rows, or arrays on disk.

    Raises:
        DataError: for data that are empty, not 8-bit or floating point, or infinite, or whose
            labels or binarization do not fit.
    """

    values: Any
    labels: Tensor | None = None
    name: str = "arrays"
    split: str = "train"
    binarization: str = "none"
    seed: int = 0
    context: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _as_rows(self.values))
        object.__setattr__(self, "context", tuple(map(_as_rows, self.context)))
        for rows in (self.values, *self.context, *(() if self.labels is None else (self.labels,))):
            if not isinstance(rows, Tensor | DiskArray | LoaderBatches):
                raise DataError(
                    f"a data set holds torch tensors, got {type(rows).__name__}: arrays become "
                    "such by torch.as_tensor"
                )
        if self.values.dim() == 0 or self.values.numel() == 0:
            raise DataError(f"data set {self.name!r} is empty: shape {tuple(self.values.shape)}")
        if self.binarization not in BINARIZATIONS:
            raise DataError(f"binarize={self.binarization!r} is unknown: choose of {BINARIZATIONS}")
        if self.values.dtype != torch.uint8 and not self.values.is_floating_point():
            raise DataError(f"data must be 8-bit pixels or floats, got {self.values.dtype}")
        if self.values.dtype != torch.uint8 and self.binarization in ("dynamic", "threshold"):
            raise DataError(f"binarize={self.binarization!r} needs 8-bit pixels (uint8, 0..255)")
        if (
            isinstance(self.values, Tensor)  # others are looked at when they are read
            and self.values.is_floating_point()
            and torch.isinf(self.values).any()
        ):
            raise DataError(f"data set {self.name!r} holds infinite values")
        if self.labels is not None and self.labels.shape != self.values.shape[:1]:
            shape = tuple(self.labels.shape)
            raise DataError(
                f"{len(self.values)} data have labels of shape {shape}, one each is due"
            )
        if isinstance(self.values, LoaderBatches) and self.context:
            raise DataError(
                "a DataLoader gives what else belongs to its data with them, as tuples (x, y, ...)"
            )
        for rows in self.context:
            if isinstance(rows, LoaderBatches) or rows.dim() == 0 or len(rows) != len(self.values):
                raise DataError(
                    f"{len(self.values)} data have a context of shape {tuple(rows.shape)}: one row "
                    "for each datum is expected"
                )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.values.shape[1:])

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch for training, shape `(len(index), *event)`: dynamic ones drawn anew."""
        return self.draw_batch(index, generator)[0]

    def _draw(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return bernoulli(batch, generator) if self.binarization == "dynamic" else self._feed(batch)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Return data as they are scored, the same for every call: dynamic ones as fixed draws.

        Pixels are fed as float32, floats in their own type.
        """
        if isinstance(self.values, LoaderBatches):
            return self.batch(index)[0]
        if self.binarization == "dynamic" and isinstance(self.values, Tensor):
            return self._fixed[index].float()
        return self._scored(self.values[index], index)

    def batch(self, index: int | slice | Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of a pair's programs, as they are scored: x and its context."""
        if isinstance(self.values, LoaderBatches):
            x, *context = _loaded_rows(self.values, index)
            return (self._scored(x, index), *context)
        return (self[index], *(rows[index] for rows in self.context))

    def chunks(self, rows: int, least: int = 1) -> Iterator[Chunk]:
        """Yield all data in order as chunks of `rows` of them, to be scored.

        A chunk is the place of its first datum and a function that returns the arguments of a
        pair's programs, as they are scored: x and its context. Fewer than `least` data at the end
        join the chunk before them. A `DataLoader` is passed over once, and the chunks have as many
        data as it gives, whatever its length says.
        """
        if isinstance(self.values, LoaderBatches):
            for start, batch in recut(self.values.passed(), rows, least):
                yield start, functools.partial(self._scored_batch, start, batch)
            return
        start = 0
        while start < len(self):
            stop = start + rows if len(self) - start >= rows + least else len(self)
            yield start, functools.partial(self.batch, slice(start, stop))
            start = stop

    def spread(self, count: int) -> Tensor:
        """Return `count` data, or all, from evenly spaced places, as they are scored.

        The first ones may be all of one class: the test data of static MNIST are sorted.
        """
        return self[:: max(1, len(self) // count)][:count]

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""
        if isinstance(self.values, LoaderBatches):
            return self.values.num_batches
        return -(-len(self) // batch_size)

    def order(self, generator: torch.Generator, batch_size: int, skip: int = 0) -> Iterator[Any]:
        """Return an epoch's batches for `batches` to draw, in random order, the first left out.

        What is random about the order is drawn from the generator at once.
        """
        if isinstance(self.values, Tensor):
            return shuffled(len(self), generator, batch_size, skip)
        return self.values.order(generator, batch_size, skip)

    def batches(
        self, order: Iterator[Any], generator: torch.Generator
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the arguments of a pair's programs for each batch of an order, for training.

        What is on disk is read by a thread while earlier batches are trained on.
        """
        if isinstance(self.values, LoaderBatches):
            read = order
        elif any(isinstance(rows, DiskArray) for rows in (self.values, *self.context)):
            read = ahead(order, self._select)
        else:
            read = map(self._select, order)
        for rows in read:
            yield self._drawn(rows, generator)

    def _select(self, index: Tensor) -> tuple[Tensor, ...]:
        # Several times faster than values[index].
        return tuple(rows.index_select(0, index) for rows in (self.values, *self.context))

    def _drawn(self, rows: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
        x, *context = rows
        return (self._draw(x, generator), *context)

    def sample(self) -> Tensor:
        """Return the data as they are scored: all that are in memory, or some of the others."""
        if isinstance(self.values, Tensor):
            return self[:]
        return self._feed(self.values.some())

    def draw_batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the arguments of a pair's programs, for training: x and its context."""
        return self._drawn(self._select(index), generator)

    def mean(self) -> Tensor:
        """Return the mean datum, as it is fed on average, shape `(*event)`."""
        sums, count = [], 0
        for chunk in self.values.split(4096):
            sums.append(self._feed(chunk).double().sum(dim=0))
            count += len(chunk)
        dtype = torch.float32 if self.values.dtype == torch.uint8 else self.values.dtype
        return (torch.stack(sums).sum(dim=0) / count).to(dtype)

    def log_odds(self) -> Tensor:
        """Return logit of the mean, smoothed by one datum of fair coins: shape `(*event)`.

        The bias that a Bernoulli decoder starts from best.
        """
        return torch.logit((self.mean() * len(self) + 0.5) / (len(self) + 1))

    def hold_out(self, count: float) -> Split:
        """Split off the last data for validation; return the rest and these.

        Args:
            count: how many data, or a share of them between 0 and 1, such as 0.1, rounded to at
                least one datum.

        Raises:
            DataError: unless at least one datum is left on either side.
        """
        size: Any = count
        if isinstance(count, numbers.Real) and 0 < count < 1:
            size = min(max(1, round(float(count) * len(self))), len(self) - 1)
        whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
        if not whole or not 1 <= size < len(self):
            raise DataError(
                f"cannot hold out {count!r} of {len(self)} data: give a whole number from 1 to "
                f"{len(self) - 1}, or a share between 0 and 1, such as 0.1"
            )
        cut = len(self) - int(size)
        return self._part(0, cut, self.split), self._part(cut, int(size), "validation")

    def to(self, device: str | torch.device) -> Self:
        """Return the data set on a device."""
        if self.values.device == torch.device(device):
            return self
        labels = None if self.labels is None else self.labels.to(device)
        context = tuple(rows.to(device) for rows in self.context)
        return dataclasses.replace(
            self, values=self.values.to(device), labels=labels, context=context
        )

    def _part(self, start: int, length: int, split: str) -> "Dataset":
        labels = None if self.labels is None else self.labels.narrow(0, start, length)
        return dataclasses.replace(
            self,
            values=self.values.narrow(0, start, length),
            labels=labels,
            split=split,
            context=tuple(rows.narrow(0, start, length) for rows in self.context),
        )

    def _feed(self, batch: Tensor) -> Tensor:
        if self.binarization == "threshold":
            return _where(torch.ge, batch, 128)
        return batch.float() / 255 if batch.dtype == torch.uint8 else batch

    @functools.cached_property
    def _fixed(self) -> Tensor:
        """One draw of every datum, as bytes: made in chunks, once."""
        # Drawn on the CPU, so that every device scores the same data.
        generator = torch.Generator().manual_seed(self.seed)
        chunks = [bernoulli(chunk, generator).bool() for chunk in self.values.cpu().split(4096)]
        return torch.cat(chunks).to(self.values.device)

    def _scored_batch(self, start: int, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if batch[0].device.type == "cpu":
            batch = tuple(room(start, part.shape, part.dtype).copy_(part) for part in batch)
        x, *context = batch
        return (self._scored(x, slice(start, start + len(x))), *context)

    def _scored(self, values: Tensor, index: int | slice | Tensor) -> Tensor:
        """Return rows that are not in memory as they are scored, given their places."""
        if self.binarization == "dynamic":
            return self._fixed_rows(values, index)
        return self._feed(values)

    def _fixed_rows(self, pixels: Tensor, index: int | slice | Tensor) -> Tensor:
        """Draw some rows, each from a seed of its own, so that it need not be kept."""
        # A DataLoader may have more rows than it says, and counts them from its start.
        places = range(sys.maxsize if isinstance(self.values, LoaderBatches) else len(self))
        numbers = places[index] if isinstance(index, int | slice) else index.tolist()
        numbers, rows = ([numbers], [pixels]) if isinstance(numbers, int) else (numbers, pixels)
        generator = torch.Generator()
        drawn = []
        for number, row in zip(numbers, rows, strict=False):
            seed = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)
            drawn.append(bernoulli(row.cpu(), generator.manual_seed(int(seed[0]))))
        return torch.stack(drawn).view(pixels.shape).to(pixels.device)


def _loaded_rows(loaded: LoaderBatches, index: int | slice | Tensor) -> tuple[Tensor, ...]:
    """Return the rows at some places of a loader's order: of its first batch, or by a pass."""
    if not isinstance(index, slice):
        chosen = torch.as_tensor(index)
        low, high = int(chosen.min()), int(chosen.max())
        span = _loaded_rows(loaded, slice(low, high + 1))
        if len(span[0]) <= high - low:
            raise DataError(f"row {high} is asked for, but the DataLoader gives fewer rows")
        return tuple(part[chosen.to(part.device) - low] for part in span)
    stop = sys.maxsize if index.stop is None else index.stop
    places = range(index.start or 0, stop, index.step or 1)
    if min(places.start, places.stop) < 0 or places.step < 1:
        raise DataError(
            f"rows of a DataLoader are counted from its start, in ascending order, got {index}: "
            "read them into a tensor first"
        )
    return taken([loaded.first] if stop <= len(loaded.first[0]) else loaded.passed(), places)


def as_tensor(x: Any) -> Any:
    """Return an array as a tensor, and anything else as it is.

    Raises:
        DataError: for arrays of objects, strings and other types that torch has not.
    """
    if not isinstance(x, np.ndarray):
        return x
    try:
        # Torch cannot hold read-only, reversed or foreign-endian arrays (a memmap, a view): copied.
        return torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise DataError(f"an array of dtype {x.dtype} cannot be a tensor: {error}") from error


def _as_rows(x: Any) -> Any:
    if isinstance(x, DataLoader):
        return LoaderBatches(x)
    return DiskArray(x) if is_stored(x) else x


def as_dataset(x: Data, name: str = "arrays") -> Dataset:
    """Return x as a data set; arrays of floats, shape `(num_data, *event)`, are fed as they are.

    A tuple is a data set, or such an array, and its context, tensors or arrays of as many rows.
    Arrays on disk stay there, and a `DataLoader` gives its batches as they come.

    Raises:
        DataError: for integers, which have no one meaning as data.
    """
    if isinstance(x, Dataset):
        return x
    if isinstance(x, tuple) and x:
        data, *context = x
        rows = [value if is_stored(value) else as_tensor(value) for value in context]
        return dataclasses.replace(as_dataset(data, name), context=tuple(rows))
    if isinstance(x, DataLoader) or is_stored(x):
        x = _as_rows(x)
    if not isinstance(x, Tensor | np.ndarray | DiskArray | LoaderBatches):
        raise DataError(
            "data must be a tensor, a numpy array, a zarr array, a torch DataLoader or a "
            f"pv.data.Dataset, got {type(x).__name__}"
        )
    if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.dtype.itemsize <= 8:
        return Dataset(as_tensor(x), name=name)
    if isinstance(x, np.ndarray) or not x.is_floating_point():
        raise DataError(
            f"data have dtype {x.dtype}, floating point is expected: divide bytes 0..255 by "
            "255, or wrap them, pv.data.Dataset(pixels, binarization='dynamic')"
        )
    return Dataset(x, name=name)
