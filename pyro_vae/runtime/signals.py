"""Ctrl-C and SIGTERM as requests to end a run after the current step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from pyro_vae.distributed import world_size


@contextlib.contextmanager
def interruptible(also_sigterm: bool) -> Iterator[Callable[[], int | None]]:
    """Record the first Ctrl-C instead of raising it; a second one raises `KeyboardInterrupt`.

    Args:
        also_sigterm: Whether to record SIGTERM, too.

    Yields:
        A function that returns the number of the recorded signal, or None.
    """
    came: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if world_size() == 1:  # the terminal and torchrun each send the same Ctrl-C
            restore()
        came.append(signum)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def first() -> int | None:
        return came[0] if came else None

    if threading.current_thread() is not threading.main_thread():
        yield first  # only the main thread receives signals
        return
    numbers = [signal.SIGINT, signal.SIGTERM] if also_sigterm else [signal.SIGINT]
    previous = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield first
    finally:
        restore()
