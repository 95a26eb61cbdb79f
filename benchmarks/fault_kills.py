"""SIGKILL of runs: at a random time, at each operation on files, and of groups of two processes.

Each function makes one trial of a fault and returns its outcome, None if there are no more trials.
"""

import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_runs import (
    FORK,
    PAIR,
    STEPS,
    Bench,
    Outcome,
    checkpoints,
    in_child,
    newest_step,
    start_two_processes,
    taken,
    train,
    wait,
)

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store


def _after_a_while(bench: Bench, child: Any) -> None:
    """Wait for a random time, mostly after the first step."""
    if bench.draw.random() < 0.8:
        while taken.value == 0 and child.is_alive():
            time.sleep(0.002)
    child.join(bench.draw.uniform(0.0, 0.3))


def at_random(bench: Bench, kind: str) -> Outcome:
    """Kill a run at random times until it is complete."""
    bench.undisturbed(kind)
    outcome, folder = Outcome(), bench.folder()

    def strike(child: Any) -> None:
        _after_a_while(bench, child)
        child.kill()

    kept = 0
    while kept < STEPS:
        taken.value = 0
        in_child(functools.partial(train, folder, 0.005, kind), strike)
        outcome.count(folder)
        kept = newest_step(folder)
        outcome.steps_lost += max(taken.value - kept, 0)
    bench.finish(folder, outcome, kind)
    return outcome


def of_two_processes(bench: Bench) -> Outcome:
    """Kill one process of a group of two, or both, at random times until the run is complete."""
    outcome, folder, kept = Outcome(), bench.folder(), 0
    while kept < STEPS:
        taken.value = 0
        group = start_two_processes(folder, bench.folder(), 0.005)
        for child in group:
            child.start()
        _after_a_while(bench, group[0])
        first, second = bench.draw.sample(group, 2)
        first.kill()
        wait([second], bench.draw.choice([0.0, 0.5]))  # the other one may notice
        second.kill()
        wait(group, 60)
        outcome.count(folder)
        kept = newest_step(folder)
        outcome.steps_lost += max(taken.value - kept, 0)
    bench.finish(folder, outcome, PAIR)
    return outcome


def at_each_stage(bench: Bench, number: int) -> Outcome | None:
    """Kill a run before one of its operations on files, from first to last."""
    outcome, folder, done = Outcome(), bench.folder(), FORK.Value("i", 0)
    in_child(functools.partial(_die_at, number + 1, folder, done))
    if done.value:
        return None
    outcome.count(folder)
    bench.finish(folder, outcome)
    return outcome


def _die_at(stage: int, folder: Path, done: Any) -> None:
    calls = []

    def fatal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(real)
            if len(calls) == stage:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    replaced = [(os, "fsync"), (Path, "rename"), (Path, "replace"), (Path, "open")]
    for owner, name in [*replaced, (checkpoint_store, "_remove")]:
        setattr(owner, name, fatal(getattr(owner, name)))
    train(folder)
    done.value = 1


def two_runs(bench: Bench, number: int) -> Outcome:
    """Start a second run in the folder of a running one: it is refused, the first continues."""
    outcome, folder, refused = Outcome(), bench.folder(), FORK.Value("i", 0)

    def second() -> None:
        try:
            train(folder)
        except pv.CheckpointError:
            refused.value = 1

    def strike(child: Any) -> None:
        while len(checkpoints(folder)) <= number % 2:
            time.sleep(0.002)
        in_child(second)

    in_child(functools.partial(train, folder, 0.05), strike)
    outcome.count(folder)
    outcome.runs_lost += not refused.value
    bench.finish(folder, outcome)
    return outcome


def folder_vanishes(bench: Bench) -> Outcome:
    """Remove the folder at a random step: the run still ends and returns its model."""
    outcome, folder, wait_for = Outcome(tried=1), bench.folder(), bench.draw.uniform(0.0, 0.3)

    def strike(child: Any) -> None:
        time.sleep(wait_for)
        shutil.rmtree(folder, ignore_errors=True)

    in_child(functools.partial(train, folder, 0.02), strike)
    loaded = [parameter.detach().numpy() for parameter in pv.load(folder / "model").parameters()]
    expected = list(bench.undisturbed().values())
    outcome.runs_lost += any(
        (one != other).any() for one, other in zip(loaded, expected, strict=False)
    )
    return outcome
