"""Measure the speed of several processes and the cost of averaging gradients.

    python benchmarks/scaling.py                two processes against one, on this machine
    python benchmarks/scaling.py --processes 4

The step of `examples/mnist_svi.py` (784-500-20, tanh, eager and compiled) at several batch sizes:
in one process with one thread, in one process with as many threads as processes, and in that many
processes with one thread each. They are interleaved, and medians are shown. The averaging of
gradients is also timed separately.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyro
import torch
import typer
from rich.console import Console
from rich.table import Table
from typer import Option

import pyro_vae as pv

HIDDEN, LATENT_DIM = 500, 20


def work(batch_size: int, compiled: bool, num_steps: int, out: Path) -> None:
    """Time blocks of steps, and of averages alone, in the process group of any size."""
    torch.manual_seed(0)
    data = pv.data.Dataset(
        torch.randint(0, 256, (20_000, 784), dtype=torch.uint8), binarization="dynamic"
    )
    vae = pv.VAE(
        pv.priors.StandardNormal(LATENT_DIM),
        pv.likelihoods.Bernoulli(pv.networks.MLP(LATENT_DIM, [HIDDEN], (784,))),
        pv.guides.DiagonalNormal(pv.networks.MLP((784,), [HIDDEN], 2 * LATENT_DIM)),
    )
    programs = (pv.objectives.per_datum(program, len(data)) for program in (vae.model, vae.guide))
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    svi = pv.SVI(*programs, optimizer, compile=compiled)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        index = torch.randint(len(data), (batch_size,), generator=generator)
        batch, share = pv.distributed.own_rows(data.draw_batch(index, generator))
        svi.step_of(batch, {}, share if pv.distributed.world_size() > 1 else None)

    def average() -> None:
        for parameter in vae.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pv.distributed.average((0.0,), list(vae.parameters()), 0.5)

    found = {"parameters": sum(parameter.numel() for parameter in vae.parameters())}
    with pyro.validation_enabled(False):
        for name, task in {"step": step, "average": average}.items():
            if name == "average" and pv.distributed.world_size() == 1:
                continue
            for _ in range(20):
                task()
            started = time.perf_counter()
            for _ in range(num_steps):
                task()
            found[name] = (time.perf_counter() - started) / num_steps
    if pv.distributed.is_first():
        out.write_text(json.dumps(found))


def launch(processes: int, threads: int, *arguments: str) -> dict[str, float]:
    """Run `work` in that many processes; return the result of the first."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        subprocess.run(
            [*start, __file__, *arguments, "--worker", str(out)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        return json.loads(out.read_text())


def main(
    processes: Annotated[int, Option(help="Number of processes, with one thread each")] = 2,
    rounds: int = 5,
    num_steps: Annotated[int, Option(help="Steps of a block")] = 100,
    batch_sizes: Annotated[str, Option(help="Batch sizes, separated by commas")] = "128,512,2048",
    out: Path = Path("runs/scaling"),
    compiled: bool = False,
    worker: Annotated[Path | None, Option(hidden=True)] = None,
) -> None:
    """Print the table and write it to --out."""
    sizes = [int(size) for size in batch_sizes.split(",")]
    if worker is not None:
        work(sizes[0], compiled, num_steps, worker)
        return
    layouts = [(1, 1), (1, processes), (processes, 1)]
    table = Table(
        "batch", "step", "processes", "threads", "ms a step", "images/s", "ms averaging",
        caption=f"medians of {rounds} blocks of {num_steps} steps, torch {torch.__version__}",
    )  # fmt: skip
    results = []
    for size in sizes:
        for kind in (False, True):
            options = ["--batch-sizes", str(size), "--num-steps", str(num_steps)]
            options += ["--compiled"] if kind else []
            found = [[launch(*layout, *options) for layout in layouts] for _ in range(rounds)]
            for layout, runs in zip(layouts, zip(*found, strict=True), strict=True):
                step = float(np.median([run["step"] for run in runs]))
                average = float(np.median([run.get("average", 0.0) for run in runs]))
                engine = "compiled" if kind else "eager"
                results.append([size, engine, *layout, step, average])
                cells = [f"{step * 1e3:.2f}", f"{size / step:,.0f}", f"{average * 1e3:.2f}"]
                table.add_row(str(size), engine, *map(str, layout), *cells)
                parameters = runs[0]["parameters"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps({"parameters": parameters, "steps": results}))
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
