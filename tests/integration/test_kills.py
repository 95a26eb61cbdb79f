"""Signals and kills: a run that is ended at any time is resumed bit for bit."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from pyro_vae.checkpointing import checkpoint_store as runs
from pyro_vae.runtime import files as folders
from pyro_vae.training import loop, run_state
from tests.support.runs import (
    FORK,
    STEPS,
    assert_same_run,
    checkpoints,
    fork,
    interrupt_after,
    killing_at,
    start,
    train,
    wait_for,
)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, STEPS + 2)
        fit, *_ = train(tmp_path / "parts")
    assert (fit.stopped, fit.num_steps) == ("interrupted", STEPS + 2)
    told = capsys.readouterr().err
    assert f"interrupted at step {STEPS + 2}" in told
    assert "resume=True" in told
    assert_same_run(whole, train(tmp_path / "parts", resume=True))


def train_slowly(folder, errors):
    """A child's work: steps of 10 ms, and what it says in a file."""
    sys.stderr = errors.open("w", buffering=1)
    real = run_state.RunState.count

    def count(self, loss, num_data):
        time.sleep(0.01)
        real(self, loss, num_data)

    run_state.RunState.count = count
    train(folder, resume=True, seconds=0.0)


@fork
def test_sigterm_saves_and_ends(tmp_path):
    whole = train(tmp_path / "whole")
    child = start(train_slowly, tmp_path / "run", tmp_path / "errors")
    wait_for(lambda: len(checkpoints(tmp_path / "run")) >= 2)
    os.kill(child.pid, signal.SIGTERM)
    child.join(60)
    assert child.exitcode == -signal.SIGTERM
    assert "interrupted at step" in (tmp_path / "errors").read_text()
    assert_same_run(whole, train(tmp_path / "run", resume=True))


def train_without_end(folder, reached):
    def validate(*args):
        reached.touch()
        time.sleep(0.3)
        reached.with_name("handled").touch()
        time.sleep(120)

    loop._validate = validate
    train(folder)


@fork
def test_a_second_signal_ends_at_once(tmp_path):
    child = start(train_without_end, tmp_path / "run", tmp_path / "reached")
    wait_for((tmp_path / "reached").exists)
    os.kill(child.pid, signal.SIGTERM)
    wait_for((tmp_path / "handled").exists)
    assert child.is_alive()
    os.kill(child.pid, signal.SIGTERM)
    child.join(30)
    assert child.exitcode == -signal.SIGTERM


def train_and_die(folder, stage):
    """A child's work: to be killed before the call of this number that touches the disk."""
    fatal = killing_at(stage)
    os.fsync = fatal(os.fsync)
    Path.rename = fatal(Path.rename)
    Path.open = fatal(Path.open)
    runs.read = fatal(runs.read)
    runs._remove = fatal(runs._remove)
    folders.tempfile.mkdtemp = fatal(folders.tempfile.mkdtemp)
    train(folder, resume=True, seconds=0.0)


@fork
def test_killed_at_every_stage_of_a_checkpoint_nothing_is_lost(tmp_path):
    whole = train(tmp_path / "whole")
    run, step, stages = tmp_path / "run", 0, 0
    while True:
        stages += 1
        child = start(train_and_die, run, stages)
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        for path in checkpoints(run):
            state = runs.read(path)[1]  # raises unless it is whole
        if checkpoints(run):
            assert state["progress"]["step"] >= step
            step = state["progress"]["step"]
    assert stages > 12
    assert_same_run(whole, train(run, resume=True))


def killed_at_random(tmp_path, times, longest):
    draw, whole, run = random.Random(0), train(tmp_path / "whole", epochs=30), tmp_path / "run"
    step = 0
    for remaining in reversed(range(times)):
        child = FORK.Process(
            target=train, args=(run,), kwargs={"resume": True, "seconds": 0.0, "epochs": 30}
        )
        child.start()
        if not remaining:  # also if every child of a busy machine was killed before a step
            wait_for(lambda: checkpoints(run))
        child.join(draw.uniform(0.05, longest))
        child.kill()
        child.join()
        for path in checkpoints(run):
            state = runs.read(path)[1]
        if checkpoints(run):
            assert state["progress"]["step"] >= step
            step = state["progress"]["step"]
    assert step > 0
    assert_same_run(whole, train(run, resume=True, epochs=30))


@fork
def test_killed_at_random_nothing_is_lost(tmp_path):
    killed_at_random(tmp_path, times=6, longest=0.6)


@fork
@pytest.mark.slow
def test_killed_at_random_200_times_nothing_is_lost(tmp_path):
    killed_at_random(tmp_path, times=200, longest=0.5)
