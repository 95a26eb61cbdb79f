"""Saved models: formats, damage, kills while saving."""

import functools
import json
import os
import pickle
import shutil
import signal
import struct
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import pyro_vae as pv
from pyro_vae.checkpointing import model_folder as checkpoints
from pyro_vae.runtime import files as folders
from tests.models.test_vae import small_vae
from tests.support.runs import (
    Canary,
    flip,
    fork,
    in_child,
    killing_at,
    replace_by_link,
)

FIXTURE = Path(__file__).parents[1] / "fixtures" / "model-format-1"
WEIGHTS, ARCHITECTURE = checkpoints.WEIGHTS, checkpoints.ARCHITECTURE


def test_a_model_of_the_older_format_still_loads_and_says_the_same():
    assert json.loads((FIXTURE / ARCHITECTURE).read_text())["format"] == 1
    vae = pv.load(FIXTURE, old_format=True)
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


def test_models_of_many_named_columns_are_loaded(tmp_path):
    names = [f"ENSG{i:011d}" for i in range(40_000)]
    schema = pv.data.CountsSchema(names)
    vae = small_vae()
    vae.set_argument("schema", schema)
    vae.save(tmp_path / "model")
    assert pv.load(tmp_path / "model").schema.genes == tuple(names)


def test_models_that_could_not_be_loaded_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_ARCHITECTURE_BYTES", 500)
    vae, x = small_vae(), torch.zeros(4, 1, 4, 4)
    before = vae.state_dict()
    with pytest.raises(pv.CheckpointError, match="expected at most 500: pass long"):
        pv.fit(vae, x, epochs=1, progress=False, out=tmp_path / "run")
    with pytest.raises(pv.CheckpointError, match="expected at most 500"):
        vae.save(tmp_path / "model")
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert not (tmp_path / "model").exists()


def encoder_of(vae):
    return vae.guide.posterior.encoder


def tie(vae):
    vae.model.likelihood.decoder.layers[0].bias = encoder_of(vae).layers[0].bias


def no_bias(vae):
    encoder_of(vae).layers[0].bias = None


def resize(vae):
    vae.guide.posterior.encoder = pv.networks.MLP((1, 4, 4), [8], 6)


def renamed(vae):
    encoder_of(vae).layers[0] = nn.Sequential(encoder_of(vae).layers[0])


CHANGES = {
    "prune": lambda vae: prune.l1_unstructured(encoder_of(vae).layers[0], "weight", 0.5),
    "weight_norm": lambda vae: parametrizations.weight_norm(encoder_of(vae).layers[0]),
    "another size": resize,
    "shared": tie,
    "deleted": no_bias,
    "renamed": renamed,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("by", ["save", "fit"])
def test_a_changed_model_that_could_not_be_loaded_is_not_saved(by, change, tmp_path):
    vae, folder, x = small_vae(), tmp_path / "run", torch.zeros(4, 1, 4, 4)
    CHANGES[change](vae)
    before = nn.utils.parameters_to_vector(vae.parameters()).clone()
    with pytest.raises(pv.CheckpointError, match=r"saved VAE could not be loaded.*constructor"):
        vae.save(folder) if by == "save" else pv.fit(vae, x, epochs=1, out=folder)
    assert not folder.exists()
    assert torch.equal(nn.utils.parameters_to_vector(vae.parameters()), before)


def test_a_model_with_another_layer_is_saved_with_a_warning(tmp_path):
    vae = small_vae()
    encoder_of(vae).layers[1] = nn.Hardtanh(0.0, 2.0)
    with pytest.warns(UserWarning, match=r"Tanh\(\) in the place of .*Hardtanh\(min_val=0.0"):
        vae.save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_vae().save(tmp_path / "model")
