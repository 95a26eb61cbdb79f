"""Run programs after Pyro's examples with `pyro.infer.SVI` and with `pv.SVI`, import swapped.

    python benchmarks/pyro_examples.py                 all programs, about 20 minutes on one core
    python benchmarks/pyro_examples.py --match vae     programs with "vae" in their names
    python benchmarks/pyro_examples.py --memory-seconds 3000    10,000 steps of all, hours

Both classes start from one seed. Blocks of steps are interleaved, and the processor time of each
pair of blocks is compared. Losses of all steps are compared, relative to their size. Then `pv.SVI`
takes up to 10,000 steps, and the growth of the process's memory in the last half is printed.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyro
import pyro_networks  # noqa: F401 - adds programs
import pyro_structured  # noqa: F401 - adds programs
import torch
import typer
from pyro_programs import EXAMPLES, Step
from rich.console import Console
from rich.table import Table
from step import machine
from typer import Option

import pyro_vae as pv

SEED = 0
FIRST = 20  # steps before the timing: parameters, optimizer state


class Run:
    """One training, with its parameter store and its random state.

    Args:
        make: Program in `EXAMPLES`.
        kind: Class `SVI`.
    """

    def __init__(self, make: Callable[[Any], Step], kind: Any) -> None:
        self.losses: list[float] = []
        with pyro.get_param_store().scope() as self._store:
            pyro.set_rng_seed(SEED)
            self._step, self._random = make(kind), pyro.util.get_rng_state()

    def take(self, steps: int) -> float:
        """Take steps; return the seconds of processor time."""
        with pyro.get_param_store().scope(self._store):
            pyro.util.set_rng_state(self._random)
            started = time.process_time()
            for _ in range(steps):
                self.losses.append(self._step())
            seconds = time.process_time() - started
            self._random = pyro.util.get_rng_state()
        return seconds


def megabytes() -> float:
    """Return the resident memory of this process (Linux)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def difference(stock: Run, ours: Run) -> float:
    """Return the largest difference of the losses of two runs, relative to their size."""
    a, b = np.array(stock.losses), np.array(ours.losses)
    scale = np.maximum(np.abs(a), 1e-2 * np.abs(a).max())
    return float((np.abs(a - b) / scale).max())


def compare(make: Callable[[Any], Step], seconds: float) -> tuple[int, float, np.ndarray, float]:
    """Train with both classes; return steps, difference of losses, ratios of time, seconds."""
    stock, ours = Run(make, pyro.infer.SVI), Run(make, pv.SVI)
    stock.take(FIRST)
    ours.take(FIRST)
    block = max(5, round(seconds / 40 / stock.take(5) * 5))
    ours.take(5)
    times: list[tuple[float, float]] = []
    for round_ in range(20):
        pair = (stock, ours)[:: 1 if round_ % 2 else -1]
        taken = {run: run.take(block) for run in pair}
        times.append((taken[stock], taken[ours]))
    of_stock, of_ours = np.array(times).T
    return (
        len(ours.losses),
        difference(stock, ours),
        of_ours / of_stock,
        float(np.median(of_stock)) / block,
    )


def growth(make: Callable[[Any], Step], steps: int) -> float:
    """Return the megabytes by which memory grows in the second half of a run of `pv.SVI`."""
    run = Run(make, pv.SVI)
    run.take(steps // 2)
    run.losses.clear()
    before = megabytes()
    run.take(steps // 2)
    run.losses.clear()
    return megabytes() - before


def main(
    match: Annotated[str, Option(help="Part of the name of a program")] = "",
    seconds: Annotated[float, Option(min=0.1, help="Seconds of both trainings together")] = 10.0,
    steps: Annotated[int, Option(min=2, help="Steps for the memory")] = 10_000,
    memory_seconds: Annotated[
        float, Option(min=0.1, help="Time for the memory, which limits its steps")
    ] = 40.0,
) -> None:
    """Compare stock's SVI with `pv.SVI` on Pyro's examples."""
    torch.set_num_threads(1)
    console = Console()
    console.print(machine())
    table = Table("after", "steps", "loss differs by", "time, pv / Pyro", "quartiles", "memory")
    for name, make in EXAMPLES.items():
        if match not in name:
            continue
        count, apart, ratios, step = compare(make, seconds)
        low, median, high = np.percentile(ratios, (25, 50, 75))
        taken = int(min(steps, memory_seconds / step))
        grown = f"{growth(make, taken):+.1f} MB in {taken // 2:,}"
        quartiles = f"{low:.2f} to {high:.2f}"
        table.add_row(name, f"{count:,}", f"{apart:.1e}", f"{median:.2f}", quartiles, grown)
        console.print(name, count, f"{apart:.1e}", f"{median:.2f}", quartiles, grown)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
