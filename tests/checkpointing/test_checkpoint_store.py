"""Checkpoints on disk: which are kept, damage, a full disk, a second run."""

import os
import pickle

import pytest

import pyro_vae as pv
from pyro_vae.checkpointing import checkpoint_store as runs
from pyro_vae.runtime import files as folders
from tests.support.runs import (
    Canary,
    assert_same_run,
    checkpoints,
    flip,
    forge,
    half_a_run,
    replace_by_link,
    train,
)


def test_the_last_two_and_the_best_are_kept(tmp_path):
    fit, _, (_, state) = train(tmp_path, epochs=6, patience=5, schedule=None)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(names) in (2, 3)
    best = state["progress"]["best_checkpoint"]
    assert best in names
    assert runs.read(tmp_path / "checkpoints" / best)[1]["progress"]["step"] == fit.best["step"]


def test_another_run_in_the_folder_sets_the_checkpoints_aside(tmp_path):
    train(tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    with pytest.warns(UserWarning, match="results of an earlier run"):
        train(tmp_path, seed=4)
    assert sorted(path.name for path in (tmp_path / "checkpoints-before").iterdir()) == names


DAMAGE = {
    "flipped tensors": lambda path: flip(path / runs.TENSORS),
    "flipped state": lambda path: flip(path / runs.STATE),
    "flipped sums": lambda path: flip(path / folders.SUMS),
    "truncated tensors": lambda path: os.truncate(path / runs.TENSORS, 999),
    "truncated state": lambda path: os.truncate(path / runs.STATE, 99),
    "empty": lambda path: os.truncate(path / runs.TENSORS, 0),
    "gone": lambda path: (path / runs.TENSORS).unlink(),
    "pickle": lambda path: (path / runs.TENSORS).write_bytes(
        pickle.dumps(Canary(path.parent / "canary"))
    ),
    "huge state": lambda path: os.truncate(path / runs.STATE, 100 * 2**20),
    "link": lambda path: replace_by_link(path / runs.TENSORS),
    "linked folder": replace_by_link,
}


@pytest.mark.thinned(5)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_one_before_serves(damage, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    older, newest = half_a_run(tmp_path / "run", monkeypatch)[-2:]
    DAMAGE[damage](newest)
    with pytest.raises(pv.CheckpointError, match=f"{newest.name} is damaged"):
        runs.read(newest)
    with pytest.warns(UserWarning, match="trying the checkpoint before it"):
        resumed = train(tmp_path / "run", resume=True)
    assert_same_run(whole, resumed)
    assert not (older.parent / "canary").exists()


def test_when_none_is_whole_it_is_refused(tmp_path, monkeypatch):
    for path in half_a_run(tmp_path, monkeypatch):
        flip(path / runs.TENSORS)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(pv.CheckpointError, match="none of the"),
    ):
        train(tmp_path, resume=True)


def test_a_checkpoint_of_a_later_version_says_so(tmp_path, monkeypatch):
    newest = half_a_run(tmp_path, monkeypatch)[-1]
    forge(newest, lambda t, s: s.update(format=99))
    with pytest.raises(pv.CheckpointError, match=r"format 99.*upgrade pyro_vae"):
        runs.read(newest)


def test_a_full_disk_is_told_and_training_goes_on(tmp_path, monkeypatch):
    real = folders._write

    def full(path, data):
        of_a_checkpoint = tmp_path / "checkpoints" in path.parents
        if of_a_checkpoint and len(checkpoints(tmp_path)) >= 2:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(folders, "_write", full)
    with pytest.warns(
        UserWarning, match="No space left.*training continues, and the last checkpoint is of"
    ):
        fit, *_ = train(tmp_path)
    assert fit.stopped == "finished"
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    with (
        runs.opened(tmp_path),
        pytest.raises(pv.CheckpointError, match=f"another run writes.*process {os.getpid()}"),
    ):
        train(tmp_path)
    train(tmp_path)
