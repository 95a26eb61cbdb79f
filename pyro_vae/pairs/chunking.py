"""The loop over chunks of data that scores, diagnostics and validation share."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from pyro_vae.data.dataset import Chunk
from pyro_vae.distributed import distribute, is_first
from pyro_vae.pairs.allocations import MORE, bytes_per_datum
from pyro_vae.pairs.pair import PairError
from pyro_vae.runtime.random_state import random_state, seed_chunk, set_random_state

CPU = torch.device("cpu")
# Elements of the largest array of a chunk: 4 MB of float32. The decoder's output and its log
# density then stay near the processor's cache. The C allocator returns larger arrays to the system
# when they are freed, and page faults for the next ones take half of the time.
CHUNK_ELEMENTS = 2**20
# Samples of one datum that are evaluated together: enough to amortize the cost of the encoder.
CHUNK_DRAWS = 128
# Bytes that the tensors of a chunk may take, and twice as many with gradients. Usual programs take
# less in chunks of CHUNK_ELEMENTS. A prior of many components or a flow multiplies the elements.
CHUNK_BYTES = 2**27
# Part of CHUNK_BYTES on a CPU for programs that need smaller chunks. Their tensors have many sizes,
# and the allocator of the C library keeps up to four times the memory that is in use.
REDUCED = 1 / 4
# A GPU starts a small operation no faster than a large one, and its allocator keeps freed memory.
GPU_FACTOR = 2**6

B = TypeVar("B")
R = TypeVar("R")
# A function of a chunk and of the number of samples of a datum to evaluate together. It returns
# arrays with one row for each datum of the chunk.
Score = Callable[[tuple[Tensor, ...], int], dict[str, Tensor]]


class MemoryWarning(UserWarning):
    """Memory ran out; smaller chunks are used.

    Example:
        >>> import warnings
        >>> import torch
        >>> import pyro_vae as pv
        >>> vae = pv.suggest(pv.data.as_dataset(torch.rand(40, 3)), show=False)
        >>> with warnings.catch_warnings():  # raise an error, to find a size that fits
        ...     warnings.simplefilter("error", pv.MemoryWarning)
        ...     scores = pv.evaluate(vae, torch.rand(40, 3), num_samples=10)

    See also: `pyro_vae.evaluate`.
    """


class Chunked(Protocol):
    """Data that can be read in chunks, such as a `Dataset`."""

    def __len__(self) -> int: ...

    def chunks(self, rows: int, least: int = 1) -> Iterator[Chunk]:
        """Yield all data in order as chunks of `rows` rows, the last of at least `least` rows."""


def draws_per_chunk(num_samples: int, device: torch.device = CPU) -> int:
    """Return the number of samples of a datum to evaluate together on a device."""
    return min(num_samples, CHUNK_DRAWS * (GPU_FACTOR if device.type == "cuda" else 1))


def data_per_chunk(event_shape: Iterable[int], num_samples: int, device: torch.device = CPU) -> int:
    """Return the number of data of this shape to evaluate together, with all their samples."""
    elements = CHUNK_ELEMENTS * (GPU_FACTOR if device.type == "cuda" else 1)
    rows = max(1, elements // max(1, math.prod(event_shape)))
    return max(1, rows // draws_per_chunk(num_samples, device))


def data_that_fit(work: Callable[[int], object], device: torch.device = CPU) -> float:
    """Return the number of data that a chunk may have, measured on a few data; may be below one.

    Args:
        work: Computes what a chunk computes, on the given number of data.
        device: Device of the data.
    """
    limit = CHUNK_BYTES * (GPU_FACTOR if device.type == "cuda" else 1)
    try:
        return limit / max(1.0, bytes_per_datum(work))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return math.inf  # `in_parts` finds a size that fits


def fitting(
    rows: int,
    draws: int,
    work: Callable[[tuple[Tensor, ...], int], object],
    batch: tuple[Tensor, ...],
    *,
    gradients: bool = False,
) -> tuple[int, int]:
    """Return the numbers of data and samples of a chunk, smaller ones if memory demands it.

    Args:
        rows: Number of data in a chunk.
        draws: Number of samples of a datum to evaluate together.
        work: Computes what a chunk computes, for some data and a number of samples.
        batch: The first data. With less than four, the chunk is not changed.
        gradients: Whether the work keeps tensors for gradients.
    """
    if len(batch[0]) < MORE:
        return rows, draws
    device = batch[0].device
    most = data_that_fit(lambda count: work(tuple(x[:count] for x in batch), draws), device)
    most *= 2 if gradients else 1
    if most < rows and device.type == "cpu":
        most *= REDUCED
    return int(min(rows, max(1.0, most))), max(1, int(draws * min(1.0, most)))


def over_chunks(
    chunks: Iterable[tuple[int, Callable[[], B]]], work: Callable[[int, B], R], *, seed: int
) -> Iterator[R]:
    """Read each chunk, seed the random state by its position, and yield the result of `work`.

    Several processes share the chunks; each yields all results in order, and they do not depend on
    the number of processes. Call it in `preserved_state`.

    Args:
        chunks: Position of each chunk and a function that reads it.
        work: Function of the position and the chunk.
        seed: Random seed.
    """

    def one(chunk: tuple[int, Callable[[], B]]) -> R:
        place, read = chunk
        batch = read()
        seed_chunk(seed, place)
        return work(place, batch)

    return distribute(chunks, one)


def map_chunks(
    data: Chunked,
    score: Score,
    *,
    rows: int,
    seed: int,
    draws: int = 1,
    least: int = 1,
    description: str = "",
    progress: bool | None = False,
) -> dict[str, Tensor]:
    """Score data chunk by chunk and concatenate the results on the CPU.

    The chunks are seeded and shared over processes as in `over_chunks`. If memory runs out, the
    number of data in a chunk is halved, and then the number of samples.

    Args:
        data: Data to score.
        score: Function of a chunk and of the number of samples to evaluate together.
        rows: Number of data in a chunk.
        seed: Random seed.
        draws: Number of samples of a datum that `score` evaluates together.
        least: Minimum number of data in a chunk.
        description: Label of the progress bar.
        progress: Whether to show a progress bar; None shows it if standard error is a terminal.

    Raises:
        MemoryError: If there is not enough memory for the smallest chunk.
        PairError: If a score does not have one value for each datum.

    Warns:
        MemoryWarning: If memory runs out. Smaller chunks are used and the Monte Carlo noise
            differs.
    """
    size = ChunkSize(rows, least, draws)

    def work(place: int, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        def scored(part: slice, draws: int) -> dict[str, Tensor]:
            if part.start:  # the first part has the seed of the chunk
                seed_chunk(seed, place + part.start)
            found = score(tuple(rows[part] for rows in batch), draws)
            _check_rows(found, part.stop - part.start)
            report(place + part.stop)
            return {name: values.cpu() for name, values in found.items()}

        return _joined(list(in_parts(len(batch[0]), size, scored)))

    with progress_bar(description, len(data), progress) as report:
        return _joined(list(over_chunks(data.chunks(rows, least), work, seed=seed)))


def _check_rows(found: dict[str, Tensor], num_data: int) -> None:
    """Raise `PairError` if a score is not that of each datum."""
    for name, values in found.items():
        if len(values) != num_data:
            raise PairError(
                f"{name} has {len(values)} values, expected {num_data}, one per datum: a plate "
                "seems to subsample the data. Remove its subsample_size, or set it to len(x)"
            )


@dataclass
class ChunkSize:
    """Number of data in a chunk, its minimum, and number of samples evaluated together."""

    rows: int
    least: int
    draws: int

    def take(self, remaining: int) -> int:
        """Return the number of rows of the next chunk; a short rest joins the last chunk."""
        return self.rows if remaining - self.rows >= self.least else remaining

    def halve(self, error: BaseException) -> None:
        """Halve the number of data or, if it is minimal, the number of samples."""
        if self.rows > self.least:
            self.rows = max(self.least, self.rows // 2)
        elif self.draws > 1:
            self.draws //= 2
        else:
            raise MemoryError(
                f"not enough memory for a chunk of {self.rows} data and {self.draws} samples. Use "
                "a smaller network or free memory"
            ) from error
        warnings.warn(
            f"memory ran out: continuing with chunks of {self.rows} data and {self.draws} samples. "
            "The Monte Carlo noise differs from that of larger chunks",
            MemoryWarning,
            stacklevel=2,
        )


def in_parts(num_data: int, size: ChunkSize, work: Callable[[slice, int], R]) -> Iterator[R]:
    """Apply `work` to consecutive parts of a chunk, and yield the results.

    If memory runs out, `size` is halved and the part is repeated from the same random state.

    Args:
        num_data: Number of rows of the chunk.
        size: Size of the parts. It keeps its value for the next chunk.
        work: Function of the rows of a part and of the number of samples to evaluate together.

    Raises:
        MemoryError: If there is not enough memory for the smallest part.

    Warns:
        MemoryWarning: If memory runs out.
    """
    done = 0
    while True:
        part = slice(done, done + size.take(num_data - done))
        state = random_state()
        try:
            result = work(part, size.draws)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            size.halve(error)
            set_random_state(state)
        else:
            yield result
            done = part.stop
            if done == num_data:
                return


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    # torch has an exception type for the memory of a GPU, and a message for that of the CPU.
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@contextlib.contextmanager
def progress_bar(
    description: str, total: int, show: bool | None
) -> Iterator[Callable[[int], object]]:
    """Show a bar on standard error in the first process; yield a function that moves it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    shown = console.is_terminal if show is None else show
    if not (shown and is_first()):
        yield lambda done: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)
