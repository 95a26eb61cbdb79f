"""The time that checkpoints take: runs at the default size with and without them, interleaved.

python benchmarks/checkpoint_cost.py
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from typer import Option

import pyro_vae as pv
from pyro_vae.training import run_state


def cost_of_checkpoints(rounds: int, scratch: Path) -> tuple[float, float]:
    """Return the seconds of an epoch at the default size without checkpoints, and with one.

    Compiled runs are interleaved. The medians exclude the first epoch of each run.
    """
    torch.manual_seed(0)
    values = torch.randint(0, 256, (55_000, 1, 28, 28), dtype=torch.uint8)
    x = pv.data.Dataset(values, binarization="dynamic")
    ends: list[float] = []
    real = run_state.RunState.start_epoch

    def start_epoch(self: Any) -> None:
        ends.append(time.perf_counter())
        real(self)

    run_state.RunState.start_epoch = start_epoch  # type: ignore[method-assign]
    epochs: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * rounds):
        kept = bool(number % 2)
        vae = pv.VAE(
            pv.priors.StandardNormal(20),
            pv.likelihoods.Bernoulli(pv.networks.MLP(20, [500], (1, 28, 28))),
            pv.guides.DiagonalNormal(pv.networks.MLP((1, 28, 28), [500], 40)),
        )
        out = scratch / f"cost-{number}" if kept else None
        ends.clear()
        pv.fit(vae, x, epochs=7, out=out, compile=True, progress=False)
        epochs[kept] += np.diff(ends[1:]).tolist()
    run_state.RunState.start_epoch = real  # type: ignore[method-assign]
    without, with_one = (float(np.median(epochs[kept])) for kept in (False, True))
    return without, with_one


def main(
    rounds: Annotated[
        int, Option(help="Timed runs of 7 epochs, each with and without checkpoints")
    ] = 3,
) -> None:
    """Print the seconds of an epoch without checkpoints, and with one."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        without, with_one = cost_of_checkpoints(rounds, Path(name))
    cost = with_one - without
    print(
        f"784-500-20, batch 128, compiled: an epoch takes {without:.3f} s without a checkpoint and "
        f"{with_one:.3f} s with one ({cost / without:+.1%}); one a minute costs {cost / 60:.2%}"
    )


if __name__ == "__main__":
    typer.run(main)
