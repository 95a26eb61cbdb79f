"""Cut a stream of batches into chunks of a given number of rows."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def recut(
    batches: Iterable[tuple[Tensor, ...]], rows: int, least: int
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Cut batches of any sizes into chunks of `rows` rows; yield each with its first row's place.

    Fewer than `least` rows at the end join the chunk before them. Memory holds a chunk and a batch.
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


def taken(batches: Iterable[tuple[Tensor, ...]], places: range) -> tuple[Tensor, ...]:
    """Return the rows at some places, which ascend, out of batches; ask for no later batch."""
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


def _joined(batches: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
