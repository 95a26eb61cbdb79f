"""Ctrl-C and SIGTERM as a request to end in order."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pyro_vae.distributed import world_size


@contextlib.contextmanager
def interruptible(also_sigterm: bool) -> Iterator[Callable[[], int | None]]:
    """Turn the first Ctrl-C into a request to end in order; a second one interrupts at once.

    Args:
        also_sigterm: treat SIGTERM likewise.

    Yields:
        A function that returns the signal that came, if any.
    """
    came: list[int] = []

    def handle(signum: int, frame: Any) -> None:
        if world_size() == 1:  # one Ctrl-C comes twice, from the terminal and from torchrun
            restore()
        came.append(signum)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def first() -> int | None:
        return came[0] if came else None

    if threading.current_thread() is not threading.main_thread():
        yield first  # signals reach the main thread only
        return
    numbers = [signal.SIGINT, signal.SIGTERM] if also_sigterm else [signal.SIGINT]
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield first
    finally:
        restore()
