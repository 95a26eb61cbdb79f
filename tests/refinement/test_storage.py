"""Saved refined posteriors: the same numbers after loading, and refusals of all else."""

import json
import shutil

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.refinement import storage
from tests.support.linear_gaussian import MeanFieldPosterior, linear_vae


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(1)
    vae, x = linear_vae(MeanFieldPosterior)
    x = x[:6]
    posterior = pv.refine(vae, x, num_samples=60, num_rounds=1, seed=7)
    path = tmp_path_factory.mktemp("runs") / "run" / "refined"
    posterior.save(path)
    return vae, x, posterior, path


def test_a_loaded_posterior_is_the_saved_one(saved):
    vae, x, posterior, path = saved
    loaded = pv.RefinedPosterior.load(path, vae, x)
    for name in ("log_weights", "khat", "ess", "log_likelihood"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(posterior, name))
    for name in ("num_rounds", "seed", "dataset", "binarization", "num_samples", "num_data"):
        assert getattr(loaded, name) == getattr(posterior, name)
    one, other = (p.sample(5, num_candidates=30, seed=2)["z"] for p in (posterior, loaded))
    assert torch.equal(one, other)
    z = {"z": one}
    assert torch.equal(posterior.log_prob(z), loaded.log_prob(z))


def test_a_posterior_is_replaced_and_other_files_are_not(saved, tmp_path):
    posterior = saved[2]
    for _ in range(2):
        posterior.save(tmp_path / "refined")
    assert {path.name for path in (tmp_path / "refined").iterdir()} == set(storage.FILES)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(pv.CheckpointError, match=r"no saved posterior \('notes.txt'\)"):
        posterior.save(tmp_path / "other")
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"


def test_another_model_or_other_data_are_refused(saved):
    vae, x, _, path = saved
    with pytest.raises(pv.CheckpointError, match=r"another model or other data: .* of datum 4 was"):
        pv.RefinedPosterior.load(path, vae, torch.cat([x[:4], x[4:] + 0.1]))
    with pytest.raises(pv.CheckpointError, match="a posterior of 6 data, got 5"):
        pv.RefinedPosterior.load(path, vae, x[:5])
    other, _ = linear_vae(MeanFieldPosterior)
    with pytest.raises(pv.CheckpointError, match="another model or other data"):
        pv.RefinedPosterior.load(path, other, x)
    wide, _ = linear_vae(MeanFieldPosterior, latent_dim=4)
    with pytest.raises(pv.CheckpointError, match="3 unconstrained latents, and the model has 4"):
        pv.RefinedPosterior.load(path, wide, x)


@pytest.mark.parametrize("name", storage.FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_damaged_files_are_refused(saved, tmp_path, name, damage):
    vae, x, _, path = saved
    folder = tmp_path / "refined"
    shutil.copytree(path, folder)
    content = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "cut":
        (folder / name).write_bytes(content[: len(content) // 3])
    else:
        (folder / name).write_bytes(content[:8] + b"\x00\xff" + content[10:])
    with pytest.raises(pv.CheckpointError, match="damaged"):
        pv.RefinedPosterior.load(folder, vae, x)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 99}, "upgrade pyro_vae"),
        ({"num_samples": 61}, r"expected floats of shape \(61, 6\) for 'log_weights'"),
        ({"dim": "3"}, "to be an integer"),
        ({"dim": 10**12}, "expected floats of shape"),
        ({"dataset": 3}, "to be a string"),
    ],
)
def test_settings_that_do_not_fit_are_refused(saved, tmp_path, change, sentence):
    from pyro_vae.runtime.files import json_bytes, write_files

    vae, x, _, path = saved
    folder = tmp_path / "refined"
    shutil.copytree(path, folder)
    settings = json.loads((folder / storage.SETTINGS).read_text()) | change
    arrays = (folder / storage.ARRAYS).read_bytes()
    write_files(folder, {storage.SETTINGS: json_bytes(settings), storage.ARRAYS: arrays})
    with pytest.raises(pv.CheckpointError, match=sentence):
        pv.RefinedPosterior.load(folder, vae, x)
