"""Inject faults into training runs and their files, and count lost runs and steps.

    python benchmarks/faults.py                  all faults; prints a table
    python benchmarks/faults.py --kills 20 --only power    fewer kills, one fault

Each fault is injected into a small run that writes a checkpoint after every step. The run is then
resumed. It counts as lost unless its final weights equal those of an undisturbed run. Child
processes are forked: Linux and macOS only. Disks of each size are mounted in memory, which needs
the rights to do so.
"""

import contextlib
import functools
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import power_loss
import torch
import typer
from fault_runs import FORK, KINDS, STEPS, start_two_processes, taken, train
from rich.console import Console
from rich.table import Table
from typer import Option

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store


@dataclass
class Outcome:
    """Result of a fault: number of tries, lost runs and steps, corrupt files."""

    tried: int = 0
    runs_lost: int = 0
    steps_lost: int = 0
    files_corrupt: int = 0


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
        self.wholes = {"plain": self.whole}
        self.number = 0

    def folder(self) -> Path:
        """Return a new folder for a run."""
        self.number += 1
        return self.scratch / str(self.number)

    def finish(self, folder: Path, outcome: Outcome, kind: str = "plain") -> None:
        """Resume a run; count it as lost unless it ends as the undisturbed run."""
        if kind not in self.wholes:
            self.wholes[kind] = train(self.scratch / f"whole {kind}", kind=kind)
        try:
            outcome.runs_lost += not same(train(folder, kind=kind), self.wholes[kind])
        except (ValueError, OSError, pv.TrainingError):
            outcome.runs_lost += 1

    def killed_at_random(self, kind: str = "plain", kills: int | None = None) -> Outcome:
        """SIGKILL at a random time of training."""
        outcome, folder = Outcome(), self.folder()

        def strike(child: Any) -> None:
            if self.draw.random() < 0.8:  # after the first step
                while taken.value == 0 and child.is_alive():
                    time.sleep(0.002)
            child.join(self.draw.uniform(0.0, 0.3))
            child.kill()

        while outcome.tried < (self.kills if kills is None else kills):
            taken.value = 0
            in_child(functools.partial(train, folder, 0.005, kind), strike)
            outcome.tried += 1
            kept = self.count_steps(folder, outcome)
            if kept == STEPS:
                self.finish(folder, outcome, kind)
                folder = self.folder()
        self.finish(folder, outcome, kind)
        return outcome

    def count_steps(self, folder: Path, outcome: Outcome) -> int:
        """Count the damaged checkpoints and the lost steps; return the step of the newest one."""
        steps = list(wholes(folder))
        outcome.files_corrupt += steps.count(None)
        kept = max((step for step in steps if step is not None), default=0)
        outcome.steps_lost += max(taken.value - kept, 0)
        return kept

    def two_processes_killed(self) -> Outcome:
        """SIGKILL of both processes of a group, or of one of them, at a random time."""
        outcome, folder, whole = Outcome(), self.folder(), self.folder()
        started = time.perf_counter()
        start_two_processes(whole).wait()
        duration = time.perf_counter() - started
        expected = np.load(f"{whole}.npz")
        for _ in range(max(self.kills // 20, 1)):
            group = start_two_processes(folder)
            with contextlib.suppress(subprocess.TimeoutExpired):
                group.wait(self.draw.uniform(0.3, 1.0) * duration)
            if group.poll() is not None:  # the rest of the run took less time
                continue
            os.killpg(group.pid, signal.SIGKILL)
            group.wait()
            outcome.tried += 1
            outcome.files_corrupt += list(wholes(folder)).count(None)
        start_two_processes(folder).wait()
        found = np.load(f"{folder}.npz") if Path(f"{folder}.npz").exists() else {}
        equal = [name in found and (found[name] == expected[name]).all() for name in expected]
        outcome.runs_lost = int(not all(equal))
        return outcome

    def power_fails(self) -> Outcome:
        """Drop all that was not flushed to the disk, after each operation on files."""
        outcome, folder = Outcome(), self.folder()
        with power_loss.recording(folder) as log:
            train(folder)
        taken.value = 0
        for count in range(0, len(log.entries) + 1, max(1, 200 // self.kills)):
            target = self.folder()
            power_loss.after_power_loss(log, count, target, self.draw)
            outcome.tried += 1
            outcome.files_corrupt += list(wholes(target)).count(None)
            self.finish(target, outcome)
            shutil.rmtree(target)
        return outcome

    def disks_of_each_size(self) -> Outcome:
        """A disk of each size, from 4 KB on: from the start, and from a third of the run on."""
        outcome, half = Outcome(), self.folder()
        half_a_run(half)
        for size in range(4, 4 + 4 * max(self.kills // 5, 1), 4):
            for begun in (False, True):
                disk = self.folder()
                disk.mkdir()
                mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
                if subprocess.run(mount, capture_output=True, check=False).returncode:
                    return outcome  # not permitted
                try:
                    self.on_disk(disk, half if begun else None, outcome)
                finally:
                    subprocess.run(["umount", str(disk)], check=True)
        return outcome

    def on_disk(self, disk: Path, begun: Path | None, outcome: Outcome) -> None:
        """Train on a small disk, then resume elsewhere from what it has."""
        run, free = disk / "run", self.folder()
        if begun is not None:
            try:
                shutil.copytree(begun, run)
            except (OSError, shutil.Error):
                return  # the begun run does not fit
        ended = FORK.Value("i", 0)

        def work() -> None:
            try:
                ended.value = 1 + same(train(run), self.whole)
            except pv.CheckpointError:
                ended.value = 2  # refused before training

        in_child(work)
        outcome.tried += 1
        outcome.runs_lost += ended.value != 2
        outcome.files_corrupt += list(wholes(run)).count(None)
        if run.exists():
            shutil.copytree(run, free)
        self.finish(free, outcome)

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


def main(
    kills: Annotated[
        int, Option(help="Number of kills at a random time; other faults have fewer tries")
    ] = 200,
    seed: Annotated[int, Option(help="Random seed of times, bytes and sizes")] = 0,
    only: Annotated[str, Option(help="Inject the faults with this text in their names")] = "",
) -> None:
    """Inject every fault and print the losses."""
    console = Console(width=100)
    torch.set_num_threads(1)  # before the first fork
    with tempfile.TemporaryDirectory() as name:
        scratch, started = Path(name), time.perf_counter()
        faults = Faults(kills, seed, scratch)
        table = Table("fault", "times tried", "runs lost", "steps lost", "files corrupt")
        for fault, strike in {
            **{
                f"SIGKILL at a random time, {kind}": functools.partial(
                    faults.killed_at_random,
                    kind,
                    max(1, kills // (50 if kind == "compiled" else 5)),
                )
                for kind in KINDS
            },
            "SIGKILL of two processes": faults.two_processes_killed,
            "power loss": faults.power_fails,
            "disks of each size": faults.disks_of_each_size,
            "SIGKILL at each stage of a checkpoint": faults.killed_at_each_stage,
            "disk full": faults.disk_full,
            "a flipped bit": lambda: faults.damaged(faults.flip),
            "a truncated file": lambda: faults.damaged(faults.truncate),
            "a pickle in place of a file": lambda: faults.damaged(faults.pickled),
            "two runs in one folder": faults.two_runs,
            "the folder vanishes": faults.folder_vanishes,
        }.items():
            if only not in fault:
                continue
            outcome = strike()
            counts = (outcome.tried, outcome.runs_lost, outcome.steps_lost, outcome.files_corrupt)
            table.add_row(fault, *map(str, counts))
            console.print(f"{fault}: done at {time.perf_counter() - started:.0f} s")
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
