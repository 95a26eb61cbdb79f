"""Time compiled steps with and without the comparisons of verified steps.

    python benchmarks/verified_steps.py --sizes 784-400-20:128

Both trainings share one process. Blocks of 400 steps, the period of the comparisons, are
interleaved, and the ratio of each pair of blocks is computed.
"""

import time
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from step import SIZES, Size, known, machine, ours, repeat
from typer import Option

from pyro_vae.engine import verified_steps

PERIODS = {
    "verified": (verified_steps.STEPS_BETWEEN_BOUNDS, verified_steps.STEPS_BETWEEN_CHECKS),
    "unverified": (10**9, 10**9),
}
WARM_UP = 60  # steps, which include the runs that are always compared


def measure(size: Size, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of processor time of each block."""
    x = size.data()
    steps = {kind: ours(size.vae()) for kind in PERIODS}
    times: dict[str, list[float]] = {kind: [] for kind in PERIODS}
    for round in range(-1, rounds):
        for kind in list(PERIODS)[:: 1 if round % 2 else -1]:
            verified_steps.STEPS_BETWEEN_BOUNDS, verified_steps.STEPS_BETWEEN_CHECKS = PERIODS[kind]
            started = time.process_time()
            repeat(steps[kind], x, WARM_UP if round < 0 else PERIODS["verified"][1])
            if round >= 0:
                times[kind].append(time.process_time() - started)
    return times


def main(
    sizes: Annotated[
        list[str], Option(help="784-HIDDEN-LATENTS:BATCH, conv-LATENTS:BATCH", callback=known)
    ] = SIZES,
    rounds: Annotated[int, Option(min=1, help="Pairs of blocks of 400 steps")] = 20,
) -> None:
    """Print the ratio of verified to unverified steps."""
    console = Console()
    console.print(machine())
    table = Table("size", "ms a step", "verified / unverified", "quartiles")
    for name in sizes:
        times = measure(Size(name), rounds)
        ratios = np.array(times["verified"]) / np.array(times["unverified"])
        low, median, high = np.percentile(ratios, (25, 50, 75))
        step = np.median(times["unverified"]) / PERIODS["verified"][1] * 1e3
        table.add_row(name, f"{step:.2f}", f"{median:.3f}", f"{low:.3f} to {high:.3f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
