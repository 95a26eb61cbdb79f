"""Read batches in a background thread while earlier ones are used."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

AHEAD_BYTES = 2**24  # of batches that wait for the step: a pause of the disk does not stop it
ALIGNMENT = 64  # bytes, of the memory of a tensor

Rows = tuple[Tensor, ...]


class DataError(ValueError):
    """Data that cannot be had or are not what they should be; the message says what to do."""


def room(start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return memory for rows that is aligned as in a tensor with `start` rows before them.

    How a matrix product rounds depends on the alignment: so all containers give the same scores.
    """
    period = ALIGNMENT // math.gcd(ALIGNMENT, math.prod(shape[1:]) * dtype.itemsize)
    before = start % period
    return torch.empty((before + shape[0], *shape[1:]), dtype=dtype)[before:]


def shuffled(
    num_data: int, generator: torch.Generator, batch_size: int, skip: int
) -> Iterator[Tensor]:
    """Return the indices of batches of all data in random order, without the first `skip`."""
    order = torch.randperm(num_data, generator=generator, device=generator.device)
    return iter(order.split(batch_size)[skip:])


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def ahead(order: Iterator[Tensor], read: Callable[[Tensor], Rows]) -> Iterator[Rows]:
    """Yield what `read` makes of each index, read by a thread while earlier ones are used."""
    waiting: deque[Future[Rows]] = deque()
    depth = 1
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pyro_vae")
    try:
        for index in order:
            waiting.append(executor.submit(read, index))
            if len(waiting) > depth:
                rows = waiting.popleft().result()
                depth = max(1, AHEAD_BYTES // sum(part.nbytes for part in rows))
                yield rows
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
