"""Faults of the disk, the data, the memory and the clock. Each one really happens here."""

import functools
import gc
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae import evaluation
from pyro_vae.data import catalogue
from pyro_vae.pairs.chunking import MemoryWarning
from pyro_vae.runtime import files as folders
from pyro_vae.training import run_state
from tests.models.test_vae import small_vae
from tests.support.runs import (
    FORK,
    assert_same_run,
    fork,
    in_child,
    train,
)

# -- the disk --------------------------------------------------------------------------------------


@fork
def test_a_disk_that_is_full_from_some_time_on_loses_nothing(tmp_path):
    whole = train(tmp_path / "whole")

    def limit_after_two_epochs():
        real = run_state.RunState.end_epoch

        def end_epoch(self, entry):
            real(self, entry)
            if self.progress.epoch == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # bytes a file may have

        run_state.RunState.end_epoch = end_epoch
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fit, *_ = train(tmp_path / "run")
        told = [str(warning.message) for warning in told]
        assert fit.stopped == "finished"
        assert sum("cannot be written" in text for text in told) == 4  # 3 checkpoints, the model
        assert any("the weights are in the pair" in text for text in told)

    assert in_child(limit_after_two_epochs) == 0
    assert_same_run(whole, train(tmp_path / "run", resume=True))


@fork
def test_a_full_disk_leaves_the_saved_model_as_it_was(tmp_path):
    old = small_vae()
    old.save(tmp_path / "model")

    def save():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with pytest.raises(OSError, match="File too large"):
            small_vae().save(tmp_path / "model")

    assert in_child(save) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
    assert torch.equal(next(pv.load(tmp_path / "model").parameters()), next(old.parameters()))


@fork
@pytest.mark.parametrize("limit", [100, 5_000, 20_000])
def test_a_full_disk_leaves_whole_files_of_a_report(limit, tmp_path):
    vae, x = small_vae(), pv.data.Dataset(torch.ones(30, 1, 4, 4))
    fit = pv.fit(vae, x, epochs=1, progress=False)
    pv.report(vae, fit, x, tmp_path, num_samples=2)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}

    def report_again():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.warns(UserWarning, match="File too large.*the scores are returned") as told:
            scores = pv.report(vae, fit, x, tmp_path, num_samples=3)
        assert np.isfinite(scores.mean("log_likelihood"))
        assert len(told) == 1

    assert in_child(report_again) == 0
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if len(before[name]) > limit)


@fork
def test_a_read_only_folder_is_refused_before_training_and_survived_within():
    def as_nobody():
        pv.fit(small_vae(), torch.ones(8, 1, 4, 4), epochs=1)  # imports what nobody may not read
        if os.getuid() == 0:  # to whom nothing is read-only
            os.setuid(65534)
        out = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
        real = run_state.RunState.end_epoch

        def end_epoch(self, entry):
            real(self, entry)
            for folder in (out / "checkpoints", out):
                folder.chmod(0o555)

        run_state.RunState.end_epoch = end_epoch
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fit = pv.fit(small_vae(), torch.ones(8, 1, 4, 4), epochs=2, out=out)
        assert fit.stopped == "finished"
        assert sum("Permission denied" in str(warning.message) for warning in told) >= 2
        with pytest.raises(pv.CheckpointError, match=r"cannot be written \(Permission denied\)"):
            pv.fit(small_vae(), torch.ones(8, 1, 4, 4), epochs=2, out=out / "checkpoints")
        for folder in (out, out / "checkpoints"):
            folder.chmod(0o755)
        shutil.rmtree(out)

    assert in_child(as_nobody) == 0


def test_a_folder_that_vanishes_is_made_again_for_the_result(tmp_path, monkeypatch):
    real = run_state.RunState.end_epoch

    def end_epoch(self, entry):
        real(self, entry)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(run_state.RunState, "end_epoch", end_epoch)
    vae = small_vae()
    with pytest.warns(UserWarning, match="cannot be written.*training continues"):
        fit = pv.fit(vae, torch.ones(8, 1, 4, 4), epochs=2, out=tmp_path / "run")
    assert fit.stopped == "finished"
    loaded = pv.load(tmp_path / "run" / "model")
    assert torch.equal(next(loaded.parameters()), next(vae.parameters()))


def test_what_cannot_be_saved_is_refused_before_training(tmp_path):
    vae = small_vae().replace(prior=lambda: pv.priors.StandardNormal(3)())
    with pytest.raises(pv.CheckpointError, match=r"part\.prior is a function"):
        pv.fit(vae, torch.ones(8, 1, 4, 4), epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- data ------------------------------------------------------------------------------------------


def write_faces(root, change=None):
    faces = np.random.default_rng(0).integers(0, 256, (1965, 28, 20), dtype=np.uint8)
    if change is not None:
        faces[change] ^= 1
    np.savez(root / "frey_faces.npz", images=faces)


def train_on_faces(root, **settings):
    faces, _ = pv.data.load("frey", root=root, download=False)
    torch.manual_seed(0)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.ContinuousBernoulli(pv.networks.MLP(2, [4], faces.event_shape)),
        pv.guides.DiagonalNormal(pv.networks.MLP(faces.event_shape, [4], 4)),
    )
    return pv.fit(vae, faces, epochs=1, batch_size=500, out=root / "run", **settings)


def test_a_data_file_that_changed_or_was_truncated_between_runs_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "CONTENT", {})  # the frames are not those of the real file
    write_faces(tmp_path)
    train_on_faces(tmp_path)
    write_faces(tmp_path, change=(1000, 3, 3))  # one bit of one pixel
    with pytest.raises(pv.CheckpointError, match="train_sha256 was"):
        train_on_faces(tmp_path, resume=True)
    os.truncate(tmp_path / "frey_faces.npz", 10**6)
    with pytest.raises(ValueError, match=r"frey_faces\.npz is damaged"):
        train_on_faces(tmp_path, resume=True)
    write_faces(tmp_path)
    assert train_on_faces(tmp_path, resume=True).stopped == "finished"


class Dying:
    """Data whose reader is killed at datum 40."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        if index == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.ones(1, 4, 4)


@fork
def test_a_data_loader_whose_worker_dies_leaves_no_half_step():
    """`fit` reads no data in workers; a user's own loop over `SVI.step` may."""

    def loop():  # in a child, since torch tells the death once more wherever Python stands
        vae, losses = small_vae(), []
        adam = functools.partial(torch.optim.Adam, lr=1e-2, fused=True)
        svi = pv.SVI(vae.model, vae.guide, adam, compile=False)
        batches = DataLoader(Dying(), batch_size=8, num_workers=1, multiprocessing_context=FORK)

        def steps_until_it_dies():
            try:
                losses.extend(svi.step(batch) for batch in batches)
            finally:  # torch's handler would tell the death while it is being told already
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)

        # Of torch or, if the worker dies while it hands over a tensor, of multiprocessing.
        with pytest.raises((RuntimeError, ConnectionError, EOFError)):
            steps_until_it_dies()
        steps = {int(entry["step"]) for entry in svi.optim.optimizer.state.values()}
        assert len(steps) == 1  # every parameter took the same steps, none of them half of one
        assert len(losses) <= steps.pop() <= 5
        assert all(parameter.isfinite().all() for parameter in vae.parameters())
        os._exit(0)

    assert in_child(loop) == 0


# -- memory and time -------------------------------------------------------------------------------


@fork
@pytest.mark.slow  # in a process of its own: what other tests have freed serves as memory, too
def test_evaluation_that_runs_out_of_memory_takes_smaller_chunks_and_says_so(tmp_path):
    # 2.6 MB a datum: the arrays of a chunk of 32 draws have 82 MB each, too large (above 32 MB)
    # for the C library to keep when they are freed.
    side = 800
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(2, [], (side, side))),
        pv.guides.DiagonalNormal(pv.networks.MLP((side, side), [], 4)),
    )
    x = torch.rand(2, side, side)
    full = pv.evaluate(vae, x, num_samples=32)

    def with_little_memory():
        gc.collect()  # what would be freed later is not to be had on top of the limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 120 * 2**20,) * 2)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", MemoryWarning)
            scores = pv.evaluate(vae, x, num_samples=32)
        assert "memory ran out: continuing with chunks of 1 data" in str(told[0].message)
        # The same draws give the same KL; others differ by their noise, of sd below 2 here.
        np.testing.assert_allclose(scores.kl, full.kl, atol=5 * 2 * (2 / 32) ** 0.5)

    assert in_child(with_little_memory) == 0


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(*args):
        raise RuntimeError("something else")

    monkeypatch.setattr(evaluation, "_scores", broken)
    with pytest.raises(RuntimeError, match="something else"):
        pv.evaluate(small_vae(), torch.ones(4, 1, 4, 4), num_samples=4)


@pytest.mark.parametrize("jump", [-(10**9), 10**9])
def test_a_clock_that_jumps_changes_nothing(jump, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    times = {name: getattr(time, name) for name in ("time", "time_ns")}

    def jumped(name):
        calls.append(name)
        scale = 10**9 if name == "time_ns" else 1
        return times[name]() + (jump * scale if len(calls) % 2 else 0)

    calls = []
    for name in times:
        monkeypatch.setattr(time, name, functools.partial(jumped, name))
    run = train(tmp_path / "run", seconds=1e-6)
    assert_same_run(whole, run)
    assert 0 <= run[0].seconds < 600
    assert_same_run(whole, train(tmp_path / "run", resume=True))


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    folders.write_file(tmp_path / "page", b"old")
    folders.write_file(tmp_path / "page", b"new")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folders.write_file(tmp_path / "page", b"half of it")
    assert [path.name for path in tmp_path.iterdir()] == ["page"]
    assert (tmp_path / "page").read_bytes() == b"new"
