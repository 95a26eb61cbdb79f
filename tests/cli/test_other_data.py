"""The command line on arrays, counts and images, and what it does not overwrite."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.cli.sources import Source
from tests.support.commands import TRAIN, people, refused, run


def test_a_decoder_that_no_page_runs_has_no_explorer(tmp_path):
    module, table, out = tmp_path / "own.py", tmp_path / "table.csv", tmp_path / "run"
    pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"]).to_csv(
        table, index=False
    )
    module.write_text(
        """
import pyro_vae as pv

class Sine(pv.Part):
    def forward(self, z):
        return z.sin()

def vae(data):
    size = data.event_shape[0]
    guide = pv.guides.DiagonalNormal(pv.networks.MLP(size, [4], 2 * size))
    return pv.VAE(pv.priors.StandardNormal(size), pv.likelihoods.Normal(Sine()), guide)
"""
    )
    said = run("train", table, "--module", module, "--out", out, *TRAIN)
    assert "No explorer.html: the explorer cannot run a Sine in the page" in " ".join(said.split())
    assert not (out / "explorer.html").exists()
    assert 'href="explorer.html"' not in (out / "page.html").read_text()


def test_arrays_in_files_are_trained_and_sampled(tmp_path):
    x = np.random.default_rng(0).normal(3.0, 2.0, (60, 2, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", train=x, other=np.zeros(3))
    path, out = tmp_path / "x.npz", tmp_path / "run"
    assert "expected the key of one" in refused("train", path)
    run("train", path, "--key", "train", "--test", path, "--no-page", "--out", out, *TRAIN)
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["num_train"], metrics["num_test"]) == (54, 60)
    assert (out / "columns.png").is_file()
    run("evaluate", out, "--num-samples", 2)
    run("sample", out, "-n", 5, "--out", tmp_path / "s.npy")
    assert np.load(tmp_path / "s.npy").shape == (5, 2, 3)


def test_counts_with_a_batch_are_one_command_each(tmp_path):
    """`train` builds a ConditionalVAE of the batch, and all commands take it."""
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(0)
    batch = np.arange(80) % 2
    rate = np.exp(rng.normal(size=(80, 1)) * 0.3 + 2.0 * batch[:, None] * (np.arange(6) == 2))
    cells = anndata.AnnData(rng.poisson(rate).astype(np.float32))
    cells.obs["lab"] = [f"lab{b}" for b in batch]
    path, out = tmp_path / "cells.h5ad", tmp_path / "run"
    cells.write_h5ad(path)
    words = ["--option", "batch=lab", "--out", out, *TRAIN]
    said = run("train", path, *words)
    assert "vae = pv.ConditionalVAE(" in said
    assert {"counts.png", "metrics.json", "page.html"} <= {item.name for item in out.iterdir()}
    vae = pv.load(out / "model")
    data = vae.schema.read(path)
    x, y = data.batch(slice(None))
    scores = pv.evaluate(vae, cells, num_samples=5).log_likelihood
    np.testing.assert_array_equal(scores, pv.evaluate(vae, (x, y), num_samples=5).log_likelihood)
    reference = vae.schema.context(len(cells), lab="lab0")
    with torch.no_grad():
        q = vae.encode(cells, reference)
        assert torch.equal(q.mean, vae.encode(x, torch.tensor([1.0, 0.0]).expand(80, 2)).mean)
        assert not torch.equal(q.mean[batch == 1], vae.encode(x, y).mean[batch == 1])
    for level, expected in ({"lab": "lab9"}, "unknown level 'lab9'"), ({}, "a value for each"):
        with pytest.raises(pv.data.DataError, match=expected):
            vae.schema.context(**level)
    run("encode", out, path, "--out", tmp_path / "z.h5ad", "--num-samples", 5)
    assert anndata.read_h5ad(tmp_path / "z.h5ad").obsm["X_vae"].shape == (80, 2)
    run("score", out, path, "--out", tmp_path / "s.csv", "--num-samples", 5)
    entries = pd.read_csv(tmp_path / "s.csv").filter(like="log_p_")
    assert entries.shape == (80, 6)
    run("sample", out, "-n", 30, "--out", tmp_path / "x.csv")
    assert len(pd.read_csv(tmp_path / "x.csv")) == 30
    run("inspect", out, "--num-data", 8, "--num-samples", 30)
    assert "0 imputed values" in run("impute", out, path, "--out", tmp_path / "full.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "full.npy"), x)


def test_test_rows_do_not_decide_the_numbers_of_parts(tmp_path):
    """Two files that differ in held-out rows only give the same parts and validation scores."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a": rng.normal(size=60),
            "b": rng.lognormal(size=60),
            "c": rng.poisson(3, 60),
            "d": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 99, 60), "D"),
        }
    )
    rows, array = np.arange(60), rng.normal(size=(60, 2, 3))
    held = pv.data.Dataset(torch.tensor(rows)[:, None]).hold_out(0.1, seed=0)[1][:].flatten()
    other, other_array = frame.copy(), array.copy()
    other.loc[held.numpy(), ["a", "b"]] *= 3
    other_array[held] *= 5
    found = []
    for name, table, x in (("one", frame, array), ("two", other, other_array)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        np.save(tmp_path / f"{name}.npy", x)
        for ending in ("csv", "npy"):
            training, validation, test = Source(str(tmp_path / f"{name}.{ending}")).split()
            assert training.schema is validation.schema is test.schema
            torch.manual_seed(0)
            vae = pv.suggest(training, latent_dim=2, show=False)
            schema = training.schema
            columns = getattr(schema, "columns", [schema])
            found.append(
                (
                    [(column.shift, column.unit) for column in columns],
                    pv.evaluate(vae, validation, num_samples=5).log_likelihood,
                )
            )
            np.testing.assert_allclose(
                columns[0].shift,
                float(training[:].flatten(1)[:, 0].mean())
                if ending == "csv"
                else float(training[:].mean()),
                atol=1e-5,
            )
    for one, two in zip(found[:2], found[2:], strict=True):
        assert one[0] == two[0]
        np.testing.assert_array_equal(one[1], two[1])


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Return the data, a table for tests, and the folder of a run on them."""
    folder = tmp_path_factory.mktemp("small")
    for seed, name in enumerate(("train.csv", "test.csv")):
        people(seed, rows=60)[["age", "visits"]].to_csv(folder / name, index=False)
    train, test = folder / "train.csv", folder / "test.csv"
    run("train", train, "--test", test, "--out", folder / "run", "--no-page", *TRAIN)
    return folder


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["encode", "run", "new.csv"], "--out"),
        (["score", "run", "new.csv"], "--out"),
        (["impute", "run", "new.csv"], "--out"),
        (["impute", "run", "new.csv", "--out", "full.csv"], "--intervals"),
        (["sample", "run"], "--out"),
        (["explore", "run"], "--out"),
        (["inspect", "run"], "--html"),
        (["train", "new.csv"], "--out"),
    ],
)
@pytest.mark.parametrize("spelling", ["as given", "another path", "a link"])
def test_outputs_never_replace_data(small_run, monkeypatch, command, option, spelling):
    monkeypatch.chdir(small_run)
    people(3, rows=30)[["age", "visits"]].to_csv("new.csv", index=False)
    link = small_run / "link.csv"
    for name in ["new.csv"] if "new.csv" in command else ["train.csv", "test.csv"]:
        before = (small_run / name).read_bytes()
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        path = {"as given": name, "another path": f"run/../{name}", "a link": "link.csv"}[spelling]
        assert option in refused(*command, option, path)
        assert (small_run / name).read_bytes() == before


@pytest.mark.parametrize("place", ["images", "images/run", "images/a/../run"])
def test_runs_are_not_written_into_a_folder_of_data(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)
    (tmp_path / "images/a").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"images/a/{number}.png")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert "outside it" in refused("train", "images", "--out", place, *TRAIN)
    assert "outside it" in refused("describe", "images", "--out", place)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_images_given_their_class_have_a_page(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("even", "odd"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 256, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    said = run("train", tmp_path / "images", "--context", "label", "--out", tmp_path / "r", *TRAIN)
    assert "vae = pv.ConditionalVAE(" in said
    assert "Posterior predictive against x" in (tmp_path / "r" / "page.html").read_text()
