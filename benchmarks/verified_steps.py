"""Time compiled steps with and without the comparisons of verified steps.

    python benchmarks/verified_steps.py --sizes 784-400-20:128

Each round has plain compiled steps, a step that compares the bound and a step that compares
everything, so that fluctuations of the machine affect all of them. The processor time of one thread
is measured. The cost is the additional time in one period of the comparisons, relative to the time
of its steps.
"""

import time
from typing import Annotated

import numpy as np
import pyro
import torch
import typer
from rich.console import Console
from rich.table import Table
from step import SIZES, Size, adam, known, machine, repeat
from typer import Option

import pyro_vae as pv
from pyro_vae.engine import verified_steps

BOUNDS, CHECKS = verified_steps.STEPS_BETWEEN_BOUNDS, verified_steps.STEPS_BETWEEN_CHECKS
NEVER, WARM_UP, PLAIN = 10**9, 60, 5


def seconds(svi: pv.SVI, x: torch.Tensor, steps: int = 1) -> float:
    """Return the processor time of a step."""
    started = time.process_time()
    repeat(svi.step, x, steps)
    return (time.process_time() - started) / steps


def measure(size: Size, rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the seconds of plain steps, and of steps that compare the bound and everything."""
    x, vae = size.data(), size.vae()
    svi = pv.SVI(vae.model, vae.guide, adam, compile=True)
    verified_steps.STEPS_BETWEEN_BOUNDS = verified_steps.STEPS_BETWEEN_CHECKS = NEVER
    times = []
    with pyro.validation_enabled(False):  # as in pv.fit
        repeat(svi.step, x, WARM_UP)
        for _ in range(rounds):
            plain = seconds(svi, x, PLAIN)
            verified_steps.STEPS_BETWEEN_BOUNDS = 1
            bound = seconds(svi, x)
            verified_steps.STEPS_BETWEEN_BOUNDS = NEVER
            svi.verify_next_step()
            times.append((plain, bound, seconds(svi, x)))
    assert svi.num_compiled_steps == WARM_UP - 1 + rounds * (PLAIN + 2)
    plain, bound, everything = np.array(times).T
    return plain, bound, everything


def main(
    sizes: Annotated[
        list[str], Option(help="784-HIDDEN-LATENTS:BATCH, conv-LATENTS:BATCH", callback=known)
    ] = SIZES,
    rounds: Annotated[int, Option(min=1, help="Rounds of seven steps")] = 200,
) -> None:
    """Print the cost of verified steps."""
    torch.set_num_threads(1)
    console = Console()
    console.print(machine())
    table = Table(
        "size", "ms a step", "bound, in steps", "everything, in steps", "cost", "quartiles"
    )
    for name in sizes:
        plain, bound, everything = measure(Size(name), rounds)
        step = np.median(plain)
        of_bound, of_all = (bound - plain) / step, (everything - plain) / step
        cost = ((CHECKS // BOUNDS - 1) * of_bound + of_all) / CHECKS
        low, median, high = (f"{100 * c:.1f}%" for c in np.percentile(cost, (25, 50, 75)))
        comparisons = f"{np.median(of_bound):.2f}", f"{np.median(of_all):.2f}"
        table.add_row(name, f"{1e3 * step:.2f}", *comparisons, median, f"{low} to {high}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
