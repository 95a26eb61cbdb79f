"""Faults of disks: loss of power, small disks, damaged files.

Each function makes one trial of a fault and returns its outcome, None if there are no more trials.
"""

import contextlib
import functools
import os
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import power_loss
from fault_runs import STEPS, Bench, Outcome, checkpoints, in_child, newest_step, train

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store

PAGE = 4  # KB: the unit of files on a tmpfs
STAGES = range(0, STEPS, 4)  # steps that a run has taken when it gets its small disk


def power_fails(bench: Bench, number: int) -> Outcome | None:
    """Drop all that was not flushed to the disk, after one of the operations on files."""
    log = bench.once("log of files", lambda: _log(bench.folder()))
    if number > len(log.entries):
        return None
    outcome, target = Outcome(), bench.folder()
    power_loss.after_power_loss(log, number, target, bench.draw)
    outcome.count(target)
    bench.finish(target, outcome)
    shutil.rmtree(target)
    return outcome


def _log(folder: Path) -> power_loss.Log:
    """Return the operations on files of an undisturbed run."""
    saved = folder.with_suffix(".log")

    def work() -> None:
        with power_loss.recording(folder) as log:
            train(folder)
        saved.write_bytes(pickle.dumps(log))

    in_child(work)
    log: power_loss.Log = pickle.loads(saved.read_bytes())
    return log


@contextlib.contextmanager
def disk(bench: Bench, size: int) -> Iterator[Path]:
    """Mount an empty disk of so many KB.

    Raises:
        PermissionError: If this process may not mount disks.
    """
    folder = bench.folder()
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise PermissionError("small disks need the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disk_of_each_size(bench: Bench, number: int) -> Outcome | None:
    """Continue a run of each stage on a disk of each size, up to the size that a run needs."""
    page, stage = divmod(number, len(STAGES))
    size = PAGE * (page + 1)
    if size > bench.once("size that a run needs", lambda: _size_needed(bench)):
        return None
    begun, outcome = _begun(bench, STAGES[stage]), Outcome()
    with disk(bench, size) as folder:
        run, elsewhere = folder / "run", bench.folder()
        if begun is not None:
            try:
                shutil.copytree(begun, run)
            except (OSError, shutil.Error):
                return outcome  # the begun run does not fit
        ended = elsewhere.with_suffix(".ended")
        in_child(functools.partial(_end_well, bench, run, ended))
        outcome.count(run)
        outcome.runs_lost += not ended.exists()
        if run.exists():
            shutil.copytree(run, elsewhere)
    bench.finish(elsewhere, outcome)
    return outcome


def _end_well(bench: Bench, run: Path, ended: Path) -> None:
    """Create the file `ended` if a run is right, or refused before it trains."""
    expected = list(bench.undisturbed().values())
    with contextlib.suppress(pv.CheckpointError):
        found = train(run)
        assert all((a.numpy() == b).all() for a, b in zip(found, expected, strict=True))
    ended.touch()


def _begun(bench: Bench, steps: int) -> Path | None:
    return bench.once(f"run of {steps}", lambda: bench.half_a_run(steps)) if steps else None


def _size_needed(bench: Bench) -> int:
    """Return the size in KB of the smallest disk on which a run warns about nothing."""
    size, done = 0, bench.folder()
    while not done.exists():
        size += PAGE
        with disk(bench, size) as folder:
            in_child(lambda: (train(folder / "run", warn="error"), done.touch()))
    return size


def disk_full(bench: Bench) -> Outcome:
    """A file size limit of a random number of bytes, from a random step on."""
    outcome, folder = Outcome(), bench.half_a_run(bench.draw.randrange(2, STEPS))
    size = bench.draw.randrange(10**4)

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        train(folder)

    in_child(full)
    outcome.count(folder)
    bench.finish(folder, outcome)
    return outcome


def damaged(bench: Bench, damage: Callable[[Bench, Path], None]) -> Outcome:
    """Damage the newest checkpoint; the run must resume from the previous one."""
    outcome, folder, canary = Outcome(), bench.folder(), bench.scratch / "canary"
    shutil.copytree(_begun(bench, STEPS // 3), folder)
    before = newest_step(folder)
    names = [checkpoint_store.TENSORS, checkpoint_store.STATE]
    damage(bench, checkpoints(folder)[-1] / bench.draw.choice(names))
    outcome.tried += 1
    outcome.steps_lost += before - newest_step(folder)
    bench.finish(folder, outcome)
    outcome.files_corrupt += canary.exists()  # unpickling would have created it
    return outcome


def flip(bench: Bench, path: Path) -> None:
    """Flip a random bit of a file."""
    data = bytearray(path.read_bytes())
    data[bench.draw.randrange(len(data))] ^= 1 << bench.draw.randrange(8)
    path.write_bytes(bytes(data))


def truncate(bench: Bench, path: Path) -> None:
    """Truncate a file at a random byte."""
    os.truncate(path, bench.draw.randrange(path.stat().st_size))


def pickled(bench: Bench, path: Path) -> None:
    """Replace a file by a pickle that creates another file when it is loaded."""
    path.write_bytes(pickle.dumps(Canary(bench.scratch / "canary")))


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))
