"""Conditional models of tables and images, from `suggest` and from the command line."""

import json

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.data.errors import DataError

N = 120


def frame(seed=0, missing=False):
    rng = np.random.default_rng(seed)
    group = rng.choice(["u", "v", "w"], N)
    found = pd.DataFrame(
        {
            "a": rng.normal(size=N) + 3.0 * (group == "u"),
            "group": group,
            "n": rng.poisson(3, N),
            "age": rng.normal(40, 5, N),
            "dose": rng.lognormal(1.0, 1.0, N),
            "member": rng.random(N) < 0.5,
        }
    )
    if missing:
        found.loc[::7, "a"] = np.nan
    return found


CONTEXT = ["group", "dose", "member"]


@pytest.mark.parametrize("missing", [False, True])
def test_columns_are_context(missing):
    table = frame(missing=missing)
    data = pv.data.open(table, context=CONTEXT)
    assert data.schema.names() == ("a", "n", "age")
    (y,) = data.context
    levels = np.searchsorted(["u", "v", "w"], table["group"])
    log = np.log(table["dose"])
    expected = np.column_stack(
        [
            np.eye(3)[levels],
            (log - log.mean()) / log.std(ddof=0),
            ~table["member"],
            table["member"],
        ]
    )
    np.testing.assert_allclose(y, expected, atol=1e-6)
    torch.manual_seed(0)
    vae = pv.suggest(data, 2, hidden=[8], show=False)
    assert isinstance(vae, pv.ConditionalVAE)
    assert vae.model.likelihood(torch.zeros(4, 2), y[:4]).batch_shape == (4,)
    with torch.no_grad():
        different = vae.decode(torch.zeros(2, 2), y[:1] + torch.tensor([[0.0], [1.0]])).mean
    assert not torch.equal(*different)  # the decoder reads the context
    pv.fit(vae, data, epochs=2, batch_size=32, progress=False, compile=False)
    scores = [
        pv.evaluate(vae, rows, num_samples=3).elbo for rows in (data, table, pl.from_pandas(table))
    ]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


def test_a_conditional_model_learns_the_means_of_groups():
    table = frame()[["a", "group"]]
    torch.manual_seed(0)
    data = pv.data.open(table, context=["group"])
    vae = pv.suggest(data, 2, hidden=[16], show=False)
    pv.fit(vae, data, epochs=150, batch_size=40, progress=False, compile=False, seed=0)
    means = [float(vae.sample(vae.schema.context(2000, group=g))[:, 0].mean()) for g in "uvw"]
    expected = table.groupby("group")["a"].mean()
    error = np.sqrt(2 / 40 + 1 / 2000)  # of the means of data, and of samples
    np.testing.assert_allclose(means, expected, atol=4 * error)


def test_context_is_restored_and_given_by_name():
    table = frame()
    data = pv.data.open(table, context=CONTEXT)
    (y,) = data.context
    restored = data.schema.restore(data[:], context=y)
    assert list(restored.columns) == ["a", "n", "age", *CONTEXT]
    assert restored["group"].tolist() == table["group"].tolist()
    assert restored["member"].tolist() == table["member"].tolist()
    np.testing.assert_allclose(restored["dose"], table["dose"], rtol=1e-5)
    row = table.iloc[5]
    given = data.schema.context(3, **{name: row[name] for name in CONTEXT})
    torch.testing.assert_close(given, y[[5, 5, 5]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="group"), "'group' is missing"),
        (lambda t: t.assign(group="z"), "'group', row 0: expected the levels.*got 'z'"),
        (lambda t: t.assign(dose=[*t.dose[:7], np.nan, *t.dose[8:]]), "'dose', row 7: .*missing"),
        (lambda t: t.assign(dose=-1.0), "'dose', row 0: expected numbers above 0"),
        (lambda t: t.to_numpy(), "expected a table with names"),
    ],
)
def test_other_contexts_are_refused(change, message):
    schema = pv.data.open(frame(), context=CONTEXT).schema
    with pytest.raises(DataError, match=message):
        schema.read(change(frame()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": ["size"]}, r"context='size' is not a column"),
        ({"context": ["name"]}, "column 'name': identifier is no kind of context"),
        ({"context": ["group"], "schema": 0}, "got both"),
    ],
)
def test_wrong_options_are_refused(options, message):
    table = frame().assign(name=[f"row {i}" for i in range(N)])
    if "schema" in options:
        options = options | {"schema": pv.data.open(table).schema}
    with pytest.raises(DataError, match=message):
        pv.data.open(table, **options)
    data = pv.data.open(table, context=["group"])
    with pytest.raises(DataError, match=r"expected a value for each of \['group'\]"):
        data.schema.context(dose=1.0)
    with pytest.raises(DataError, match="VampPrior"):
        pv.suggest(data, prior="vamp", show=False)


def folder_of_images(folder, size):
    rng = np.random.default_rng(0)
    for name, grey in (("cat", 60), ("dog", 190)):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(grey - 50, grey + 50, (size, size))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(("size", "hidden"), [(4, [8]), (32, None)])
def test_classes_of_images_are_context(size, hidden, tmp_path):
    folder = folder_of_images(tmp_path / "images", size)
    data = pv.data.open(folder, context=["label"])
    assert torch.equal(data.context[0], torch.eye(2)[data.labels])
    torch.manual_seed(0)
    network = None if hidden else {"channels": [4, 8]}
    vae = pv.suggest(data, 2, hidden=hidden, network=network, show=False)
    pv.fit(vae, data, epochs=1, batch_size=20, progress=False, compile=False)
    vae.save(tmp_path / "model")
    loaded = pv.load(tmp_path / "model")
    y = loaded.schema.context(3, label="dog")
    assert torch.equal(y, torch.tensor([[0.0, 1.0]] * 3))
    assert loaded.sample(y).shape == (3, 1, size, size)
    scores = [pv.evaluate(v, d, num_samples=2).elbo for v, d in ((vae, data), (loaded, folder))]
    np.testing.assert_array_equal(*scores)
    with pytest.raises(DataError, match=r"context=\['label'\] needs images in folders"):
        pv.data.open(folder / "cat", context=["label"])
    with pytest.raises(DataError, match="unknown context 'size'"):
        pv.data.open(folder, context=["size"])
    with pytest.raises(DataError, match="unknown label 'cow'"):
        loaded.schema.context(label="cow")


def test_arrays_with_missing_values_and_context():
    """Masks and standardized inputs pass the context to their network."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(5.0, 2.0, (40, 2, 3))).float()
    x[::3, 1, 2] = torch.nan
    data = pv.data.Dataset(x, context=(torch.eye(2)[torch.arange(40) % 2],))
    torch.manual_seed(0)
    vae = pv.suggest(data, 2, hidden=[8], show=False)
    pv.fit(vae, data, epochs=1, batch_size=20, progress=False, compile=False)
    assert np.isfinite(pv.evaluate(vae, data, num_samples=2).elbo).all()
    network = pv.networks.Standardized(pv.networks.MLP(5, [8], 6))
    with pytest.raises(ValueError, match="does not take y: wrap it in networks"):
        pv.ConditionalVAE(vae.model.prior, vae.model.likelihood, pv.guides.DiagonalNormal(network))


def run(*words):
    done = CliRunner().invoke(cli.app, [*map(str, words)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_context_is_an_option_of_the_command_line(tmp_path):
    table = frame(missing=True)
    table.to_csv(tmp_path / "t.csv", index=False)
    small = ["--hidden", 8, "--latent-dim", 2, "--epochs", 1, "--num-samples", 4]
    words = ["--context", "group", "--context", "member", "--out", tmp_path / "run"]
    said = run("train", tmp_path / "t.csv", *words, *small)
    assert "vae = pv.ConditionalVAE(" in said
    assert "category, context" in said
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["source"]["options"]["context"] == ["group", "member"]
    run("evaluate", tmp_path / "run", "--num-samples", 4)
    run("score", tmp_path / "run", tmp_path / "t.csv", "--out", tmp_path / "s.csv")
    assert len(pd.read_csv(tmp_path / "s.csv")) == N
    run("sample", tmp_path / "run", "-n", 30, "--out", tmp_path / "x.csv")
    samples = pd.read_csv(tmp_path / "x.csv")
    assert {*samples["group"]} <= {"u", "v", "w"}
    assert {"a", "n", "age", "dose", "group", "member"} == {*samples}
    folder = folder_of_images(tmp_path / "images", 4)
    words = ["--context", "label", "--out", tmp_path / "pictures", "--no-page"]
    assert "vae = pv.ConditionalVAE(" in run("train", folder, *words, *small)
    assert (tmp_path / "pictures" / "samples.png").is_file()
