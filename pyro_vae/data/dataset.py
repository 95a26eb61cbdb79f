"""`Dataset`: checks, binarization, splits and batches of data."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import Seed, check_fields, checked, setting
from pyro_vae.data import moments
from pyro_vae.data.binarization import BINARIZATIONS, drawn, threshold
from pyro_vae.data.chunks import evenly_spaced
from pyro_vae.data.classes import classes_of
from pyro_vae.data.containers import as_rows
from pyro_vae.data.data_loader import LoaderBatches
from pyro_vae.data.errors import DataError
from pyro_vae.data.order import held_out
from pyro_vae.data.prefetch import read_ahead
from pyro_vae.data.rows import Batch, Entry, Index, Order, Rows, subset

Split: TypeAlias = tuple["Dataset", "Dataset"]
Chunk: TypeAlias = tuple[int, Callable[[], Batch]]  # of `Dataset.chunks`


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data, and how they are binarized and batched.

    See also: `as_dataset`, `load`, `bernoulli`.

    Attributes:
        values: Array of shape `(num_data, *event)`, 8-bit pixels, floats, or counts and tokens as
            int64. A tensor, or data that do not fit into memory: an array on disk (a
            `numpy.memmap` or a zarr array), or a torch `DataLoader` of batches x or
            `(x, *context)`.
        labels: int64 classes of shape `(num_data,)`, or None. Names of classes, one string for each
            datum, are replaced by numbers.
        class_names: Names of the classes by number, for pictures; by default those in `labels`.
        name: Name of the dataset in results, of printable characters.
        split: `"train"`, `"validation"` or `"test"`.
        binarization: `"dynamic"` draws pixels from Bernoulli(pixel/255), again at each training
            step and fixed by `seed` for scores. `"static"` means that `values` are already one
            draw. `"threshold"` maps pixels from 128 on to 1. `"none"` gives grey values pixel/255,
            or floats unchanged (NaN: missing).
        seed: Random seed for the fixed draws.
        dtype: Floating-point type of x for model and guide; by default that of `values`, and
            float32 for pixels.
        context: Further arguments of model and guide after x, such as labels or lengths: tensors
            of num_data rows, or arrays on disk.
        schema: Description of the data by `pyro_vae.data.open`, or None.
        identifiers: Columns that identify the data in files of results and are not modelled, one
            value for each datum: the files of images, the columns of a table of this kind.
        hold_out_last: Whether `hold_out` takes the last data: their order is random, or the last
            ones are a published validation set, as in the data of `load`.

    Raises:
        DataError: If data are empty, infinite, or of another dtype, if labels, context or
            binarization do not fit them, or if the name has a control character.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> pixels = torch.randint(256, (100, 1, 28, 28), dtype=torch.uint8)
        >>> data = pv.data.Dataset(pixels, binarization="dynamic")
        >>> train, validation = data.hold_out(0.1)
        >>> len(train), len(validation), validation[:5].shape
        (90, 10, torch.Size([5, 1, 28, 28]))
    """

    values: Any
    labels: Any = None
    name: str = "arrays"
    split: str = "train"
    binarization: str = "none"
    seed: Seed = 0
    context: tuple[object, ...] = ()
    hold_out_last: bool = False
    dtype: torch.dtype | None = None
    schema: Any = None
    class_names: tuple[str, ...] = ()
    identifiers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    _rows: Rows = dataclasses.field(init=False, repr=False)
    _context: tuple[Rows, ...] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, text in (("name", self.name), ("split", self.split)):
            if not text.isprintable():
                raise DataError(
                    f"{name} must have printable characters only, for titles and reports, got "
                    f"{text!r}"
                )
        rows, context = as_rows(self.values), tuple(map(as_rows, self.context))
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_context", context)
        object.__setattr__(self, "values", rows.unwrapped)
        object.__setattr__(self, "context", tuple(item.unwrapped for item in context))
        self._check_values()
        labels, class_names = classes_of(self.labels, self.class_names, len(self))
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "class_names", class_names)
        self._check_context()
        for name, known in self.identifiers.items():
            if len(known) != len(self):
                raise DataError(
                    f"the identifier {name!r} has {len(known)} values: expected one for each "
                    f"datum, {len(self)} in all"
                )

    def _check_values(self) -> None:
        shape, dtype = self._rows.shape, self._rows.dtype
        if len(shape) == 0 or shape.numel() == 0:
            raise DataError(f"dataset {self.name!r} is empty: shape {tuple(shape)}")
        if self.binarization not in BINARIZATIONS:
            raise DataError(
                f"unknown {setting('binarize', self.binarization)}; expected one of {BINARIZATIONS}"
            )
        if dtype not in (torch.uint8, torch.int64) and not dtype.is_floating_point:
            raise DataError(
                f"expected 8-bit pixels or floats, or counts and tokens as int64, got {dtype}"
            )
        if dtype != torch.uint8 and self.binarization in ("dynamic", "threshold"):
            raise DataError(
                f"{setting('binarize', self.binarization)} needs 8-bit pixels (uint8, 0..255), got "
                f"{dtype}"
            )
        if self._rows.device.type == "meta":
            raise DataError(
                f"dataset {self.name!r} is on the device meta, which has shapes but no values: "
                "create it on another device"
            )
        if self._rows.has_infinities():
            raise DataError(f"dataset {self.name!r} has infinite values")
        if self.dtype is not None and isinstance(self.values, Tensor):
            largest = torch.finfo(self.dtype).max
            if dtype.itemsize > self.dtype.itemsize and (self.values.abs() > largest).any():
                raise DataError(
                    f"dataset {self.name!r} has values above {largest:.2g}, the largest of "
                    f"{self.dtype}: rescale them"
                )

    def _check_context(self) -> None:
        if self._context and not self._rows.random_access:
            raise DataError(
                f"{setting('context')} cannot be combined with a DataLoader: let the loader yield "
                "x and its context as tuples (x, y, ...)"
            )
        for rows in self._context:
            if not rows.random_access or not rows.shape or len(rows) != len(self):
                raise DataError(
                    f"context has shape {tuple(rows.shape)}: expected one row for each datum, "
                    f"{len(self)} in all"
                )

    @property
    def _all_rows(self) -> tuple[Rows, ...]:
        return (self._rows, *self._context)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def loader(self) -> LoaderBatches | None:
        """The batches of a `DataLoader`; None for data in memory or on disk."""
        return self._rows if isinstance(self._rows, LoaderBatches) else None

    @property
    def in_memory(self) -> bool:
        """Whether all rows are tensors in memory."""
        return all(r.random_access and not r.reads_ahead for r in self._all_rows)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self._rows.shape[1:])

    def __getitem__(self, index: Index) -> Tensor:
        """Return data as they are scored, the same in each call: dynamic ones as fixed draws.

        Pixels are returned as float32, floats in their own type.
        """
        return self._scored(self._rows.take(index)[0], index)

    def batch(self, index: Index) -> Batch:
        """Return the arguments of model and guide, as they are scored: x and its context."""
        return self._scored_batch(index, functools.partial(self._rows.take, index))

    def chunks(self, rows: int, least: int = 1) -> Iterator[Chunk]:
        """Yield all data in order as chunks of `rows` of them, to be scored.

        A chunk is the place of its first datum and a function that returns the arguments of model
        and guide, as they are scored: x and its context. Fewer than `least` data at the end join
        the chunk before them. A `DataLoader` is read once. If the number of its data differs from
        its length, all of them are scored.
        """
        for span, read in self._rows.chunks(rows, least):
            yield span.start, functools.partial(self._scored_batch, span, read)

    def spread(self, count: int) -> Tensor:
        """Return `count` data, or all, from evenly spaced places, as they are scored.

        The first data may all be of one class: the test data of static MNIST are sorted.
        """
        return self.spread_batch(count)[0]

    def spread_batch(self, count: int) -> Batch:
        """Return the arguments of model and guide for the data of `spread`: x and its context."""
        return self.batch(evenly_spaced(len(self), count))

    def sample(self) -> Tensor:
        """Return data as they are scored: all if they are in memory, or else some of them."""
        index, x = self._rows.sample()
        return self._scored(x, index)

    def fingerprint_rows(self) -> Iterator[Tensor]:
        """Yield the rows that identify data and context: all in memory, a sample of those on disk.

        The rows of a `DataLoader` are not included.
        """
        for rows in self._all_rows:
            yield from rows.fingerprint()

    def content_samples(self) -> Iterator[Tensor]:
        """Yield samples of rows on disk or of a `DataLoader`; nothing for data in memory."""
        for rows in self._all_rows:
            yield from rows.content_samples()

    def training_batch_size(self, requested: int) -> int:
        """Return the size of training batches: as requested, or the batch size of a loader."""
        return self._rows.training_batch_size(requested)

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""
        return self._rows.num_batches(batch_size)

    def order(self, generator: torch.Generator, batch_size: int, skip: int = 0) -> Order:
        """Return an epoch's batches in random order, as an argument of `batches`.

        Args:
            generator: Source of the random order. All draws are made in this call.
            batch_size: Number of data in a batch.
            skip: Number of batches to skip at the beginning.
        """
        return self._rows.order(generator, batch_size, skip)

    def batches(self, order: Order, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the arguments of model and guide for each batch; a thread reads those on disk."""
        ahead = any(rows.reads_ahead for rows in self._all_rows)
        read = read_ahead(order, self._select) if ahead else map(self._select, order)
        for rows in read:
            yield self._drawn(rows, generator)

    def draw_batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        """Return the arguments of model and guide, for training: x and its context."""
        return self._drawn(self._select(index), generator)

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return x for training, shape `(len(index), *event)`: with new draws if dynamic."""
        return self.draw_batch(index, generator)[0]

    def mean(self) -> Tensor:
        """Return the mean datum before binarization, without the NaN entries, shape `(*event)`.

        Raises:
            DataError: If an entry is NaN in all data.
        """
        return moments.mean(map(self._feed, self._rows.split(4096)))

    def log_odds(self) -> Tensor:
        """Return logit of the mean, smoothed by one datum of fair coins: shape `(*event)`.

        A good initial bias for a Bernoulli decoder. NaN entries are left out. An entry that is NaN
        in all data has log odds 0.

        Raises:
            DataError: If the mean of an entry is not between 0 and 1.
        """
        return moments.log_odds(map(self._feed, self._rows.split(4096)))

    @checked
    def hold_out(self, count: float, *, seed: Seed = 0) -> Split:
        """Split off a random subset for validation; return the remaining data and the subset.

        Both keep the order of the data. A tensor is copied; rows on disk are not read.

        Args:
            count: Number of data, or a share of them between 0 and 1: at least one datum.
            seed: Random seed of the subset.

        Raises:
            DataError: If a side would be empty.
        """
        kept, held = held_out(len(self), count, None if self.hold_out_last else seed)
        return self._part(kept, self.split), self._part(held, "validation")

    def astype(self, dtype: torch.dtype | None) -> Self:
        """Return the dataset with x of a floating-point type; None and integers do not change."""
        if dtype is None or dtype == self.x_dtype or not self.x_dtype.is_floating_point:
            return self
        return dataclasses.replace(self, dtype=dtype)

    @property
    def x_dtype(self) -> torch.dtype:
        """Type of x for model and guide: a floating-point type, or int64."""
        own = self._rows.dtype
        return self.dtype or (torch.float32 if own == torch.uint8 else own)

    def to(self, device: str | torch.device) -> Self:
        """Return the dataset on a device."""
        if self._rows.device == torch.device(device):
            return self
        return dataclasses.replace(
            self,
            values=self._rows.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            context=tuple(rows.to(device) for rows in self._context),
        )

    def _part(self, numbers: Tensor, split: str) -> Self:
        labels = None if self.labels is None else self.labels[numbers.to(self.labels.device)]
        context = tuple(subset(rows, numbers) for rows in self._context)
        return dataclasses.replace(
            self,
            values=subset(self._rows, numbers),
            labels=labels,
            split=split,
            context=context,
            identifiers={name: known[numbers] for name, known in self.identifiers.items()},
        )

    def _select(self, entry: Entry) -> Batch:
        return tuple(part for rows in self._all_rows for part in rows.select(entry))

    def _drawn(self, rows: Batch, generator: torch.Generator) -> Batch:
        x, *context = rows
        x = drawn(x, generator) if self.binarization == "dynamic" else self._feed(x)
        return (x.to(self.x_dtype), *context)

    def _scored_batch(self, index: Index, read: Callable[[], Batch]) -> Batch:
        x, *context = read()
        others = (part for rows in self._context for part in rows.take(index))
        return (self._scored(x, index), *context, *others)

    def _scored(self, x: Tensor, index: Index) -> Tensor:
        """Return the rows at an index as they are scored."""
        if self.binarization == "dynamic":
            return self._rows.binarize(x, index, self.seed).to(self.x_dtype)
        return self._feed(x).to(self.x_dtype)

    def _feed(self, x: Tensor) -> Tensor:
        if self.binarization == "threshold":
            return threshold(x)
        return x.float() / 255 if x.dtype == torch.uint8 else x
