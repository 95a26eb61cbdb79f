"""Whatever happens to the folder of a run, its result is kept, or it is refused before training."""

import errno
import fcntl
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.reporting.html_page import _picture
from pyro_vae.runtime import files
from pyro_vae.runtime.folder_lock import locked

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
DESKTOP = [".DS_Store", "._weights.safetensors", ".nfs000012", ".fuse_hidden01", "Thumbs.db",
           "desktop.ini", ".directory"]  # fmt: skip


def vae(encoder=None):
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(2, [4], 6)),
        pv.guides.DiagonalNormal(encoder or pv.networks.MLP(6, [4], 4)),
    )


def fit(out, pair=None, **settings):
    return pv.fit(pair or vae(), X, epochs=2, batch_size=16, out=out, progress=False, **settings)


def during(change):
    """Return an optimizer after the first step of which the folder is changed."""
    calls = []

    def adam(parameters):
        made = torch.optim.Adam(parameters)
        made.register_step_post_hook(lambda *_: calls.append(1) or len(calls) > 1 or change())
        return made

    return adam


def history(folder):
    return json.loads((folder / "history.json").read_text())


@pytest.mark.filterwarnings("ignore:.*has the results of an earlier run")
@pytest.mark.thinned(4)
@pytest.mark.parametrize("name", DESKTOP)
@pytest.mark.parametrize("place", ["model", ".model.old", "checkpoints", "results-before", "."])
def test_files_of_desktops_block_no_run(name, place, tmp_path):
    fit(tmp_path)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / name).write_bytes(b"x")
    result = fit(tmp_path)
    assert history(tmp_path) == result.history
    pv.load(tmp_path / "model")


@pytest.mark.parametrize("name", [*DESKTOP, "notes.txt"])
def test_files_that_appear_during_a_run_lose_no_result(name, tmp_path):
    def appear():
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / name).write_bytes(b"x")

    if name in DESKTOP:
        result, model = fit(tmp_path, optimizer=during(appear)), tmp_path / "model"
    else:
        with pytest.warns(UserWarning, match="the trained model was saved to"):
            result = fit(tmp_path, optimizer=during(appear))
        (model,) = tmp_path.glob("model-*")
        assert (tmp_path / "model" / name).read_bytes() == b"x"
    assert history(tmp_path) == result.history
    pv.load(model)


def test_a_model_folder_that_cannot_be_renamed_loses_no_result(tmp_path, monkeypatch):
    real = Path.rename

    def rename(self, target):
        if Path(target).name == "model":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.warns(UserWarning, match="the trained model was saved to"):
        fit(tmp_path)
    (model,) = tmp_path.glob("model-*")
    pv.load(model)


def test_a_mount_point_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "model")
    with pytest.raises(pv.CheckpointError, match="is a mount point"):
        fit(tmp_path)


@pytest.mark.filterwarnings("ignore:the checkpoint of step")
def test_results_are_not_written_into_a_folder_that_another_run_has_taken(tmp_path):
    run, other = tmp_path / "run", []

    def take():
        shutil.rmtree(run)
        run.mkdir()
        other.append(locked(run))
        other[0].__enter__()

    with pytest.warns(UserWarning, match="another run has locked it since.*weights are in the"):
        fit(run, optimizer=during(take), checkpoint_seconds=0)
    assert [path.name for path in run.iterdir() if not path.name.startswith(".lock")] == []
    other[0].__exit__(None, None, None)


@pytest.mark.parametrize("number", ["ENOLCK", "EOPNOTSUPP", "ENOTSUP"])
def test_a_file_system_without_locks_warns(number, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(getattr(errno, number), "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks"):
        result = fit(tmp_path)
    assert history(tmp_path) == result.history


@pytest.mark.filterwarnings("ignore:the (checkpoint|trained)")
@pytest.mark.parametrize("full", ["files", "folders"])
def test_a_disk_that_is_full_at_the_start(full, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if full == "files":
        monkeypatch.setattr(files, "_write", refuse)
        assert fit(tmp_path).stopped == "finished"
        return
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, "mkdir", lambda self, *_, **__: self.is_dir() or refuse())
    with pytest.raises(pv.CheckpointError, match="No space left on device"):
        fit(tmp_path / "run")


@pytest.mark.parametrize("length", [1, 244, 245, 250, 251, 255, 256, 300])
@pytest.mark.parametrize("letter", ["m", "é"])
def test_names_of_any_length(length, letter, tmp_path):
    path = tmp_path / (letter * length)
    calls = [lambda: fit(path), lambda: (vae().save(path / "m"), vae().save(path / "m")),
             lambda: pv.load(path / "m")]  # fmt: skip
    if len(path.name.encode()) > 255:
        calls += [lambda: pv.data.load("frey", root=path, download=False)]
        for call in calls:
            with pytest.raises(ValueError, match="a name of more than 255"):
                call()
        return
    for call in calls:
        call()
    vae().save(path / path.name)
    vae().save(path / path.name)
    pv.load(path / path.name)


class Net(pv.Part, nn.Module):
    """A network with numbers of numpy as arguments."""

    def __init__(self, width, scale, flag):
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 4), float(scale)

    def forward(self, x):
        return self.layer(x) * self.scale


def test_numbers_of_numpy_are_arguments_of_saved_parts(tmp_path):
    fit(tmp_path, vae(Net(np.int64(3), np.float32(0.5), np.bool_(True))))
    arguments = pv.load(tmp_path / "model").guide.posterior.encoder.build_arguments
    assert arguments == {"width": 3, "scale": 0.5, "flag": True}


@pytest.mark.parametrize("data", [b"", b"secret", b"\x89PNG", b"GIF89a"])
def test_only_png_files_enter_a_page(data, tmp_path):
    (tmp_path / "samples.png").write_bytes(data)
    with pytest.raises(pv.CheckpointError, match="is not a PNG image"):
        _picture(tmp_path, "samples.png")


@pytest.mark.parametrize("num_samples", [10**8 + 1, 10**9, 2**62, 10**30])
def test_an_evaluation_of_days_is_refused(num_samples):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"takes about .* hours and .* GB.*allow_large=True"):
        pv.evaluate(vae(), X, num_samples=num_samples)
    assert time.process_time() - start < 10
    for call in (pv.diagnose, pv.refine, pv.gaps):
        with pytest.raises(ValueError, match="from 1 to 100000000"):
            call(vae(), X, num_samples=num_samples)


def test_an_evaluation_is_timed_by_its_size(monkeypatch):
    monkeypatch.setattr("pyro_vae.evaluation.UNTIMED", 100)
    small = pv.evaluate(vae(), X, num_samples=20)
    monkeypatch.setattr("pyro_vae.evaluation.MAX_HOURS", 1e-9)
    with pytest.raises(ValueError, match="pass fewer samples or data"):
        pv.evaluate(vae(), X, num_samples=20)
    allowed = pv.evaluate(vae(), X, num_samples=20, allow_large=True)
    assert np.array_equal(small.log_likelihood, allowed.log_likelihood)
