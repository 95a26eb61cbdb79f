"""Small training runs that are stopped, killed, damaged, resumed and compared."""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.optim.lr_scheduler import OneCycleLR

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store as runs
from pyro_vae.runtime import files as folders
from pyro_vae.training import run_state
from tests.models.test_vae import small_vae

STEPS = 4  # in an epoch of DATA and BATCH


DATA, BATCH = 60, 16


class Stop(BaseException):
    """Ends a run at once, as nothing that `fit` handles does."""


def pixels(seed=0, num_data=DATA):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_data, 1, 4, 4)
    values = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return pv.data.Dataset(values, binarization="dynamic")


def one_cycle(optimizer, steps):
    return OneCycleLR(optimizer, 1e-2, total_steps=steps)


def arguments(**changed):
    return {
        "train": pixels(),
        "validation": pixels(1, 20),
        "epochs": 4,
        "batch_size": BATCH,
        "optimizer": functools.partial(torch.optim.Adam, lr=1e-2, fused=True),
        "schedule": one_cycle,
        "seed": 3,
        **changed,
    }


def train(folder, *, resume=False, seconds=60.0, **changed):
    """Train; return the result, the weights and the newest checkpoint."""
    torch.manual_seed(7)
    vae = small_vae()
    fit = pv.fit(vae, out=folder, resume=resume, checkpoint_seconds=seconds, **arguments(**changed))
    newest = sorted((folder / "checkpoints").glob("[0-9]*"))[-1]
    return fit, list(vae.parameters()), runs.read(newest)


def stop_after(monkeypatch, steps):
    """Make `fit` end at once after so many steps, whenever it asks for the next batch."""
    real, taken = run_state.RunState.count, []

    def count(self, loss, num_data):
        if len(taken) == steps:
            raise Stop
        taken.append(loss)
        real(self, loss, num_data)

    monkeypatch.setattr(run_state.RunState, "count", count)


def without_seconds(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def assert_same_run(one, other):
    for key in ("stopped", "num_steps"):
        assert getattr(one[0], key) == getattr(other[0], key)
    assert without_seconds(one[0].history) == without_seconds(other[0].history)
    assert without_seconds([one[0].best]) == without_seconds([other[0].best])
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert torch.equal(mine, theirs)
    (mine, _), (theirs, _) = one[2], other[2]
    assert mine.keys() == theirs.keys()  # weights, best weights, optimizer, random states
    assert {key.split("/")[0] for key in mine} == {"now", "best", "optimizer", "random"}
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key


def half_a_run(folder, monkeypatch, steps=STEPS + 2):
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Stop):
            train(folder, seconds=0.0)
    return sorted((folder / "checkpoints").glob("[0-9]*"))


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def replace_by_link(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def forge(path, change):
    """Change a checkpoint and make its checksums right again."""
    tensors, state = runs.read(path)
    change(tensors, state)
    (path / runs.TENSORS).write_bytes(safetensors.torch.save(tensors))
    (path / runs.STATE).write_text(json.dumps(state))
    (path / folders.SUMS).write_text(
        "".join(
            f"{hashlib.sha256((path / file).read_bytes()).hexdigest()}  {file}\n"
            for file in (runs.STATE, runs.TENSORS)
        )
    )


def interrupt_after(patch, steps):
    real = run_state.RunState.count

    def count(self, loss, num_data):
        real(self, loss, num_data)
        if self.progress.step == steps:
            signal.raise_signal(signal.SIGINT)

    patch.setattr(run_state.RunState, "count", count)


def fork(test):
    """Mark a test that trains in a forked child, which dies alone.

    pytest's process has one thread of torch's only (conftest.py).
    """
    for mark in (
        pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
        pytest.mark.usefixtures("forkable"),
        pytest.mark.xdist_group("forks"),  # groups run early, before most tests
    ):
        test = mark(test)
    return test


FORK = multiprocessing.get_context("fork")


def start(target, *args):
    child = FORK.Process(target=target, args=args)
    child.start()
    return child


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def checkpoints(folder):
    return sorted((folder / "checkpoints").glob("[0-9]*"))


def killing_at(stage):
    """Return a wrapper of functions, which kills the process at their call of this number."""
    calls = []

    def fatal(real):
        def call(*args, **kwargs):
            calls.append(real)
            if len(calls) == stage:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    return fatal


def in_child(work):
    """Run `work` in a child process and return its exit code."""
    child = FORK.Process(target=work)
    child.start()
    child.join(120)
    return child.exitcode
