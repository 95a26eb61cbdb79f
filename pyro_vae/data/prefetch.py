"""Read batches in a background thread while earlier batches are used."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from pyro_vae.data.rows import Batch

AHEAD_BYTES = 2**24  # size of the queue of batches, so that short pauses of the disk do not matter


def read_ahead(order: Iterator[Tensor], read: Callable[[Tensor], Batch]) -> Iterator[Batch]:
    """Yield `read(index)` for each index. A thread reads while earlier batches are used."""
    waiting: deque[Future[Batch]] = deque()
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
