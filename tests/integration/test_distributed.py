"""Several processes work as one: the same numbers, the same files, and no run lost with one."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from pyro_vae import distributed
from tests.support import processes
from tests.support.programs import ROOT, environment, run, run_alone, run_group

pytestmark = pytest.mark.xdist_group("distributed")  # the runs of `alone` and `together` are shared
SCRIPT = ROOT / "tests/support/processes.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def launch(job, folder, num=2):
    """Run a job in several processes, or in one; return what its first process found."""
    command = [SCRIPT, job, folder]
    for done in [run(command, folder)] if num == 1 else run_group(command, folder, num):
        assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / f"{job}-{num}.json").read_text())


def torchrun(job, folder, *options):
    """Run a job by `torchrun` in two processes; return what its first process found."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    done = run_alone([*command, SCRIPT, job, folder], folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / f"{job}-2.json").read_text())


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


def test_averages_are_those_of_one_process_and_the_first_one_watches(alone, together):
    assert_same_numbers(together["watched"], alone["watched"])
    assert alone["watched"]["weights"] != alone["eager"]["weights"]
    assert alone["watched"]["steps"] == 8  # the callback ended both processes
    assert (alone["watched_epochs"], together["watched_epochs"]) == ([[1, 2]], [[1, 2], []])


def test_scores_and_trees_are_those_of_one_process(alone, together):
    for name in ("scores", "loader_scores"):
        assert together[name] == alone[name]
        assert len(alone[name]) == 3000
    assert together["trees"].keys() == alone["trees"].keys()
    assert {key.split("/")[0] for key in alone["trees"]} == {"global", "local"}
    for name, values in alone["trees"].items():
        if name.endswith("log_weight") or name.endswith("log_q"):  # sums in another order
            np.testing.assert_allclose(together["trees"][name], values, rtol=1e-12, err_msg=name)
        else:
            assert together["trees"][name] == values, name


def test_diagnostics_are_those_of_one_process(alone, together):
    for name, length in (("card", 9), ("khat", 200), ("annealed", 30)):
        assert together[name] == alone[name]
        assert len(alone[name]) == length


def test_the_noise_is_each_process_own(alone, together):
    (one,), (first, second) = alone["noise"], together["noise"]
    assert first == one
    assert len(second) == len(first)
    assert not set(first) & set(second)


def test_running_statistics_are_those_of_the_first_process(alone, together):
    (one,), (first, second) = alone["buffers"], together["buffers"]
    assert first == second
    assert all(first[0])  # the running mean began at 0
    assert first[0] != one[0]  # of its own rows, not of all


def test_each_process_says_what_is_wrong_in_one(together):
    first, second = together["errors"]
    assert first[0] == second[0]
    assert first[0].startswith("FileExistsError") or "cannot be written" in first[0]
    for said in (first[1], second[1]):
        assert "DistributedError: the processes have different settings: seed is" in said


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_checkpoint_is_for_any_number_of_processes(before, after, alone, tmp_path):
    launch("stop", tmp_path, num=before)
    assert_same_numbers(launch("resume", tmp_path, num=after), alone["eager"])


def test_a_killed_process_is_started_again_and_training_goes_on(alone, tmp_path):
    found = torchrun("killed", tmp_path, "--max-restarts=1")
    assert found["restarts"] == 1
    assert found["steps taken"] == 2 * processes.STEPS  # the epoch before was not repeated
    assert_same_numbers(found, alone["eager"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads threads from /proc")
def test_no_thread_outlives_the_group(tmp_path):
    """One that lets go of a tensor while Python ends would abort the process."""
    threads = torchrun("leave", tmp_path)
    assert threads
    assert not [name for name in threads if "gloo" in name]


def test_a_signal_to_one_ends_all_in_order(tmp_path):
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", str(SCRIPT), "wait", str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment(tmp_path), cwd=tmp_path, stderr=subprocess.PIPE, text=True
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
    assert list(distributed.distribute([3, 1, 2], lambda item: 2 * item)) == [6, 2, 4]
    with pytest.raises(KeyError):
        distributed.from_first(lambda: {}["missing"])


@pytest.fixture
def hosts():
    """Two network namespaces with an address each, joined by a cable."""
    names, addresses = ("pyro-vae-a", "pyro-vae-b"), ("10.77.0.1", "10.77.0.2")

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable-a", "type", "veth", "peer", "name", "cable-b")
        for name, address, cable in zip(names, addresses, ("cable-a", "cable-b"), strict=True):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield list(zip(names, addresses, ("cable-a", "cable-b"), strict=True))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_hosts_train_together_and_one_goes_on_alone(hosts, tmp_path):
    """With `--nnodes 1:2`, as docs/scaling.md says; the second host is lost with all it runs."""
    endpoint = f"{hosts[0][1]}:29400"
    options = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-id=job"]
    options += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
    agents, logs = [], []
    for name, address, cable in hosts:
        # Host names, by which torchrun finds who serves, are the same in both.
        serves = f"--rdzv-conf=last_call_timeout=5,is_host={int(address == hosts[0][1])}"
        options_here = [*options, serves, f"--local-addr={address}"]
        command = ["ip", "netns", "exec", name, *TORCHRUN, *options_here]
        logs.append((tmp_path / f"{name}.log").open("w"))
        agents.append(
            subprocess.Popen(
                [*command, str(SCRIPT), "hosts", str(tmp_path)],
                env=environment(tmp_path) | {"GLOO_SOCKET_IFNAME": cable},
                cwd=tmp_path, stdout=logs[-1], stderr=subprocess.STDOUT, start_new_session=True,
            )
        )  # fmt: skip

    def steps():
        path = tmp_path / "steps"
        return path.read_text().split() if path.exists() else []

    def wait_for(condition):
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert condition(), "\n".join(log.read_text()[-3000:] for log in tmp_path.glob("*.log"))

    try:
        wait_for(lambda: steps().count("2") >= 6)
        for process in pids_in(hosts[1][0]):
            os.kill(process, signal.SIGKILL)
        wait_for(lambda: agents[0].poll() is not None)
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
        for log in logs:
            log.close()
    said = (tmp_path / "pyro-vae-a.log").read_text()
    assert agents[0].returncode == 0, said[-4000:]
    assert steps().count("1") >= 10
    # Each epoch's end has a checkpoint: at most one epoch is taken again at each restart.
    assert len(steps()) <= 10 * processes.STEPS + 2 * processes.STEPS
    found = json.loads((tmp_path / "hosts-1.json").read_text())
    assert_same_numbers(found, processes.numbers(*processes.fit(epochs=10)))


def pids_in(namespace):
    command = ["ip", "netns", "pids", namespace]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.slow
def test_the_example_trains_compiled_in_two_processes(tmp_path):
    pytest.importorskip("torch._inductor")
    example = [str(ROOT / "examples/mnist_svi.py"), "--data", "mnist-5k", "--out", "run"]
    options = ["--epochs", "180", "--hidden", "50"]  # 5,220 steps, which earn compiling
    done = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc-per-node=2", *example, *options],
        env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "CompilationWarning" not in done.stderr, done.stderr[-4000:]
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["engine"] == "compiled"
    assert metrics["num_processes"] == 2
    assert done.stdout.count("log p(x)") == 1
    assert metrics["test_elbo"] > -130
