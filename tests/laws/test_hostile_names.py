"""Names, numbers that are not finite, and special files: shown, written and kept safely."""

import json
import math
import os
import socket

import pytest
import torch

import pyro_vae as pv
from pyro_vae.arguments import ArgumentError
from pyro_vae.arguments.checks import MAX_ENTRIES
from pyro_vae.reporting import model_card
from pyro_vae.reporting.run_report import read_metrics
from pyro_vae.runtime.files import write_file, write_json
from pyro_vae.runtime.tables import printable

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
NESTED = [torch.zeros(2), torch.zeros(3)]
NAMES = [
    "<script>alert(1)</script>", "[x](javascript:alert(1))", "a|b", "a\x1b[31m", "\x07", "\x9b2J",
    "\u202eevil", "two\nlines", "&lt;b&gt;", "![x](http://x)",
]  # fmt: skip


def vae():
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(pv.networks.MLP(2, [4], 6)),
        pv.guides.DiagonalNormal(pv.networks.MLP(6, [4], 4)),
    )


def strictly(path):
    """Return the content of a JSON file; fail for NaN and Infinity, which JSON lacks."""

    def refuse(constant):
        raise AssertionError(f"{constant} in {path.name}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("num_data", [1, 3])
def test_files_of_a_run_are_json_and_its_results_stay(num_data, tmp_path):
    pair = vae()
    fit = pv.fit(pair, X, validation=X[:num_data], epochs=2, progress=False, out=tmp_path)
    for _ in range(2):  # the second report is one of the same run: nothing is moved
        pv.report(pair, fit, X[:num_data], tmp_path, num_samples=3)
    assert not (tmp_path / "results-before").exists()
    metrics = strictly(tmp_path / "metrics.json")
    history = strictly(tmp_path / "history.json")
    assert (metrics["test_elbo_se"] is None) == (num_data == 1)
    assert (history[0]["validation_elbo_se"] is None) == (num_data == 1)
    assert math.isnan(read_metrics(tmp_path)["test_elbo_se"]) == (num_data == 1)
    resumed = pv.fit(
        pair, X, validation=X[:num_data], epochs=3, progress=False, out=tmp_path, resume=True
    )
    assert len(resumed.history) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.5, -0.0])
def test_numbers_that_are_not_finite_are_null(value, tmp_path):
    write_json(tmp_path / "x.json", {"a": [value, {"b": (value,)}], "c": "NaN", "d": 3})
    expected = value if math.isfinite(value) else None
    found = strictly(tmp_path / "x.json")
    assert found == {"a": [expected, {"b": [expected]}], "c": "NaN", "d": 3}


def pipe(path):
    os.mkfifo(path)


def unix_socket(path):
    os.chdir(path.parent)  # names of sockets have at most 108 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


@pytest.mark.parametrize("make", [pipe, unix_socket])
@pytest.mark.parametrize("name", ["x.html", "history.json", "metrics.json", "latents.png"])
def test_special_files_are_kept(make, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    before = (tmp_path / name).lstat()
    pair = vae()
    fit = pv.fit(pair, X, epochs=1, progress=False)
    writers = {
        "x.html": lambda: write_file(tmp_path / name, b"x"),
        "history.json": lambda: pv.fit(pair, X, epochs=1, progress=False, out=tmp_path),
        "metrics.json": lambda: pv.report(pair, fit, X, tmp_path, num_samples=3),
        "latents.png": lambda: pv.report(pair, fit, X, tmp_path, num_samples=3),
    }
    with pytest.raises(pv.CheckpointError, match="is a pipe, a socket or a device"):
        writers[name]()
    after = (tmp_path / name).lstat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_card_has_no_markup_of_names(name, tmp_path):
    metrics = {"dataset": name, "stopped": name, "proposal": name, "versions": {name: name}}
    trust = {"verdict": name, "reasons": [name], "num_data": 3}
    model_card.write(tmp_path, metrics, vae(), trust)
    card = (tmp_path / "model_card.md").read_text()
    for markup in ("<script", "[x](", "a|b", "\x1b", "\x07", "\x9b", "\u202e", "two\n", "<b>"):
        assert markup not in card


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printable(name):
    shown = printable(name)
    assert all(character.isprintable() for character in shown)
    assert not name.isprintable() or shown == name


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: pv.networks.MLP(torch.nested.nested_tensor(NESTED), [4], 6), ArgumentError),
        (lambda: pv.networks.MLP(2, torch.nested.nested_tensor(NESTED), 6), ArgumentError),
        (lambda: pv.networks.MLP(2, range(1, 10**12), 6), ArgumentError),
        (lambda: pv.networks.MLP(2, [1] * (MAX_ENTRIES + 1), 6), ArgumentError),
        (lambda: pv.data.Dataset(X, range(10**12)), pv.data.DataError),
        (lambda: pv.data.Dataset(X, torch.nested.nested_tensor(NESTED)), pv.data.DataError),
        (lambda: pv.data.open(torch.zeros(3, 3, device="meta")), pv.data.DataError),
        (lambda: pv.data.open(torch.zeros(3, 3).to_sparse()), pv.data.DataError),
        (lambda: pv.data.open(torch.nested.nested_tensor(NESTED)), pv.data.DataError),
        (lambda: pv.fit(vae(), X, optimizer=vae(), epochs=1), ArgumentError),
        (lambda: pv.fit(vae(), X, schedule=torch.nn.Module(), epochs=1), ArgumentError),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_arguments_without_values_and_of_any_length_are_refused(call, error):
    with pytest.raises(error):
        call()
