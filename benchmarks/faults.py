"""Inject faults into training runs and their files, and count lost runs and steps.

    python benchmarks/faults.py                  all faults, a few minutes; prints two tables
    python benchmarks/faults.py --kills 20       fewer kills

Each fault is injected into a small run that writes a checkpoint after every step. The run is then
resumed. It counts as lost unless its final weights equal those of an undisturbed run. Child
processes are forked: Linux and macOS only.
"""

import functools
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from typer import Option

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store
from pyro_vae.training import run_state

FORK = multiprocessing.get_context("fork")
EPOCHS, DATA, BATCH = 6, 64, 16
STEPS = EPOCHS * DATA // BATCH
taken = FORK.Value("i", 0)  # steps that the child has taken


@dataclass
class Outcome:
    """Result of a fault: number of tries, lost runs and steps, corrupt files."""

    tried: int = 0
    runs_lost: int = 0
    steps_lost: int = 0
    files_corrupt: int = 0


def train(folder: Path, pause: float = 0.0) -> list[torch.Tensor]:
    """Train a small VAE, or continue its run, and return its weights."""
    real = run_state.RunState.count

    def count(self: Any, loss: float, num_data: int) -> None:
        real(self, loss, num_data)
        taken.value = self.progress.step
        time.sleep(pause)

    torch.manual_seed(0)
    x = (torch.rand(DATA, 1, 4, 4) < 0.3).float()
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [8], (1, 4, 4))),
        pv.guides.DiagonalNormal(pv.networks.MLP((1, 4, 4), [8], 4)),
    )
    run_state.RunState.count = count  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pv.fit(
                vae, x, epochs=EPOCHS, batch_size=BATCH, out=folder, resume=True,
                checkpoint_seconds=0.0, progress=False,
            )  # fmt: skip
    finally:
        run_state.RunState.count = real  # type: ignore[method-assign]
    return [parameter.detach() for parameter in vae.parameters()]


def in_child(work: Callable[[], Any], strike: Callable[[Any], None] | None = None) -> None:
    """Run `work` silently in a child process, and apply `strike` to it."""

    def silent() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()

    child = FORK.Process(target=silent)
    child.start()
    if strike is not None:
        strike(child)
    child.join()


def checkpoints(folder: Path) -> list[Path]:
    """Return the existing checkpoints, oldest first."""
    return sorted((folder / "checkpoints").glob("[0-9]*"))


def wholes(folder: Path) -> Iterator[int | None]:
    """Yield the step of each checkpoint, None for a damaged one."""
    for path in checkpoints(folder):
        try:
            yield checkpoint_store.read(path)[1]["progress"]["step"]
        except pv.CheckpointError:
            yield None


def same(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Return whether two lists of weights are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def half_a_run(folder: Path) -> None:
    """Train until a third of the steps are done, and kill the run."""

    def strike(child: Any) -> None:
        while len(checkpoints(folder)) < 2 or taken.value < STEPS // 3:
            time.sleep(0.002)
        child.kill()

    taken.value = 0
    in_child(functools.partial(train, folder, 0.01), strike)


class Faults:
    """The faults: each method injects one and returns the outcome."""

    def __init__(self, kills: int, seed: int, scratch: Path) -> None:
        self.kills, self.draw, self.scratch = kills, random.Random(seed), scratch
        self.whole = train(scratch / "whole")
        self.number = 0

    def folder(self) -> Path:
        """Return a new folder for a run."""
        self.number += 1
        return self.scratch / str(self.number)

    def finish(self, folder: Path, outcome: Outcome) -> None:
        """Resume a run; count it as lost unless it ends as the undisturbed run."""
        try:
            outcome.runs_lost += not same(train(folder), self.whole)
        except (ValueError, OSError, pv.TrainingError):
            outcome.runs_lost += 1

    def killed_at_random(self) -> Outcome:
        """SIGKILL at a random time of training."""
        outcome, folder = Outcome(), self.folder()
        while outcome.tried < self.kills:
            taken.value = 0
            wait = self.draw.uniform(0.0, 0.5)
            in_child(
                functools.partial(train, folder, 0.005),
                lambda child, wait=wait: (child.join(wait), child.kill()),
            )
            outcome.tried += 1
            steps = list(wholes(folder))
            outcome.files_corrupt += steps.count(None)
            kept = max((step for step in steps if step is not None), default=0)
            outcome.steps_lost += max(taken.value - kept, 0)
            if kept == STEPS:
                self.finish(folder, outcome)
                folder = self.folder()
        self.finish(folder, outcome)
        return outcome

    def killed_at_each_stage(self) -> Outcome:
        """SIGKILL before each disk operation, from first to last."""
        outcome, stage, ended = Outcome(), 0, False
        while not ended and outcome.tried < self.kills:
            stage, folder, done = stage + 1, self.folder(), FORK.Value("i", 0)
            in_child(functools.partial(_die_at, stage, folder, done))
            ended = bool(done.value)
            outcome.tried += not ended
            outcome.files_corrupt += list(wholes(folder)).count(None)
            self.finish(folder, outcome)
        return outcome

    def disk_full(self) -> Outcome:
        """A file size limit of a random number of bytes, from a random step on."""
        outcome = Outcome()
        for _ in range(max(self.kills // 10, 1)):
            folder, size = self.folder(), self.draw.randrange(10**4)
            half_a_run(folder)

            def full(folder: Path = folder, size: int = size) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
                train(folder)

            in_child(full)
            outcome.tried += 1
            outcome.files_corrupt += list(wholes(folder)).count(None)
            self.finish(folder, outcome)
        return outcome

    def damaged(self, damage: Callable[[Path], None]) -> Outcome:
        """Damage the newest checkpoint; the run must resume from the previous one."""
        outcome = Outcome()
        half, canary = self.folder(), self.scratch / "canary"
        half_a_run(half)
        for _ in range(max(self.kills // 4, 1)):
            folder = self.folder()
            shutil.copytree(half, folder)
            before = max(step for step in wholes(folder) if step is not None)
            damage(
                checkpoints(folder)[-1]
                / self.draw.choice([checkpoint_store.TENSORS, checkpoint_store.STATE])
            )
            kept = max((step for step in wholes(folder) if step is not None), default=0)
            outcome.tried += 1
            outcome.steps_lost += before - kept
            self.finish(folder, outcome)
        outcome.files_corrupt = int(canary.exists())  # unpickling would have created it
        return outcome

    def flip(self, path: Path) -> None:
        """Flip a random bit of a file."""
        data = bytearray(path.read_bytes())
        data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
        path.write_bytes(bytes(data))

    def truncate(self, path: Path) -> None:
        """Truncate a file at a random byte."""
        os.truncate(path, self.draw.randrange(path.stat().st_size))

    def pickled(self, path: Path) -> None:
        """Replace a file by a pickle that creates another file when it is loaded."""
        path.write_bytes(pickle.dumps(Canary(self.scratch / "canary")))

    def two_runs(self) -> Outcome:
        """Start a second run in the folder of a running one: it is refused, the first continues."""
        outcome, folder = Outcome(), self.folder()

        def strike(child: Any) -> None:
            while not checkpoints(folder):
                time.sleep(0.002)
            for _ in range(5):
                outcome.tried += 1
                try:
                    train(folder)
                    outcome.runs_lost += 1
                except pv.CheckpointError:
                    pass

        in_child(functools.partial(train, folder, 0.05), strike)
        self.finish(folder, outcome)
        return outcome

    def folder_vanishes(self) -> Outcome:
        """Remove the folder at a random step: the run still ends and returns its model."""
        outcome = Outcome()
        for _ in range(max(self.kills // 20, 1)):
            folder, wait = self.folder(), self.draw.uniform(0.0, 0.3)

            def strike(child: Any, folder: Path = folder, wait: float = wait) -> None:
                time.sleep(wait)
                shutil.rmtree(folder, ignore_errors=True)

            in_child(functools.partial(train, folder, 0.02), strike)
            outcome.tried += 1
            loaded = pv.load(folder / "model")
            outcome.runs_lost += not same(list(loaded.parameters()), self.whole)
        return outcome


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def _die_at(stage: int, folder: Path, done: Any) -> None:
    calls = []

    def fatal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(real)
            if len(calls) == stage:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    replaced = [(os, "fsync"), (Path, "rename"), (Path, "open"), (checkpoint_store, "_remove")]
    for owner, name in replaced:
        setattr(owner, name, fatal(getattr(owner, name)))
    train(folder)
    done.value = 1


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
    kills: Annotated[
        int, Option(help="Number of kills at a random time; other faults have fewer tries")
    ] = 200,
    seed: Annotated[int, Option(help="Random seed of times, bytes and sizes")] = 0,
    rounds: Annotated[
        int, Option(help="Timed runs of 7 epochs, each with and without checkpoints")
    ] = 3,
) -> None:
    """Inject every fault and print the losses."""
    console = Console(width=100)
    torch.set_num_threads(1)  # before the first fork
    with tempfile.TemporaryDirectory() as name:
        scratch, started = Path(name), time.perf_counter()
        faults = Faults(kills, seed, scratch)
        table = Table("fault", "times tried", "runs lost", "steps lost", "files corrupt")
        for fault, strike in {
            "SIGKILL at a random time": faults.killed_at_random,
            "SIGKILL at each stage of a checkpoint": faults.killed_at_each_stage,
            "disk full": faults.disk_full,
            "a flipped bit": lambda: faults.damaged(faults.flip),
            "a truncated file": lambda: faults.damaged(faults.truncate),
            "a pickle in place of a file": lambda: faults.damaged(faults.pickled),
            "two runs in one folder": faults.two_runs,
            "the folder vanishes": faults.folder_vanishes,
        }.items():
            outcome = strike()
            counts = (outcome.tried, outcome.runs_lost, outcome.steps_lost, outcome.files_corrupt)
            table.add_row(fault, *map(str, counts))
            console.print(f"{fault}: done at {time.perf_counter() - started:.0f} s")
        console.print(table)
        torch.set_num_threads(os.cpu_count() or 1)
        without, with_one = cost_of_checkpoints(rounds, scratch)
    cost = with_one - without
    console.print(
        f"784-500-20, batch 128, compiled: an epoch takes {without:.3f} s without a checkpoint and "
        f"{with_one:.3f} s with one ({cost / without:+.1%}); one a minute costs {cost / 60:.2%}"
    )


if __name__ == "__main__":
    typer.run(main)
