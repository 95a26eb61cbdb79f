"""Rows of a torch `DataLoader`, batch by batch."""

import contextlib
import functools
import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import NoReturn

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from pyro_vae.data.binarization import fixed_draw_of_rows
from pyro_vae.data.chunks import empty_rows, recut, rows_at
from pyro_vae.data.errors import DataError
from pyro_vae.data.loader_state import LoaderState, States, seeded
from pyro_vae.data.order import draw_seed
from pyro_vae.data.rows import Batch, Chunk, Index

SAMPLED_ROWS = 10_000  # of tensors that a dataset holds
PROBED_ROWS = 256  # rows that are read twice before a run that writes checkpoints


class LoaderBatches:
    """The batches of a torch `DataLoader`, as `Rows`.

    Workers of the loader prepare batches during training. The order of the batches and the draws of
    dataset, samplers and workers follow from the seed of the run. If the loader has generators,
    their draws follow from their states, which checkpoints contain.

    Args:
        loader: Loader of tensors, or of tuples of tensors: x and its context.
        device: Device of the batches.

    Raises:
        DataError: If the loader has no length, is empty, or yields other objects.
    """

    random_access = False
    reads_ahead = False  # the loader has workers for that

    def __init__(self, loader: DataLoader[object], device: str | torch.device = "cpu") -> None:
        self._loader, self.device = loader, torch.device(device)
        try:
            self._num_batches = len(loader)
            try:
                self._num_data = len(loader.sampler)  # type: ignore[arg-type]
            except TypeError:  # of an IterableDataset
                self._num_data = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(
                "the DataLoader needs a length, got an IterableDataset without one: define __len__"
            ) from error
        self._state = LoaderState(loader)
        self._at_first = self._state.generators()
        self._first = next(self.scoring_pass(), ())
        if not self._first:
            raise DataError("the DataLoader is empty")
        x = self._first[0]
        self.batch_size = loader.batch_size or len(x)
        if loader.drop_last or loader.batch_sampler is None:  # or its items are batches
            self._num_data = self._num_batches * self.batch_size
        self.dtype, self.shape = x.dtype, torch.Size([self._num_data, *x.shape[1:]])

    def __len__(self) -> int:
        return self._num_data

    @property
    def unwrapped(self) -> "LoaderBatches":
        """The batches themselves, without reading them."""
        return self

    def has_infinities(self) -> bool:
        """Return False: batches are checked when they are read."""
        return False

    def training_batch_size(self, requested: int) -> int:
        """Return the batch size of the loader."""
        return self.batch_size

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches of the loader."""
        return self._num_batches

    def to(self, device: str | torch.device) -> "LoaderBatches":
        """Return the loader with its batches on a device."""
        return LoaderBatches(self._loader, device)

    def narrow(self, start: int, length: int) -> NoReturn:
        """Raise `DataError`: a loader has no random access."""
        raise DataError("a DataLoader cannot be split: make a separate loader of validation data")

    def subset(self, numbers: Tensor) -> NoReturn:
        """Raise `DataError`: a loader has no random access."""
        self.narrow(0, len(numbers))

    def select(self, entry: Batch) -> Batch:
        """Return a batch of `order`, as it is."""
        return entry

    def take(self, index: Index) -> Batch:
        """Return rows of the loader's order: of its first batch, or of a pass over the loader."""
        if not isinstance(index, slice):
            chosen = torch.as_tensor(index)
            low, high = int(chosen.min()), int(chosen.max())
            span = self.take(slice(low, high + 1))
            if len(span[0]) <= high - low:
                raise DataError(f"row {high} is out of range: the DataLoader has fewer rows")
            return tuple(part[chosen.to(part.device) - low] for part in span)
        stop = sys.maxsize if index.stop is None else index.stop
        places = range(index.start or 0, stop, index.step or 1)
        if min(places.start, places.stop) < 0 or places.step < 1:
            raise DataError(
                f"an index of a DataLoader must count from its start in ascending order, got "
                f"{index}: read the rows into a tensor first"
            )
        in_first = stop <= len(self._first[0])
        return rows_at([self._first] if in_first else self.scoring_pass(), places)

    def chunks(self, rows: int, least: int) -> Iterator[Chunk]:
        """Yield the rows of one pass as chunks. Their number may differ from the loader's length.

        The chunks have the same rows and the same alignment in memory as those of a tensor.
        """
        for start, batch in recut(self.scoring_pass(), rows, least):
            span = slice(start, start + len(batch[0]))
            yield span, functools.partial(_aligned, start, batch)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all rows in order, in the batches of the loader."""
        return (x for x, *_ in self.scoring_pass())

    def sample(self) -> tuple[Index, Tensor]:
        """Return the first batch."""
        return slice(len(self._first[0])), self._first[0]

    def fingerprint(self) -> Iterable[Tensor]:
        """Return no rows: reading them may take long, and they may be random."""
        return ()

    def binarize(self, pixels: Tensor, index: Index, seed: int) -> Tensor:
        """Return a Bernoulli draw of each row, from the seed and the number of the row."""
        # The number of rows may differ from the loader's length.
        return fixed_draw_of_rows(pixels, range(sys.maxsize), index, seed)

    def scoring_pass(self) -> Iterator[Batch]:
        """Yield the batches of one pass for scoring, until the loader ends.

        The loader draws from separate random states, the same in each pass and process. Its rows
        therefore do not depend on the random state of the scores, and the scores do not depend on
        the draws of the loader.

        Raises:
            DataError: If x is infinite, or if batches differ in the dtypes or shapes of their rows.
        """
        kinds = None
        states = {"global": seeded(0), "generators": self._at_first}
        for batch in self._pass(states, 0):
            found = [(part.dtype, tuple(part.shape[1:])) for part in batch]
            kinds = kinds or found
            if found != kinds:
                raise DataError(
                    f"the DataLoader yields batches of rows {kinds} and of rows {found}: for "
                    "scoring, all rows need the same types and shapes"
                )
            if batch[0].is_floating_point() and torch.isinf(batch[0]).any():
                raise DataError("the DataLoader yields infinite values")
            yield batch

    def order(self, generator: torch.Generator, batch_size: int, skip: int) -> Iterator[Batch]:
        """Return an epoch's batches without the first `skip`, which are read and discarded.

        The seed of the epoch is drawn in this call. Everything that the loader draws follows from
        it and from the states of the loader's generators.
        """
        states = {"global": seeded(draw_seed(generator))}
        # The loader is never read to its end, at which a sampler may draw: a resumed run may begin
        # there.
        return itertools.islice(self._pass(states, self._num_batches), skip, self._num_batches)

    def state(self) -> States:
        """Return the states of the generators of the loader, in their JSON form."""
        return {**self._state.generators(), "numbers": self._state.numbers()}

    def set_state(self, state: States) -> None:
        """Set the generators of the loader to the result of `state`.

        Warns:
            UserWarning: If another number of samplers and dataset differs.
        """
        self._state.set_generators(state)
        if other := self._state.other_numbers(state.get("numbers", {})):
            warnings.warn(
                f"the DataLoader of the resumed run has other numbers: {'; '.join(other[:5])}. If "
                "they change its rows, set them as they were, or the run is not equal bit for bit",
                stacklevel=12,  # the caller of `fit`
            )

    @functools.cached_property
    def _repeated(self) -> list[Batch]:
        """The first rows, from fixed states of the generators; empty if a second pass differs."""
        count = -(-PROBED_ROWS // max(len(self._first[0]), 1))
        generators = self._state.seeded_generators(0)
        states = [{"global": seeded(0), "generators": generators} for _ in range(2)]
        one, two = (list(itertools.islice(self._pass(own, 0), count)) for own in states)
        return one if len(one) == len(two) and all(map(_equal, one, two)) else []

    def content_samples(self) -> Iterator[Tensor]:
        """Yield the first batches, unless they differ when they are read again."""
        return (part for batch in self._repeated for part in batch)

    def held_tensors(self) -> Iterator[Tensor]:
        """Yield evenly spaced rows of the tensors of a `TensorDataset`, without reading others."""
        dataset = self._loader.dataset
        while type(dataset) is Subset:
            yield torch.as_tensor(dataset.indices)
            dataset = dataset.dataset
        if type(dataset) is TensorDataset:
            for tensor in dataset.tensors:
                yield tensor[:: max(1, len(tensor) // SAMPLED_ROWS)]

    def cannot_repeat(self) -> str | None:
        """Read the first rows twice; return a reason if they differ, although no state does."""
        if self._repeated:
            return None
        return (
            "the DataLoader yields other rows when it is read again with the same seed and the "
            "same states of its generators. Draw in the dataset and the samplers from the global "
            "generators of torch, numpy or random, or from a generator that is an attribute; set "
            "persistent_workers=False, and in_order=True; keep no other state between epochs"
        )

    def _pass(self, states: dict[str, States], expected: int) -> Iterator[Batch]:
        """Yield the batches of a pass that draws from these states, and changes no others."""
        batches = self._checked(expected)
        while True:
            with self._state.drawing_from(states):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _checked(self, expected: int) -> Iterator[Batch]:
        """Yield the batches of the loader; raise `DataError` if there are fewer than expected."""
        batches = iter(self._loader)
        for count in itertools.count():
            try:
                batch = next(batches)
            except StopIteration:
                if count < expected:
                    raise DataError(
                        f"the DataLoader ended after {count} batches, expected {expected} by its "
                        "length: correct the __len__ of its dataset"
                    ) from None
                return
            except Exception as error:  # from the code of the dataset, or from a killed worker
                message = f"the DataLoader fails: {type(error).__name__}: {error}"
                cut_off = isinstance(error, ConnectionError | EOFError) and self._loader.num_workers
                if cut_off and "DataLoader worker" not in message:
                    message += " (a DataLoader worker ended before its batch was received)"
                raise DataError(message) from error
            rows = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
            if not rows or not all(isinstance(part, Tensor) for part in rows):
                kinds = [type(part).__name__ for part in rows]
                raise DataError(
                    "a DataLoader must yield tensors, or tuples of tensors (x and the other "
                    f"arguments of model and guide), got {kinds}: select them in its collate_fn"
                )
            yield tuple(part.detach().to(self.device, non_blocking=True) for part in rows)


@contextlib.contextmanager
def worker_errors_as_data_errors() -> Iterator[None]:
    """Raise `DataError` if a worker of a loader dies.

    torch raises an exception from a signal handler, at any line of Python code. If that line is in
    a check or an import, the exception may be wrapped in another one.
    """
    before = sys.exception()  # already handled by the caller
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


def _aligned(start: int, batch: Batch) -> Batch:
    """Return a batch with the alignment that rows from `start` on have in a larger tensor."""
    if batch[0].device.type != "cpu":
        return batch
    return tuple(empty_rows(start, part.shape, part.dtype).copy_(part) for part in batch)


def _equal(one: Batch, two: Batch) -> bool:
    """Return whether two batches are equal bit for bit."""
    return len(one) == len(two) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))
        for a, b in zip(one, two, strict=True)
    )


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)
