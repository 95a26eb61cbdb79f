"""What one training step costs, engine by engine, interleaved in one run.

    python benchmarks/step.py                          all sizes, some minutes
    python benchmarks/step.py --sizes 784-400-20:128   400 hidden units, 20 latents, batch 128

A Bernoulli VAE with one tanh layer in encoder and decoder. Each engine takes a block of steps in
turn, round after round, so that the machine's swings fall on all alike; medians over the rounds are
compared as ratios to the hand-written step.
"""

import functools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
import typer
from pyro.infer import Trace_ELBO
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from typer import Option

import pyro_vae as pv

Step = Callable[[Tensor], Any]
SIZES = ["784-400-20:128", "784-500-20:100", "784-200-10:20"]
adam = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)


def make_vae(hidden: int, latent_dim: int) -> pv.VAE:
    """Build the pair that all of Pyro's engines train."""
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(latent_dim),
        pv.likelihoods.Bernoulli(pv.networks.MLP(latent_dim, [hidden], (784,))),
        pv.guides.DiagonalNormal(pv.networks.MLP((784,), [hidden], 2 * latent_dim)),
    )


def matrix_products(hidden: int, latent_dim: int, batch: int) -> Step:
    """The products of the step alone: three a layer, two for the first."""
    sizes = [(784, hidden), (hidden, 2 * latent_dim), (latent_dim, hidden), (hidden, 784)]
    layers = [(torch.rand(batch, m), torch.rand(m, n), torch.rand(batch, n)) for m, n in sizes]

    def step(_: Tensor) -> None:
        for i, (x, weight, gradient) in enumerate(layers):
            x @ weight, x.T @ gradient
            if i:
                gradient @ weight.T

    return step


def hand_written(hidden: int, latent_dim: int, *, compile: bool) -> Step:
    """The step as it is written without a framework."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(784, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent_dim))
    decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, 784))
    optimizer = adam([*encoder.parameters(), *decoder.parameters()])

    def loss_of(x: Tensor) -> Tensor:
        loc, log_scale = encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        logits = decoder(loc + scale * torch.randn_like(loc))
        kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * log_scale).sum()
        nll = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (nll + kl) / len(x)

    loss_of = torch.compile(loss_of, dynamic=False) if compile else loss_of

    def step(x: Tensor) -> float:
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def stock(vae: pv.VAE, *, validate: bool) -> Step:
    """Return the step of `pyro.infer.SVI`, as everyone uses it."""
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())

    def step(x: Tensor) -> Any:
        with pyro.validation_enabled(validate):
            return svi.step(x)

    return step


def ours(vae: pv.VAE, *, compile: bool) -> Step:
    """Return the step of `pv.SVI`."""
    svi = pv.SVI(vae.model, vae.guide, adam, Trace_ELBO(), compile=compile)

    def step(x: Tensor) -> Any:
        with pyro.validation_enabled(False):  # as in pv.fit
            return svi.step(x)

    return step


def engines(hidden: int, latent_dim: int, batch: int) -> dict[str, Step]:
    """Return every engine's step for a network of this size."""
    vae = functools.partial(make_vae, hidden, latent_dim)
    return {
        "matrix products alone": matrix_products(hidden, latent_dim, batch),
        "hand-written, fused Adam": hand_written(hidden, latent_dim, compile=False),
        "hand-written, torch.compile": hand_written(hidden, latent_dim, compile=True),
        "Pyro's SVI": stock(vae(), validate=True),
        "Pyro's SVI, validation off": stock(vae(), validate=False),
        "pv.SVI, eager": ours(vae(), compile=False),
        "pv.SVI, compiled": ours(vae(), compile=True),
    }


def measure(size: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return microseconds a step: median, quartiles, and the first steps' seconds."""
    network, batch = size.split(":")
    _, hidden, latent_dim = map(int, network.split("-"))
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(int(batch), 784, generator=generator) < 0.2).float()
    steps, first = engines(hidden, latent_dim, int(batch)), {}
    for name, step in steps.items():
        started = time.perf_counter()
        for _ in range(5):  # Adam's state, compiling, warming up
            step(x)
        first[name] = time.perf_counter() - started
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(rounds), size, transient=True):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(30):
                step(x)
            times[name].append((time.perf_counter() - started) / 30 * 1e6)
    hand = np.median(times["hand-written, fused Adam"])
    return {
        name: {
            "median": float(np.median(t)),
            "low": float(np.percentile(t, 25)),
            "high": float(np.percentile(t, 75)),
            "ratio": float(np.median(t) / hand),
            "first": first[name],
        }
        for name, t in times.items()
    }


def main(
    sizes: Annotated[list[str], Option(help="784-HIDDEN-LATENTS:BATCH")] = SIZES,
    rounds: Annotated[int, Option(help="Blocks of 30 steps for each engine")] = 20,
    out: Annotated[Path, Option(help="Folder for step.json and step.png")] = Path("runs/step"),
) -> None:
    """Time a training step of each engine."""
    console, results = Console(), {}
    console.print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}"
    )
    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 3.2), layout="constrained")
    for size, axis in zip(sizes, np.atleast_1d(axes), strict=True):
        result = results[size] = measure(size, rounds)
        table = Table("engine", "us a step", "quartiles", "ratio", "first 5 steps", title=size)
        for name, t in result.items():
            quartiles, first = f"{t['low']:.0f} to {t['high']:.0f}", f"{t['first']:.1f} s"
            table.add_row(name, f"{t['median']:.0f}", quartiles, f"{t['ratio']:.2f}", first)
        console.print(table)
        axis.barh(list(result), [t["ratio"] for t in result.values()])
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set(title=size, xlabel="time of the hand-written step")
        axis.invert_yaxis()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "step.png", dpi=120)
    (out / "step.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"step.json and step.png are in {out}")


if __name__ == "__main__":
    typer.run(main)
