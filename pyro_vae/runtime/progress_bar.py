"""Progress bars: of a training run, and of files that are read."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def training_bar(
    show: bool | None, total_steps: int, epochs: int
) -> Iterator[Callable[[int, int, int, float], None]]:
    """Show a progress bar on standard error; yield the function that updates it.

    Args:
        show: Whether to show the bar; by default if standard error is a terminal.
        total_steps: Number of steps of the run.
        epochs: Number of epochs of the run.
    """
    from rich.console import Console
    from rich.logging import RichHandler
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.fields[rate]:,.0f} data/s"),
        TimeRemainingColumn(),
        TextColumn("ELBO {task.fields[elbo]:.2f} nats per datum"),
        console=console,
        transient=True,
        disable=not (console.is_terminal if show is None else show),
        refresh_per_second=4,
    )
    task = bar.add_task("", total=total_steps, epoch="", rate=0.0, elbo=math.nan)
    started, seen = time.perf_counter(), 0
    # Log messages, for example about compilation, are printed above the bar.
    log, handler = logging.getLogger("pyro_vae"), RichHandler(
        console=console, show_time=False, show_level=False, show_path=False
    )  # fmt: skip
    level = log.level

    def report(step: int, num_data: int, epoch: int, elbo: float) -> None:
        nonlocal seen
        seen += num_data
        rate = seen / (time.perf_counter() - started)
        bar.update(task, completed=step, epoch=f"{epoch}/{epochs}", rate=rate, elbo=elbo)

    with bar:
        if not bar.disable:
            log.addHandler(handler)
            log.setLevel(logging.INFO)
        try:
            yield (lambda *numbers: None) if bar.disable else report
        finally:
            log.removeHandler(handler)
            log.setLevel(level)


@contextlib.contextmanager
def reading_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error if it is a terminal; yield the function to advance it.

    Args:
        text: Description of the work.
        total: Number of data to read.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining()
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(text, total=total)
    with bar:
        yield lambda count: bar.advance(task, count)
