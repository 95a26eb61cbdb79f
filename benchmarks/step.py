"""Time one training step of each engine, interleaved in one run.

    python benchmarks/step.py                          all sizes, a few minutes
    python benchmarks/step.py --sizes 784-400-20:128   400 hidden units, 20 latents, batch 128

A Bernoulli VAE, by default with one tanh layer in encoder and decoder. Blocks of steps of the
engines are interleaved over several rounds, so that fluctuations of the machine affect all engines
equally. Medians over the rounds are compared as ratios to the hand-written step.
"""

import functools
import itertools
import json
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
import typer
from pyro.infer import Trace_ELBO
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from typer import Option

import pyro_vae as pv

Step = Callable[[Tensor], Any]
SIZES = ["784-400-20:128", "784-500-20:100", "784-200-10:20"]
HAND, OURS = "hand-written, fused Adam", "pv.SVI, compiled"
adam = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)
plain_adam = functools.partial(torch.optim.Adam, lr=1e-3)


@dataclass(frozen=True)
class Size:
    """A pair of networks and a batch: `784-400-20:128`, `784-200-200-50:512`, `conv-20:128`.

    Attributes:
        name: Sizes of the layers and of the minibatch.
        device: Device of the data and the networks.
    """

    name: str
    device: str = "cpu"

    @property
    def batch(self) -> int:
        """Minibatch size."""
        return int(self.name.partition(":")[2])

    @property
    def latent_dim(self) -> int:
        """Number of latents."""
        return int(self.name.partition(":")[0].split("-")[-1])

    @property
    def hidden(self) -> list[int]:
        """Sizes of the hidden layers; empty for convolutions."""
        return [int(size) for size in self.name.partition(":")[0].split("-")[1:-1]]

    def data(self) -> Tensor:
        """Return a minibatch of mostly zero bits."""
        shape = (1, 28, 28) if self.name.startswith("conv") else (784,)
        generator = torch.Generator().manual_seed(0)
        data = (torch.rand(self.batch, *shape, generator=generator) < 0.2).float()
        return data.to(self.device)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Return an encoder to 2 * latent_dim numbers and a decoder."""
        torch.manual_seed(0)
        if self.name.startswith("conv"):
            shape, channels = (1, 28, 28), [16, 32]
            encoder: nn.Module = pv.networks.ConvEncoder(shape, channels, 2 * self.latent_dim)
            decoder: nn.Module = pv.networks.ConvDecoder(self.latent_dim, channels[::-1], shape)
        else:
            encoder = pv.networks.MLP((784,), self.hidden, 2 * self.latent_dim)
            decoder = pv.networks.MLP(self.latent_dim, self.hidden[::-1], (784,))
        return encoder.to(self.device), decoder.to(self.device)

    def vae(self) -> pv.VAE:
        """Build the pair for all Pyro engines."""
        encoder, decoder = self.networks()
        prior = pv.priors.StandardNormal(self.latent_dim)
        likelihood = pv.likelihoods.Bernoulli(decoder)
        return pv.VAE(prior, likelihood, pv.guides.DiagonalNormal(encoder)).to(self.device)


def matrix_products(size: Size) -> Step:
    """Return the matrix products of the step alone: three per layer, two for the first."""
    ends = [784, *size.hidden], [size.latent_dim, *size.hidden[::-1]]
    sizes = [
        *itertools.pairwise([*ends[0], 2 * size.latent_dim]),
        *itertools.pairwise([*ends[1], 784]),
    ]
    new = functools.partial(torch.rand, device=size.device)
    layers = [(new(size.batch, m), new(m, n), new(size.batch, n)) for m, n in sizes]

    def step(_: Tensor) -> None:
        for i, (x, weight, gradient) in enumerate(layers):
            x @ weight, x.T @ gradient
            if i:
                gradient @ weight.T

    return step


def hand_written(
    size: Size,
    *,
    compile: bool = False,
    bf16: bool = False,
    read: bool = True,
    optim: Callable[..., torch.optim.Optimizer] = adam,
) -> Step:
    """Return the step written by hand in PyTorch; it returns a float, or a tensor if not `read`."""
    encoder, decoder = size.networks()
    optimizer = optim([*encoder.parameters(), *decoder.parameters()])

    def loss_of(x: Tensor) -> Tensor:
        with torch.autocast(size.device, torch.bfloat16, enabled=bf16):
            loc, log_scale = encoder(x).float().chunk(2, -1)
            scale = log_scale.exp()
            logits = decoder(loc + scale * torch.randn_like(loc)).float()
        kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * log_scale).sum()
        nll = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (nll + kl) / len(x)

    loss_of = torch.compile(loss_of, dynamic=False) if compile else loss_of

    def step(x: Tensor) -> float | Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_of(x)
        loss.backward()
        optimizer.step()
        return loss.item() if read else loss.detach()

    return step


def stock(size: Size, name: str, *, validate: bool, loss: Any = None) -> Step:
    """Return the step of `pyro.infer.SVI` on programs written as in Pyro's tutorial."""
    encoder, decoder = size.networks()

    def model(x: Tensor) -> None:
        pyro.module(f"{name} decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(len(x), size.latent_dim), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(x.dim() - 1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module(f"{name} encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss or Trace_ELBO())

    def step(x: Tensor) -> Any:
        with pyro.validation_enabled(validate):
            return svi.step(x)

    return step


def ours(
    vae: pv.VAE,
    *,
    compile: bool = True,
    particles: int = 1,
    read: bool = True,
    optim: Callable[..., torch.optim.Optimizer] = adam,
    **settings: Any,
) -> Step:
    """Return the step of `pv.SVI`; it returns a float, or a tensor if not `read`."""
    elbo = Trace_ELBO(particles, vectorize_particles=particles > 1)
    svi = pv.SVI(vae.model, vae.guide, optim, elbo, compile=compile, **settings)
    take = svi.step if read else svi.step_tensor

    def step(x: Tensor) -> Any:
        with pyro.validation_enabled(False):  # as in pv.fit
            return take(x)

    return step


def engines(size: Size) -> dict[str, Step]:
    """Return the step of every engine for networks of this size."""
    pyro.clear_param_store()
    jit = pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True)
    products = {"matrix products alone": matrix_products(size)} if size.hidden else {}
    return products | {
        HAND: hand_written(size),
        "hand-written, Adam": hand_written(size, optim=plain_adam),
        "hand-written, bf16": hand_written(size, bf16=True),
        "hand-written, torch.compile": hand_written(size, compile=True),
        "Pyro's SVI": stock(size, "validated", validate=True),
        "Pyro's SVI, validation off": stock(size, "plain", validate=False),
        "Pyro's SVI, JitTrace_ELBO": stock(size, "jit", validate=False, loss=jit),
        "pv.SVI, eager": ours(size.vae(), compile=False),
        "pv.SVI, eager, Adam": ours(size.vae(), compile=False, optim=plain_adam),
        OURS: ours(size.vae()),
        "pv.SVI, compiled, bf16": ours(size.vae(), precision="bf16"),
    }


def interleaved(
    blocks: dict[str, Callable[[], None]], rounds: int, steps: int = 1
) -> dict[str, dict[str, float]]:
    """Run interleaved blocks; return microseconds per step of each: median and quartiles."""
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(rounds):
        for name, block in blocks.items():
            started = time.perf_counter()
            block()
            times[name].append((time.perf_counter() - started) / steps * 1e6)
    low, median, high = (
        {n: float(np.percentile(t, q)) for n, t in times.items()} for q in (25, 50, 75)
    )
    return {n: {"median": median[n], "low": low[n], "high": high[n]} for n in blocks}


def measure(size: Size, rounds: int, steps: int = 30) -> dict[str, dict[str, float]]:
    """Return microseconds per step of each engine, ratios, and seconds of the first steps."""
    x, blocks, first = size.data(), {}, {}
    for name, step in engines(size).items():
        started = time.perf_counter()
        for _ in range(5):  # Adam's state, compilation, warm-up
            step(x)
        first[name] = time.perf_counter() - started
        blocks[name] = functools.partial(repeat, step, x, steps)
    result = interleaved(blocks, rounds, steps)
    for name, times in result.items():
        times |= {"ratio": times["median"] / result[HAND]["median"], "first": first[name]}
    return result


def repeat(step: Step, x: Tensor, steps: int) -> None:
    """Take `steps` steps."""
    for _ in range(steps):
        step(x)


def machine() -> str:
    """Return the machine and the versions."""
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return (
        f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, Pyro {pyro.__version__}"
    )


def show(console: Console, title: str, result: dict[str, dict[str, float]]) -> None:
    """Print a table of engines."""
    table = Table("engine", "us a step", "quartiles", "ratio", "first 5 steps", title=title)
    for name, t in result.items():
        quartiles, first = f"{t['low']:.0f} to {t['high']:.0f}", f"{t['first']:.1f} s"
        table.add_row(name, f"{t['median']:.0f}", quartiles, f"{t['ratio']:.2f}", first)
    console.print(table)


def known(sizes: list[str]) -> list[str]:
    """Return the sizes, or raise if one is invalid."""
    for size in sizes:
        if not re.fullmatch(r"(784(-[1-9]\d*)+|conv)-[1-9]\d*:[1-9]\d*", size):
            raise typer.BadParameter(
                f"invalid size {size!r}; expected a form such as {SIZES[0]} or conv-20:128"
            )
    return sizes


def main(
    sizes: Annotated[
        list[str], Option(help="784-HIDDEN-LATENTS:BATCH, conv-LATENTS:BATCH", callback=known)
    ] = SIZES,
    rounds: Annotated[int, Option(min=1, help="Blocks of 30 steps for each engine")] = 20,
    out: Annotated[Path, Option(help="Folder for step.json and step.png")] = Path("runs/step"),
) -> None:
    """Time a training step of each engine."""
    console = Console()
    console.print(machine())
    results = {}
    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 3.2), layout="constrained")
    for size, axis in zip(sizes, np.atleast_1d(axes), strict=True):
        result = results[size] = measure(Size(size), rounds)
        show(console, size, result)
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
