"""Check the package on a GPU and time it there, in one run of less than eight minutes.

    python benchmarks/gpu.py                           checks and timings on "cuda"
    python benchmarks/gpu.py --device cpu --quick      the same script on a CPU, small sizes
    python benchmarks/gpu.py --only checks             or "times"

gpu.json has all numbers, the card and the versions; gpu.md has a table of the checks and one of the
timings. An exception in a check is a failed check. Sections that do not fit the time are named.
"""

import functools
import json
import platform
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import typer
from gpu_checks import Check, first_checks, last_checks
from step import HAND, Size, hand_written, interleaved, matrix_products, ours, repeat, stock
from step import machine as cpu_name
from torch import Tensor
from typer import Option

import pyro_vae as pv

Result = dict[str, dict[str, float]]
GOALS = ">= 5 times the hand-written eager step at batch 128; >= 1e6 images a second"


class Run:
    """Results, the deadline, and the files that they are written to.

    Args:
        device: Device of all checks and timings.
        out: Folder for gpu.json and gpu.md.
        seconds: Time after which no further check or timing starts.
        quick: Whether to use small sizes.
    """

    def __init__(self, device: str, out: Path, seconds: float, quick: bool) -> None:
        self.device, self.out, self.quick = device, out, quick
        self._started = time.perf_counter()
        self._seconds = seconds
        self.results: dict[str, Any] = {
            "machine": machine(device), "goals": GOALS, "checks": [], "times": {}, "skipped": [],
        }  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        self.say(self.results["machine"])

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    def say(self, text: str) -> None:
        """Print a line with the elapsed time."""
        print(f"[{self.elapsed:6.1f} s] {text}", flush=True)

    def late(self, name: str) -> bool:
        """Return whether there is no time for a check or timing; note that it was skipped."""
        if self.elapsed < self._seconds:
            return False
        self.results["skipped"].append(name)
        return True

    def check(self, name: str, check: Check) -> None:
        """Run a check; an exception is a failed check."""
        if self.late(name):
            return
        started = time.perf_counter()
        row: dict[str, Any] = {"name": name, "value": None, "limit": None, "passed": False}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                value, limit = check()
                self.synchronize()
                row |= {"value": value, "limit": limit, "passed": bool(value <= limit)}
            except Exception as error:
                row |= {"error": f"{type(error).__name__}: {error}"}
                row["traceback"] = traceback.format_exc()
        row["warnings"] = sorted({str(w.message)[:300] for w in caught})
        row["seconds"] = time.perf_counter() - started
        self.results["checks"].append(row)
        figure = row.get("error") or f"{row['value']:.3g} (at most {row['limit']:.3g})"
        verdict = "passed" if row["passed"] else "FAILED"
        self.say(f"{verdict}: {name}: {figure.splitlines()[0][:200]}")
        if not row["passed"]:
            for text in row["warnings"]:
                self.say(f"    warning: {text}")
        self.write()

    def time(self, name: str, measure: Callable[[], Result]) -> None:
        """Run a timing; an exception is noted in its place."""
        if self.late(name):
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.results["times"][name] = measure()
            except Exception as error:
                self.results["times"][name] = {}
                self.results["checks"].append({
                    "name": f"timing: {name}", "value": None, "limit": None, "passed": False,
                    "error": f"{type(error).__name__}: {error}",
                    "traceback": traceback.format_exc(),
                })  # fmt: skip
                self.say(f"FAILED: {name}: {type(error).__name__}: {str(error)[:300]}")
        for text in sorted({str(w.message)[:200] for w in caught}):
            self.say(f"    warning: {text}")
        for engine, t in self.results["times"][name].items():
            self.say(f"{name}: {engine}: " + ", ".join(f"{k} {v:.4g}" for k, v in t.items()))
        self.write()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def write(self) -> None:
        """Write gpu.json and gpu.md."""
        self.results["seconds"] = self.elapsed
        (self.out / "gpu.json").write_text(json.dumps(self.results, indent=1) + "\n")
        (self.out / "gpu.md").write_text(tables(self.results))

    def interleave(self, steps: dict[str, Callable[[], None]], rounds: int, per: int) -> Result:
        """Time interleaved blocks with the device idle at both ends of each; in microseconds."""

        def block(function: Callable[[], None]) -> None:
            function()
            self.synchronize()

        blocks = {name: functools.partial(block, function) for name, function in steps.items()}
        for function in blocks.values():
            function()
        return interleaved(blocks, rounds, per)


def machine(device: str) -> dict[str, str]:
    """Return the card, the driver and the versions."""
    found = {
        "device": torch.cuda.get_device_name() if device != "cpu" else cpu_name(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda),
        "pyro": str(pyro.__version__),
        "pyro_vae": pv.__version__,
    }
    if device != "cpu":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            said = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            said = "unknown"
        found["driver"] = said.strip()
    return found


# -- timings --------------------------------------------------------------------------------------


def step_times(run: Run, size: Size, rounds: int, steps: int, engines: str = "all") -> Result:
    """Time a training step of each engine, in microseconds."""
    pyro.clear_param_store()
    x = size.data()
    made: dict[str, Callable[[], Callable[[Tensor], Any]]] = {
        HAND: lambda: hand_written(size, read=False),
        "hand-written, torch.compile": lambda: hand_written(size, compile=True, read=False),
        "hand-written, bf16": lambda: hand_written(size, bf16=True, read=False),
        "Pyro's SVI": lambda: stock(size, f"stock {size.name}", validate=True),
        "pv.SVI, eager": lambda: ours(size.vae(), compile=False),
        "pv.SVI, compiled": lambda: ours(size.vae(), read=False),
        "pv.SVI, compiled, loss read": lambda: ours(size.vae()),
        "pv.SVI, compiled, bf16": lambda: ours(size.vae(), read=False, precision="bf16"),
        "matrix products alone": lambda: matrix_products(size),
    }
    few = (HAND, "pv.SVI, compiled", "pv.SVI, compiled, bf16", "matrix products alone")
    blocks: dict[str, Callable[[], None]] = {}
    first: dict[str, float] = {}
    for name, make in made.items():
        if engines == "few" and name not in few:
            continue
        started = time.perf_counter()
        step = make()
        # Past the steps that are compared with Pyro.
        repeat(step, x, 110 if "compiled" in name and not run.quick else 5)
        run.synchronize()
        first[name] = time.perf_counter() - started
        run.say(f"    {size.name}: {name} is ready after {first[name]:.1f} s")
        blocks[name] = functools.partial(repeat, step, x, steps)
    result = run.interleave(blocks, rounds, steps)
    for name, t in result.items():
        t["speedup"] = result[HAND]["median"] / t["median"]
        t["images/s"] = size.batch / t["median"] * 1e6
        t["first steps, s"] = first[name]
    return result


def scoring_times(run: Run) -> Result:
    """Time scores with K = 5000 samples and the decoder's matrix products alone."""
    count, draws, chunk = (4, 500, 100) if run.quick else (64, 5000, 64_000)
    size = Size(f"784-400-20:{count}", run.device)
    vae, x = size.vae(), size.data()
    new = functools.partial(torch.rand, device=run.device)
    z, hidden = new(chunk, 20), new(chunk, 400)
    first, second = new(20, 400), new(400, 784)

    def products() -> None:
        for _ in range(count * draws // chunk):
            z @ first, hidden @ second

    def scores() -> None:
        pv.evaluate(vae, x, num_samples=draws, progress=False)

    result = run.interleave(
        {"matrix products alone": products, "pv.evaluate": scores}, 3, 1
    )  # fmt: skip
    for t in result.values():
        t["ratio"] = t["median"] / result["matrix products alone"]["median"]
        t["images/s"] = count / t["median"] * 1e6
    return result


def epoch_times(run: Run) -> Result:
    """Time epochs of `fit` on images that are on the device already."""
    count, epochs = (2_000, 2) if run.quick else (50_000, 4)
    images = torch.randint(256, (count, 784), dtype=torch.uint8, device=run.device)
    result: Result = {}
    for batch in (128,) if run.quick else (128, 4096):
        for precision in ("fp32",) if run.quick else ("fp32", "bf16"):
            pyro.clear_param_store()
            vae = Size(f"784-400-20:{batch}", run.device).vae()
            data = pv.data.Dataset(images, binarization="dynamic")
            fit = pv.fit(
                vae, data, epochs=epochs, batch_size=batch, compile=True, precision=precision,
                progress=False,
            )  # fmt: skip
            each = [entry["seconds"] for entry in fit.history[1:]]  # the first compiles
            median = sorted(each)[len(each) // 2]
            result[f"batch {batch}, {precision}"] = {
                "median": median * 1e6, "low": min(each) * 1e6, "high": max(each) * 1e6,
                "images/s": count / median,
            }  # fmt: skip
    return result


def refined_times(run: Run) -> Result:
    """Time `pv.refine` with its defaults."""
    size = Size(f"784-400-20:{4 if run.quick else 32}", run.device)
    vae, x = size.vae(), size.data()
    refine: Any = pv.refine  # type: ignore[attr-defined]
    result = run.interleave({"pv.refine": lambda: refine(vae, x)}, 1, 1)
    for t in result.values():
        t["images/s"] = size.batch / t["median"] * 1e6
    return result


def timings(run: Run) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Return the timings, the most important first."""
    rounds, steps = (3, 3) if run.quick else (15, 50)
    sizes = {"784-400-20:128": "all", "784-400-20:4096": "all"}
    if run.quick:
        sizes = {"784-100-10:64": "all"}
    for name, engines in sizes.items():
        size = Size(name, run.device)
        yield (
            f"a step at {name}",
            functools.partial(step_times, run, size, rounds, steps, engines),
        )
    yield "an epoch of fit, images on the device", functools.partial(epoch_times, run)
    yield "scoring with K = 5000", functools.partial(scoring_times, run)
    for batch in () if run.quick else (16_384, 65_536):
        size = Size(f"784-400-20:{batch}", run.device)
        yield (
            f"a step at {size.name}",
            functools.partial(step_times, run, size, 5, 20, "few"),
        )
    yield "refined log p(x)", functools.partial(refined_times, run)


# -- tables ---------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    """Return the results as Markdown: timings, failed checks, then all checks."""
    checks = results["checks"]
    failed = [row for row in checks if not row["passed"]]
    lines = [", ".join(f"{k} {v}" for k, v in results["machine"].items()), ""]
    lines += [f"Goals: {results['goals']}.", ""]
    lines += [f"{len(checks) - len(failed)} of {len(checks)} checks passed, {len(failed)} failed."]
    if results["skipped"]:
        lines.append(f"Skipped for lack of time: {len(results['skipped'])}: "
                     + "; ".join(results["skipped"][:20]))  # fmt: skip
    for title, result in results["times"].items():
        columns = list(dict.fromkeys(key for t in result.values() for key in t))
        names = ["median, us", *columns[1:]] if columns else []
        lines += ["", f"**{title}**", "", f"| | {' | '.join(names)} |"]
        lines.append("|---" * (1 + len(columns)) + "|")
        for name, t in result.items():
            cells = [f"{t[c]:.4g}" if c in t else "" for c in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| check | | value | at most | seconds |", "|---|---|---|---|---|"]
    for row in [*failed, *(row for row in checks if row["passed"])]:
        error = str(row.get("error", "")).splitlines()
        value = error[0][:150] if error else f"{row['value']:.3g}"
        limit = "" if row["limit"] is None else f"{row['limit']:.3g}"
        verdict = "passed" if row["passed"] else "FAILED"
        seconds = f"{row.get('seconds', 0):.1f}"
        lines.append(f"| {row['name']} | {verdict} | {value} | {limit} | {seconds} |")
    return "\n".join(lines) + "\n"


def main(
    device: Annotated[str, Option(help="Device, such as cuda or cpu")] = "cuda",
    quick: Annotated[bool, Option("--quick", help="Small sizes")] = False,
    minutes: Annotated[float, Option(help="Nothing further starts after this time")] = 7.0,
    only: Annotated[str, Option(help="checks, times or both")] = "both",
    match: Annotated[str, Option(help="Only checks and timings with this in their names")] = "",
    out: Annotated[Path, Option(help="Folder for gpu.json and gpu.md")] = Path("runs/gpu"),
) -> None:
    """Check and time the package on a device."""
    run = Run(device, out, 60 * minutes, quick)
    if only != "times":
        for name, check in first_checks(device):
            if match in name:
                run.check(name, check)
    if only != "checks":
        for name, measure in timings(run):
            if match in name:
                run.time(name, measure)
    if only != "times":
        for name, check in last_checks(device):
            if match in name:
                run.check(name, check)
    run.write()
    failed = sum(not row["passed"] for row in run.results["checks"])
    run.say(f"{failed} of {len(run.results['checks'])} checks failed; goals: {GOALS}")
    run.say(f"{len(run.results['skipped'])} skipped; gpu.json and gpu.md are in {out}")


if __name__ == "__main__":
    typer.run(main)
