"""What befalls a model's folder, a disk, the data, the memory: each fault really happens here."""

import functools
import gc
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import struct
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae import evaluation
from pyro_vae.checkpointing import model_folder as checkpoints
from pyro_vae.pairs.chunking import MemoryWarning
from pyro_vae.runtime import files as folders
from pyro_vae.training import run_state
from tests.checkpointing.test_runs import (
    Canary,
    assert_same_run,
    flip,
    killing_at,
    replace_by_link,
    train,
)
from tests.models.test_vae import small_vae

FIXTURE = Path(__file__).parents[1] / "fixtures" / "model-format-1"
WEIGHTS, ARCHITECTURE = checkpoints.WEIGHTS, checkpoints.ARCHITECTURE
FORK = multiprocessing.get_context("fork")
fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def in_child(work):
    """Run `work` in a process of its own, whose limits and death are its own; return its code."""
    child = FORK.Process(target=work)
    child.start()
    child.join(120)
    return child.exitcode


# -- a saved model ---------------------------------------------------------------------------------


def test_a_model_of_the_older_format_still_loads_and_says_the_same():
    assert json.loads((FIXTURE / ARCHITECTURE).read_text())["format"] == 1
    vae = pv.load(FIXTURE)
    x = (torch.arange(18).reshape(2, 1, 3, 3) % 3 == 0).float()
    z = torch.tensor([[0.5, -1.0], [2.0, 0.25]])
    close = functools.partial(torch.testing.assert_close, rtol=1e-6, atol=0)
    close(vae.encode(x).mean[0], torch.tensor([0.6090840697288513, 0.8512004017829895]))
    close(vae.decode(z).log_prob(x), torch.tensor([-6.613163948059082, -7.946779251098633]))
    close(vae.model.prior().log_prob(z), torch.tensor([-2.8094735145568848, -3.453725576400757]))


def test_a_later_format_says_what_to_do(tmp_path):
    small_vae().save(tmp_path / "model")
    rewrite(tmp_path / "model", lambda described: described.update(format=99))
    with pytest.raises(pv.CheckpointError, match=r"format 99.*upgrade pyro_vae"):
        pv.load(tmp_path / "model")


class Twice(pv.Part):
    def __init__(self, network):
        super().__init__()
        self.network = network


def test_weights_keep_their_type_and_their_sharing(tmp_path):
    vae, x = small_vae().double(), torch.rand(4, 1, 4, 4, dtype=torch.float64)
    vae.save(tmp_path / "double")
    loaded = pv.load(tmp_path / "double")
    assert loaded.encode(x).mean.dtype == torch.float64
    assert torch.equal(loaded.encode(x).mean, vae.encode(x).mean)
    prior = pv.priors.StandardNormal(2)
    network = pv.networks.MLP(2, [], (2,))  # one network, in two places
    shared = pv.VAE(prior, pv.likelihoods.Bernoulli(network), Twice(network))
    shared.save(tmp_path / "shared")
    loaded = pv.load(tmp_path / "shared")
    assert loaded.guide.posterior.network is loaded.model.likelihood.decoder
    assert torch.equal(next(loaded.parameters()), next(network.parameters()))


def rewrite(path, change):
    """Change a model's description and make its checksums right again."""
    described = json.loads((path / ARCHITECTURE).read_text())
    change(described)
    refresh(path, {ARCHITECTURE: json.dumps(described).encode()})


def rewrite_weights(path, change):
    tensors = safetensors.torch.load((path / WEIGHTS).read_bytes())
    change(tensors)
    refresh(path, {WEIGHTS: safetensors.torch.save(tensors)})


def refresh(path, files):
    kept = {name: (path / name).read_bytes() for name in (ARCHITECTURE, WEIGHTS)}
    folders.write_files(path, {**kept, **files})


def lying_header(path, header):
    """Replace the safetensors header, with its length in front, by another."""
    data = (path / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    text = json.dumps(header(json.loads(data[8 : 8 + length]))).encode()
    refresh(path, {WEIGHTS: struct.pack("<Q", len(text)) + text + data[8 + length :]})


def beyond_the_file(header):
    name = next(name for name in header if name != "__metadata__")
    header[name]["data_offsets"][1] += 10**9
    header[name]["shape"] = [10**9 // 4]
    return header


def pickled(path):
    canary = pickle.dumps(Canary(path.parent / "canary"))
    refresh(path, {WEIGHTS: canary})


FIRST = "model.likelihood.decoder.layers.0.weight"
DAMAGE = {
    "flipped weights": lambda path: flip(path / WEIGHTS),
    "flipped architecture": lambda path: flip(path / ARCHITECTURE),
    "flipped sums": lambda path: flip(path / folders.SUMS),
    "truncated weights": lambda path: os.truncate(path / WEIGHTS, 999),
    "truncated architecture": lambda path: os.truncate(path / ARCHITECTURE, 99),
    "empty weights": lambda path: os.truncate(path / WEIGHTS, 0),
    "weights gone": lambda path: (path / WEIGHTS).unlink(),
    "architecture gone": lambda path: (path / ARCHITECTURE).unlink(),
    "sums gone": lambda path: (path / folders.SUMS).unlink(),
    "pickle": pickled,
    "JSON of 100 MB": lambda path: os.truncate(path / ARCHITECTURE, 100 * 2**20),
    "deep JSON": lambda path: refresh(path, {ARCHITECTURE: b"[" * 10**5}),
    "a list": lambda path: refresh(path, {ARCHITECTURE: b"[]"}),
    "link": lambda path: replace_by_link(path / WEIGHTS),
    "header that lies": lambda path: lying_header(path, beyond_the_file),
    "header of a terabyte": lambda path: refresh(path, {WEIGHTS: struct.pack("<Q", 2**40) + b"{}"}),
    "missing tensor": lambda path: rewrite_weights(path, lambda t: t.pop(FIRST)),
    "wrong shape": lambda path: rewrite_weights(
        path, lambda t: t.update({FIRST: torch.zeros(2, 2)})
    ),
    "wrong type": lambda path: rewrite_weights(path, lambda t: t.update({FIRST: t[FIRST].int()})),
    "tensor too many": lambda path: rewrite_weights(path, lambda t: t.update(more=torch.ones(1))),
    "a class as a path": lambda path: rewrite(
        path, lambda d: d["part"].update({"class": "../../precious"})
    ),
    "a class that is no name": lambda path: rewrite(
        path, lambda d: d["part"].update({"class": []})
    ),
    "arguments of another": lambda path: rewrite(
        path, lambda d: d["part"].update(arguments={"prior": 3})
    ),
    "a share of nothing": lambda path: rewrite(path, lambda d: d.update(part={"shared": 7})),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_told_and_nothing_is_run(damage, tmp_path):
    small_vae().save(tmp_path / "model")
    DAMAGE[damage](tmp_path / "model")
    with pytest.raises(pv.CheckpointError, match=r"damaged|not imported"):
        pv.load(tmp_path / "model")
    assert not (tmp_path / "canary").exists()
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))  # which would have run
    assert (tmp_path / "canary").exists()


def test_saving_never_replaces_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(pv.CheckpointError, match=r"no saved part \('thesis\.tex'\)"):
        small_vae().save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def save_and_die(path, vae, stage):
    fatal = killing_at(stage)
    os.fsync = fatal(os.fsync)
    Path.rename = fatal(Path.rename)
    Path.open = fatal(Path.open)
    shutil.rmtree = fatal(shutil.rmtree)
    folders.tempfile.mkdtemp = fatal(folders.tempfile.mkdtemp)
    vae.save(path)


@fork
def test_killed_at_every_stage_of_a_save_the_old_or_the_new_model_is_there(tmp_path):
    models = [small_vae() for _ in range(2)]
    path, found, stage = tmp_path / "model", set(), 0
    models[0].save(path)
    while True:
        stage += 1
        code = in_child(lambda: save_and_die(path, models[1], stage))  # noqa: B023
        weights = next(pv.load(path).parameters())
        now = [torch.equal(weights, next(model.parameters())) for model in models]
        assert any(now)
        found.add(now.index(True))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        models[0].save(path)
        assert torch.equal(next(pv.load(path).parameters()), next(models[0].parameters()))
    assert stage > 10
    assert found == {0, 1}


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
        with pytest.raises(OSError, match="File too large"):
            pv.report(vae, fit, x, tmp_path, num_samples=3)

    assert in_child(report_again) == 0
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if len(before[name]) > limit)


@fork
def test_a_read_only_folder_is_refused_before_training_and_survived_within():
    def as_nobody():
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


def test_a_data_file_that_changed_or_was_truncated_between_runs_is_told(tmp_path):
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

        with pytest.raises((RuntimeError, ConnectionError)):  # torch's own words for it
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
