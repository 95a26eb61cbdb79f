"""Cut a stream of batches into chunks of a given number of rows."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pyro_vae.data.rows import Batch

ALIGNMENT = 64  # bytes, of the memory of a tensor


def spans(num_data: int, rows: int, least: int) -> Iterator[slice]:
    """Yield slices of `rows` rows; fewer than `least` at the end join the slice before them."""
    start = 0
    while start < num_data:
        stop = start + rows if num_data - start >= rows + least else num_data
        yield slice(start, stop)
        start = stop


def evenly_spaced(num_data: int, count: int) -> slice:
    """Return `count` positions at even distances, or all of fewer data."""
    step = max(1, num_data // count)
    return slice(0, step * count, step)


def recut(batches: Iterable[Batch], rows: int, least: int) -> Iterator[tuple[int, Batch]]:
    """Cut batches of any sizes into the chunks of `spans`; yield each with its first row's number.

    Memory holds one chunk and one batch.
    """
    start, held, count = 0, [], 0
    for batch in batches:
        held.append(batch)
        count += len(batch[0])
        if count < rows + least:
            continue
        joined = _joined(held)
        cut = 0
        while count - cut >= rows + least:
            yield start + cut, tuple(part[cut : cut + rows] for part in joined)
            cut += rows
        held = [tuple(part[cut:] for part in joined)]
        start, count = start + cut, count - cut
    if count:
        yield start, _joined(held)


def rows_at(batches: Iterable[Batch], places: range) -> Batch:
    """Return the rows at ascending places out of batches; read no batch after the last place."""
    begin, found = 0, []
    for batch in batches:
        skipped = len(range(places.start, begin, places.step))
        first = places.start + skipped * places.step - begin
        last = max(0, places.stop - begin)
        found.append(tuple(part[first : last : places.step] for part in batch))
        begin += len(batch[0])
        if begin >= places.stop:
            break
    return _joined(found)


def empty_rows(start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return uninitialized rows on the CPU, aligned as the rows from `start` on of a larger tensor.

    The rounding of matrix products depends on the alignment. With equal alignment, all containers
    give equal scores.
    """
    period = ALIGNMENT // math.gcd(ALIGNMENT, math.prod(shape[1:]) * dtype.itemsize)
    before = start % period
    return torch.empty((before + shape[0], *shape[1:]), dtype=dtype)[before:]


def _joined(batches: list[Batch]) -> Batch:
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
