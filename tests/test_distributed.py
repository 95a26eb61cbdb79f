"""Several processes work as one: the same numbers, the same files, and no run lost with one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae import distributed
from tests import processes

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests/processes.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def environment():
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    variables.pop("PYTEST_XDIST_WORKER", None)
    return variables


def launch(job, folder, *options, num=2):
    """Run a job in several processes, or in one; return what its first process found."""
    if num == 1:
        command = [sys.executable]
    else:
        command = [*TORCHRUN, "--standalone", f"--nproc-per-node={num}", *options]
    done = subprocess.run(
        [*command, str(SCRIPT), job, str(folder)],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / f"{job}-{num}.json").read_text())


def assert_same_numbers(one, other):
    assert one["steps"] == other["steps"]
    for mine, theirs in zip(one["weights"], other["weights"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)
    for mine, theirs in zip(one["history"], other["history"], strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            np.testing.assert_allclose(mine[key], theirs[key], rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return launch("equal", tmp_path_factory.mktemp("one"), num=1)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    return launch("equal", tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_two_processes_train_as_one_with_the_whole_batch(engine, alone, together):
    # float64, and a last batch of one datum, which one of the two has not.
    assert_same_numbers(together[engine], alone[engine])
    assert alone[engine]["steps"] == 12


def test_scores_and_trees_are_those_of_one_process(alone, together):
    assert together["scores"] == alone["scores"]
    assert len(alone["scores"]) == 3000
    assert together["trees"].keys() == alone["trees"].keys()
    assert {key.split("/")[0] for key in alone["trees"]} == {"global", "local"}
    for name, values in alone["trees"].items():
        if name.endswith("log_weight") or name.endswith("log_q"):  # sums in another order
            np.testing.assert_allclose(together["trees"][name], values, rtol=1e-12, err_msg=name)
        else:
            assert together["trees"][name] == values, name


def test_the_noise_is_each_process_own(alone, together):
    (one,), (first, second) = alone["noise"], together["noise"]
    assert first == one
    assert len(second) == len(first)
    assert not set(first) & set(second)


def test_each_process_says_what_is_wrong_in_one(together):
    first, second = together["errors"]
    assert first[0] == second[0]
    assert first[0].startswith("FileExistsError") or "cannot be written" in first[0]
    for said in (first[1], second[1]):
        assert "DistributedError: the processes have different settings: seed is" in said


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_checkpoint_is_for_any_number_of_processes(before, after, alone, tmp_path):
    launch("stop", tmp_path, num=before)
    assert_same_numbers(launch("resume", tmp_path, num=after), alone["eager"])


def test_a_killed_process_is_started_again_and_training_goes_on(alone, tmp_path):
    found = launch("killed", tmp_path, "--max-restarts=1")
    assert found["restarts"] == 1
    assert found["steps taken"] == 2 * processes.STEPS  # the epoch before was not repeated
    assert_same_numbers(found, alone["eager"])


def test_a_signal_to_one_ends_all_in_order(tmp_path):
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", str(SCRIPT), "wait", str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert "interrupted at step" in said
    assert said.count("interrupted at step") == 1
    assert (tmp_path / "run/checkpoints").is_dir()
    assert list((tmp_path / "run/checkpoints").glob("[0-9]*"))


def test_one_process_alone_needs_no_group():
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.is_first()
    assert not distributed.was_restarted()
    assert not torch.distributed.is_initialized()
    batch = (torch.arange(5.0), torch.arange(5))
    assert distributed.own_rows(batch) == (batch, 1.0)
    assert list(distributed.dealt([3, 1, 2], lambda item: 2 * item)) == [6, 2, 4]
    with pytest.raises(KeyError):
        distributed.from_first(lambda: {}["missing"])


@pytest.mark.slow
def test_the_example_trains_compiled_in_two_processes(tmp_path):
    pytest.importorskip("torch._inductor")
    example = [str(ROOT / "examples/mnist_svi.py"), "--data", "mnist-5k", "--out", "run"]
    options = ["--epochs", "160", "--hidden", "50"]
    done = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc-per-node=2", *example, *options],
        env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["engine"] == "compiled"
    assert metrics["num_processes"] == 2
    assert done.stdout.count("log p(x)") == 1
    assert metrics["test_elbo"] > -130
