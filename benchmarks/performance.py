"""Measure steps, scaling, epochs, evaluation, memory and compile time, all in one run.

    python benchmarks/performance.py                      everything, about ten minutes on two cores
    python benchmarks/performance.py --only "epochs,rows" some sections; earlier results are kept
    python benchmarks/performance.py --numpyro-python PATH --pythae-python PATH
                                                          other libraries too, each in its venv

Engines are interleaved in one run; compare ratios of medians. performance.json has measurements,
the machine, the versions and the number of rounds. performance.md has tables, and performance.png
has plots.
"""

import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
import typer
from rich.console import Console
from step import HAND, OURS, Size, hand_written, interleaved, machine, measure, ours, repeat, stock
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor
from typer import Option

import pyro_vae as pv

Result = dict[str, dict[str, float]]
STEPS = ["784-400-20:128", "784-500-20:100", "784-200-10:20", "784-200-200-50:512", "conv-20:128"]
BASE = Size("784-400-20:128")


def steps(rounds: int) -> dict[str, Result]:
    """Time a step of every engine at every size, in microseconds; large sizes in shorter blocks."""
    blocks = {size: 30 if size.startswith("784") and "512" not in size else 5 for size in STEPS}
    return {size: measure(Size(size), rounds, blocks[size]) for size in STEPS}


def profile(rounds: int) -> dict[str, Result]:
    """Profile a compiled step with torch's profiler, in microseconds; it adds some overhead."""
    results: dict[str, Result] = {}
    for size in (BASE, Size("784-200-10:20")):
        x, count = size.data(), 60 * rounds
        with torch._inductor.config.patch({"cpp.enable_kernel_profile": True}):
            step = ours(size.vae())
            repeat(step, x, 110)  # past the steps that are compared with Pyro
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            started = time.perf_counter()
            repeat(step, x, count)
            total = (time.perf_counter() - started) / count * 1e6
        events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
        parts = {
            f"{e.key[:40]} {e.key[40:][-8:]}": {"median": e.self_cpu_time_total / count}
            for e in events[:12]
        }
        rest = total - sum(part["median"] for part in parts.values())
        results[size.name] = parts | {"the rest": {"median": rest}, "total": {"median": total}}
    return results


def growth(rounds: int) -> dict[str, Result]:
    """Time compiled and hand-written steps for growing batches, particles and latents."""
    results: dict[str, Result] = {}
    for what, names in {
        "batch": [f"784-400-20:{batch}" for batch in (16, 128, 1024)],
        "latents": [f"784-400-{latents}:128" for latents in (2, 20, 200)],
    }.items():
        blocks = {}
        for size in map(Size, names):
            for engine, step in {HAND: hand_written(size), OURS: ours(size.vae())}.items():
                repeat(step, size.data(), 5)
                blocks[f"{size.name}, {engine}"] = functools.partial(repeat, step, size.data(), 10)
        results[what] = interleaved(blocks, rounds, 10)
    blocks = {}
    for particles in (1, 8):
        step = ours(BASE.vae(), particles=particles)
        repeat(step, BASE.data(), 5)
        blocks[f"K = {particles}"] = functools.partial(repeat, step, BASE.data(), 5)
    results["particles"] = interleaved(blocks, rounds, 5)
    return results


def rows(rounds: int) -> dict[str, Result]:
    """Time a step on data streamed from files of 1e4 to 1e7 images, and measure the added memory.

    The files are sparse and take no disk space: this measures the cost of the package, not of a
    disk.
    """
    vae, generator = BASE.vae(), torch.Generator().manual_seed(0)
    svi = pv.SVI(vae.model, vae.guide, functools.partial(torch.optim.Adam, lr=1e-3, fused=True),
                 compile=True)  # fmt: skip
    with pyro.validation_enabled(False):
        for _ in range(5):
            svi.step(BASE.data())
    blocks: dict[str, Callable[[], None]] = {}
    grown: dict[str, float] = {}

    def forever(data: pv.data.Dataset) -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield from data.batches(data.order(generator, BASE.batch), generator)

    def some(name: str, batches: Iterator[tuple[Tensor, ...]]) -> None:
        before = own_megabytes()
        with pyro.validation_enabled(False):
            for (x,) in itertools.islice(batches, 100):
                svi.step(x)
        grown[name] += own_megabytes() - before

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as opened:
        for count in (10_000, 100_000, 1_000_000, 10_000_000):
            values = np.memmap(f"{folder}/{count}", np.uint8, "w+", shape=(count, 784))
            batches = forever(pv.data.Dataset(values, binarization="dynamic"))
            opened.enter_context(contextlib.closing(batches))
            blocks[f"{count:,}"] = functools.partial(some, f"{count:,}", batches)
            grown[f"{count:,}"] = 0.0
        results = interleaved(blocks, rounds, 100)
    for name, times in results.items():
        times["grown_mb"] = grown[name]
    return {"rows": results}


def own_megabytes() -> float:
    """Return the memory of the process, without pages of files in the system's cache."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


class Digits(torch.utils.data.Dataset[Tensor]):
    """Images as in torchvision's MNIST: one at a time, through PIL."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        """Return one image in [0, 1]."""
        return to_tensor(to_pil_image(self.pixels[index]))


def epochs(rounds: int, peers: dict[str, str]) -> dict[str, Result]:
    """Time epochs of MNIST with dynamic binarization, in seconds."""
    images, _ = pv.data.mnist(binarize="dynamic")
    pixels = images.values
    data = pv.data.Dataset(pixels.flatten(1), binarization="dynamic", name=images.name)
    loader = torch.utils.data.DataLoader(Digits(pixels), batch_size=BASE.batch, shuffle=True)
    step = stock(BASE, "epoch", validate=True)
    seconds: dict[str, list[float]] = {"pv.fit": [], "its steps alone": [], "Pyro's example": []}
    inside: list[float] = []
    real = pv.SVI.step_of

    def timed(self: pv.SVI, *batch: Tensor) -> Any:
        started = time.perf_counter()
        loss = real(self, *batch)
        inside.append(time.perf_counter() - started)
        return loss

    for _ in range(max(1, rounds // 5)):
        inside.clear()
        pv.SVI.step_of = timed  # type: ignore[method-assign]
        try:
            fit = pv.fit(
                BASE.vae(), data, epochs=4, batch_size=BASE.batch, compile=True, progress=False
            )
        finally:
            pv.SVI.step_of = real  # type: ignore[method-assign]
        each = np.split(np.array(inside), 4)
        for entry, of_steps in zip(fit.history[1:], each[1:], strict=True):  # the first compiles
            seconds["pv.fit"].append(entry["seconds"])
            seconds["its steps alone"].append(float(of_steps.sum()))
        started = time.perf_counter()
        for x in loader:
            step(torch.bernoulli(x).flatten(1))
        seconds["Pyro's example"].append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/pixels.npy", data.values.numpy())
        for library, python in peers.items():
            arguments = [
                library,
                f"{folder}/pixels.npy",
                *BASE.hidden,
                BASE.latent_dim,
                BASE.batch,
                3,
            ]
            script = Path(__file__).with_name("peers.py")
            child = run([python, str(script), *map(str, arguments)])
            said = json.loads(child.splitlines()[-1])
            seconds[f"{library} {said['version']}"] = said["seconds"]
    result: Result = {}
    for name, times in seconds.items():
        low, median, high = map(float, np.percentile(times, [25, 50, 75]))
        result[name] = {"median": median, "low": low, "high": high}
        result[name]["ratio"] = median / float(np.median(seconds["Pyro's example"]))
    share = np.divide(seconds["pv.fit"], seconds["its steps alone"])
    result["pv.fit"]["to its steps"] = float(np.median(share))
    return {f"{data.name}, {len(data):,} images": result}


def evaluation(rounds: int) -> dict[str, Result]:
    """Time scores with K = 5000 samples and the decoder's matrix products alone, in seconds."""
    count, draws, chunk = 64, 5000, 2560
    vae, x = BASE.vae(), BASE.data()[:count]
    z, weights = torch.rand(chunk, BASE.latent_dim), torch.rand(BASE.latent_dim, BASE.hidden[0])
    hidden, others = torch.rand(chunk, BASE.hidden[0]), torch.rand(BASE.hidden[0], 784)

    def products() -> None:
        for _ in range(count * draws // chunk):
            z @ weights, hidden @ others

    pv.evaluate(vae, x[:2], num_samples=100)  # imports ArviZ
    blocks = {
        "matrix products alone": products,
        "pv.evaluate": lambda: pv.evaluate(vae, x, num_samples=draws, progress=False),
    }
    result = interleaved(blocks, max(3, rounds // 3), 1_000_000)
    for times in result.values():
        times["ratio"] = times["median"] / result["matrix products alone"]["median"]
    return {f"{count} images, K = {draws}": result}


def memory(rounds: int) -> dict[str, Result]:
    """Measure the peak memory of a process with 300 steps, and with imports only, in MB."""
    programs = {
        "imports alone": "lambda x: None",
        HAND: "hand_written(size)",
        "Pyro's SVI": "stock(size, 'memory', validate=True)",
        "pv.SVI, eager": "ours(size.vae(), compile=False)",
        OURS: "ours(size.vae())",
    }
    return {
        "peak": {name: {"median": child_figures(make)["peak"]} for name, make in programs.items()}
    }


def compiling(rounds: int) -> dict[str, Result]:
    """Time the first three steps in seconds: with an empty cache, and in a second run."""
    results: Result = {}
    for size in (BASE.name, "conv-20:128"):
        with tempfile.TemporaryDirectory() as cache:
            for what in ("cold", "second run"):
                figures = child_figures("ours(size.vae())", size, TORCHINDUCTOR_CACHE_DIR=cache)
                results[f"{size}, {what}"] = {"median": figures["seconds"]}
    return {"first three steps": results}


CHILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
import pyro_vae as pv
from step import Size, hand_written, ours, stock
size = Size(sys.argv[2])
x = size.data()
started = time.perf_counter()
step = eval(sys.argv[3])
for _ in range(3):
    step(x)
seconds = time.perf_counter() - started
for _ in range(297 if size.hidden else 0):
    step(x)
with open("/proc/self/status") as file:  # getrusage would have the parent's peak, too
    peak = next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
print(seconds, peak)
"""


def child_figures(make: str, size: str = BASE.name, **environment: str) -> dict[str, float]:
    """Take steps in a child process; return the first steps' seconds and the peak in MB."""
    folder = str(Path(__file__).parent)
    said = run([sys.executable, "-c", CHILD, folder, size, make], **environment)
    seconds, peak = map(float, said.split())
    return {"seconds": seconds, "peak": peak}


def run(command: list[str], **environment: str) -> str:
    """Run a program and return its output."""
    child = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{child.stderr}")
    return child.stdout


def tables(results: dict[str, Any]) -> str:
    """Return all results as Markdown."""
    lines = [f"{results['machine']}; {results['rounds']} rounds.", ""]
    for section, parts in results["sections"].items():
        for title, result in parts.items():
            columns = list(dict.fromkeys(itertools.chain(*result.values())))
            lines += [f"**{section}: {title}**", "", f"| | {' | '.join(columns)} |"]
            lines.append("|---" * (1 + len(columns)) + "|")
            for name, figures in result.items():
                cells = [f"{figures[c]:.4g}" if c in figures else "" for c in columns]
                lines.append(f"| {name} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Plot medians with their quartiles, a panel for each table."""
    panels = [
        (f"{section}: {title}", result)
        for section, parts in results["sections"].items()
        for title, result in parts.items()
    ]
    count = -(-len(panels) // 3)
    figure, axes = plt.subplots(count, 3, figsize=(16, 2.6 * count), layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, result) in zip(axes.flat, panels, strict=False):
        medians = np.array([figures["median"] for figures in result.values()])
        low = medians - [f.get("low", f["median"]) for f in result.values()]
        high = np.array([f.get("high", f["median"]) for f in result.values()]) - medians
        axis.barh(list(result), medians, xerr=[low, high], color="C0")
        axis.set_title(f"{title} ({UNITS[title.partition(':')[0]]})", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.invert_yaxis()
    figure.savefig(path, dpi=110)


UNITS = {
    "steps": "us a step", "profile": "us a step", "growth": "us a step", "rows": "us a step",
    "epochs": "s", "evaluation": "s", "memory": "MB", "compiling": "s",
}  # fmt: skip


def main(
    only: Annotated[str, Option(help="Sections, separated by commas")] = ",".join(UNITS),
    rounds: Annotated[int, Option(help="Number of interleaved rounds")] = 10,
    numpyro_python: Annotated[str | None, Option(help="An interpreter with NumPyro")] = None,
    pythae_python: Annotated[str | None, Option(help="An interpreter with pythae")] = None,
    out: Annotated[Path, Option(help="Folder for the results")] = Path("runs/performance"),
) -> None:
    """Measure, print the tables, and write them with a picture."""
    peers = {"numpyro": numpyro_python, "pythae": pythae_python}
    chosen = {name: python for name, python in peers.items() if python}
    sections: dict[str, Callable[[int], dict[str, Result]]] = {
        "steps": steps,
        "profile": profile,
        "growth": growth,
        "rows": rows,
        "epochs": functools.partial(epochs, peers=chosen),
        "evaluation": evaluation,
        "memory": memory,
        "compiling": compiling,
    }
    out.mkdir(parents=True, exist_ok=True)
    file = out / "performance.json"
    results = json.loads(file.read_text()) if file.exists() else {"sections": {}}
    results |= {"machine": machine(), "rounds": rounds}
    console = Console()
    for name in only.split(","):
        started = time.perf_counter()
        results["sections"][name] = sections[name](rounds)
        console.print(f"{name}: {time.perf_counter() - started:.0f} s")
        file.write_text(json.dumps(results, indent=1) + "\n")
    text = tables(results)
    (out / "performance.md").write_text(text)
    draw(results, out / "performance.png")
    print(text)


if __name__ == "__main__":
    typer.run(main)
