"""The lock of a run's folder: one holder, named to others, until its process ends."""

import fcntl
import os
import signal
import time

import pytest

import pyro_vae as pv
from pyro_vae.runtime.folder_lock import HOLDER, LOCK, locked
from tests.support.runs import FORK, fork


def test_a_second_holder_is_refused_by_the_number_of_the_first(tmp_path):
    with locked(tmp_path):
        for _ in range(2):  # a refused attempt changes nothing
            with (
                pytest.raises(pv.CheckpointError, match=rf"process {os.getpid()}\)"),
                locked(tmp_path),
            ):
                pass
    with locked(tmp_path):
        pass


@fork
def test_the_lock_ends_with_a_killed_process(tmp_path):
    def hold():
        with locked(tmp_path):
            time.sleep(60)

    child = FORK.Process(target=hold)
    child.start()
    while not (tmp_path / HOLDER).exists():
        time.sleep(0.005)
    with pytest.raises(pv.CheckpointError, match=rf"process {child.pid}\)"), locked(tmp_path):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    with locked(tmp_path):
        assert (tmp_path / HOLDER).read_text() == str(os.getpid())


def test_the_lock_file_of_an_older_version_is_used(tmp_path):
    """Older versions wrote the process number into the lock file."""
    (tmp_path / LOCK).write_text("12899")
    (tmp_path / HOLDER).write_text("1")
    with (tmp_path / LOCK).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(pv.CheckpointError, match=r"process 12899\)"), locked(tmp_path):
            pass
    with (
        locked(tmp_path),
        pytest.raises(pv.CheckpointError, match=rf"process {os.getpid()}\)"),
        locked(tmp_path),
    ):
        pass


@pytest.mark.parametrize("name", [LOCK, HOLDER])
def test_a_file_of_another_program_is_refused(name, tmp_path):
    (tmp_path / name).write_text("PRAGMA")
    with (
        pytest.raises(pv.CheckpointError, match="does not contain a process number"),
        locked(tmp_path),
    ):
        pass
    assert (tmp_path / name).read_text() == "PRAGMA"


def test_an_error_while_the_lock_is_held_is_raised_and_releases_it(tmp_path):
    with pytest.raises(TimeoutError, match="mine"), locked(tmp_path):
        raise TimeoutError("mine")
    with locked(tmp_path):
        pass


def test_a_run_does_not_write_into_a_folder_that_another_run_has_taken(tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run") as check:
        check()
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".lock").touch()
        with pytest.raises(pv.CheckpointError, match="another run has locked it"):
            check()
