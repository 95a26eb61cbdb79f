"""The command line on files of users: one run of a table, and all that is done with it."""

import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from tests.support.commands import ROWS, TRAIN, people, refused, run

pytestmark = pytest.mark.xdist_group("own data")  # a module's runs are made once


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "people.csv"
    people().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def trained(table):
    """Return the folder of a run with its page."""
    out = table.parent / "run"
    options = ["--labels", "group", "--column", "visits=real", "--out", out]
    said = run("train", table, *options, *TRAIN)
    assert "vae = pv.VAE(" in said
    assert re.search(r"visits .* real", said)
    return out


@pytest.fixture(scope="module")
def other_kinds(table):
    """Return a run in which `visits` are counts, with a prior of a module, and the module."""
    module = table.parent / "my_own_parts.py"
    module.write_text(
        "import pyro_vae as pv\n"
        "class Wide(pv.priors.StandardNormal):\n"
        "    pass\n"
        "def wide(latent_dim, guide, data):\n"
        "    return Wide(latent_dim)\n"
    )
    out = table.parent / "other"
    options = ["--labels", "group", "--module", module, "--prior", "wide", "--no-page"]
    run("train", table, *options, "--out", out, *TRAIN)
    return out, module


def test_the_page_of_a_run_links_to_its_explorer(trained, tmp_path):
    page = (trained / "page.html").read_text()
    assert re.findall(r'<a href="([^"#]+)">', page) == ["explorer.html"]
    assert "<script" not in page
    explorer = (trained / "explorer.html").read_bytes()
    assert b"pv-explorer" in explorer
    assert len(explorer) < 8_000_000
    run("inspect", trained, "--html", tmp_path / "page.html", "--num-data", 20, "--num-samples", 20)
    assert "explorer.html" not in (tmp_path / "page.html").read_text()  # it is not there


def test_a_run_of_a_table_has_scores_pictures_schema_and_page(trained, table):
    names = {path.name for path in trained.iterdir()}
    pictures = {"columns.png", "dependence.png", "imputation.png", "latents.png"}
    assert {*pictures, "metrics.json", "page.html", "posterior.nc", "schema.json"} <= names
    metrics = json.loads((trained / "metrics.json").read_text())
    assert (metrics["num_train"], metrics["num_test"]) == (96, 12)
    assert metrics["source"]["data"] == str(table)
    assert metrics["source"]["options"] == {"labels": "group", "columns": {"visits": "real"}}
    schema = json.loads((trained / "schema.json").read_text())
    kinds = {column["name"]: column["kind"] for column in schema["columns"]}
    assert kinds == {
        "name": "identifier", "age": "real", "visits": "real", "town": "category",
        "member": "binary", "joined": "date",
    }  # fmt: skip
    page = (trained / "page.html").read_text()
    assert page.count("<img") == len([*trained.glob("*.png")]) + 4  # khat, gaps, KL, aggregate
    assert "identifier, left out" in page


def test_a_run_knows_its_test_rows(trained, table):
    said = run("evaluate", trained, "--num-samples", 30)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert f"{metrics['test_log_likelihood']:.2f}" in said
    data = pv.load(trained / "model").schema.read(table)
    rest, _ = data.hold_out(0.1, seed=0)
    assert len(rest) == ROWS - 12
    assert f"{ROWS:,} data" in run("evaluate", trained, table, "--num-samples", 2)


def test_rows_are_encoded_and_scored(trained, table, tmp_path):
    run("encode", trained, table, "--out", tmp_path / "z.csv", "--num-samples", 30)
    z = pd.read_csv(tmp_path / "z.csv")
    vae = pv.load(trained / "model")
    q = vae.encode(str(table))
    right = torch.stack([q.mean, q.stddev], -1).flatten(1).detach().numpy()
    columns = ["z0_mean", "z0_sd", "z1_mean", "z1_sd"]
    np.testing.assert_allclose(z[columns], right, rtol=1e-5, atol=1e-6)
    assert z["class"].tolist() == people()["group"].tolist()
    said = run("score", trained, table, "--out", tmp_path / "s.csv", "--num-samples", 30,
               "--false-alarms", 0.25)  # fmt: skip
    s = pd.read_csv(tmp_path / "s.csv")
    np.testing.assert_allclose(s["log_p"], z["log_p"], rtol=1e-5)
    assert (s.loc[people()["age"].isna(), "log_p_age"] == 0).all()
    # The 12 validation rows: floor(0.25 * 13) = 3 of them are at or below the threshold.
    assert "from 12 validation rows: 23.1% of rows like them" in said
    threshold = float(re.search(r"log p\(x\) = (\S+)", said)[1])
    assert s["below_threshold"].tolist() == [bool(value < threshold) for value in s["log_p"]]
    entries = [f"log_p_{name}" for name in vae.schema.names()]
    bound = s[entries].sum(axis=1) - s["kl"]  # the ELBO of each row, by two sets of samples
    assert abs((bound - s["log_p"]).mean()) < 1.0
    assert "too few" in run("score", trained, table, "--out", tmp_path / "s.csv",
                            "--num-samples", 2, "--false-alarms", 0.01)  # fmt: skip


def test_missing_values_are_filled_and_others_kept(trained, table, tmp_path):
    out, intervals = tmp_path / "full.csv", tmp_path / "intervals.csv"
    run("impute", trained, table, "--out", out, "--intervals", intervals, "--num-samples", 50)
    before, full = pd.read_csv(table), pd.read_csv(out)
    assert list(full.columns) == list(before.columns)
    assert full.notna().all(axis=None)
    observed = before.notna()
    pd.testing.assert_frame_equal(full.where(observed), before)
    assert set(full["town"]) == {"Lille", "Graz", "Turku"}
    found = pd.read_csv(intervals)
    assert len(found) == int((~observed).sum().sum())
    ages = found[found["column"] == "age"]
    assert (ages["low_90"].astype(float) <= ages["value"].astype(float)).all()
    assert (ages["value"].astype(float) <= ages["high_50"].astype(float)).all()
    assert found[found["column"] == "town"]["share"].between(1 / 3 - 1e-6, 1).all()
    run("impute", trained, table, "--out", out, "--draws", 3)
    assert pd.read_csv(out)["draw"].value_counts().tolist() == [ROWS] * 3


def test_samples_have_the_types_of_the_data(trained):
    run("sample", trained, "-n", 40)
    drawn = pd.read_csv(trained / "prior_samples.csv", parse_dates=["joined"])
    assert len(drawn) == 40
    assert list(drawn.columns) == ["age", "visits", "town", "member", "joined"]
    assert set(drawn["town"]) <= {"Lille", "Graz", "Turku"}
    assert drawn["joined"].dtype.kind == "M"


def test_runs_are_compared_by_pairs(trained, other_kinds, table, tmp_path):
    other = tmp_path / "other"
    options = ["--labels", "group", "--column", "visits=real", "--no-page", "--out", other]
    config = tmp_path / "run.toml"
    config.write_text('epochs = 1\nlatent-dim = 3\nprior = "mixture"\nhidden = [4]\nseed = 0\n')
    run("train", table, *options, "--config", config, "--num-samples", 2, "--latent-dim", 1)
    settings = json.loads((other / "metrics.json").read_text())
    assert (settings["epochs"], settings["prior"]) == (1, "MixtureOfGaussians")
    assert pv.load(other / "model").encode(str(table)).event_shape == (1,)  # not the file's value
    said = run("compare", trained, other, "--num-samples", 30)
    models = {path: pv.load(path / "model") for path in (trained, other)}
    data = models[trained].schema.read(table).hold_out(0.1, seed=0)[1]
    scores = [pv.evaluate(m, data, num_samples=30).log_likelihood for m in models.values()]
    paired = scores[1].astype(float) - scores[0].astype(float)
    best = 1 if paired.mean() < 0 else -1
    assert f"{best * paired.mean():.3f}" in said
    assert f"{paired.std(ddof=1) / math.sqrt(12):.3f}" in said
    assert "densities and the other prob" in refused("compare", trained, other_kinds[0])


def test_kinds_are_edited_in_a_file(table, tmp_path):
    run("describe", table, "--labels", "group", "--out", tmp_path)
    path = tmp_path / "schema.json"
    schema = json.loads(path.read_text())
    (visits,) = [column for column in schema["columns"] if column["name"] == "visits"]
    assert visits["kind"] == "count"
    visits["kind"] = "real"
    path.write_text(json.dumps(schema))
    assert re.search(r"visits .* real", run("describe", table, "--schema", path))
    assert "group" not in run("describe", table, "--schema", path)


def test_a_changed_file_is_named(trained, table, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(trained, copied)
    moved = tmp_path / "people.csv"
    people(seed=1).to_csv(moved, index=False)
    metrics = json.loads((copied / "metrics.json").read_text())
    for path, sentence in ((moved, "has changed since the run"), (tmp_path / "x.csv", "not there")):
        metrics["source"]["data"] = str(path)
        (copied / "metrics.json").write_text(json.dumps(metrics))
        said = refused("evaluate", copied)
        assert sentence in said
        assert str(path) in said
    assert f"{ROWS} data" in run("evaluate", copied, moved, "--num-samples", 2)


def test_parts_of_a_module_are_used_and_asked_for(other_kinds):
    out, module = other_kinds
    assert type(pv.load(out / "model").model.prior).__name__ == "Wide"
    kinds = dict(pv.Part.classes)
    pv.Part.classes.pop("my_own_parts.Wide")  # as in a new process
    assert "--module" in refused("evaluate", out, "--num-samples", 2)
    pv.Part.classes.update(kinds)
    run("evaluate", out, "--num-samples", 2, "--module", module)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "nowhere.csv"], "no such file or directory, and no dataset of this name"),
        (["train", "{table}", "--data", "mnist"], "expected DATA or --data, got both"),
        (["train", "{table}", "--column", "age"], "--column age: expected NAME=VALUE"),
        (["train", "{table}", "--column", "old=real"], "the table has no column 'old'"),
        (["train", "{table}", "--column", "visits=binary"], "exactly 2 different values"),
        (["train", "{table}", "--size", "3x"], "--size 3x: expected a number of pixels"),
        (["train", "{table}", "--key", "x"], "'key' does not apply to table data"),
        (["train", "{table}", "--likelihood", "poisson"], "for a table"),
        (["train", "{table}", "--guide", "none"], "unknown guide 'none'"),
        (["train", "{table}", "--objective", "none"], "unknown objective 'none'"),
        (["train", "{table}", "--module", "{table}/no.py"], "no such file"),
        (["train", "{table}", "--schema", "{table}"], "has no kinds of columns"),
        (["train", "mnist-5k", "--labels", "x"], "the dataset mnist-5k takes no --labels"),
        (["encode", "{run}", "{table}", "--out", "z.txt"], "expected a file that ends in one of"),
        (["encode", "{run}", "{table}", "--out", "z.h5ad"], "needs data in this format"),
        (["score", "{run}", "{table}", "--out", "s.csv", "--false-alarms", "2"], "between 0 and 1"),
        (["evaluate", "{run}", "nowhere.csv"], "no such file or directory"),
        (["compare", "{run}", "{run}"], "at least two runs"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(trained, table, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    for work in ("fit", "evaluate"):
        monkeypatch.setattr(pv, work, lambda *args, **kwargs: pytest.fail("work has begun"))
    places = {"table": table, "run": trained}
    assert sentence in refused(*(word.format(**places) for word in words))
    assert not [*tmp_path.iterdir()]  # nothing half-written


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("run.toml", "epoch = 1", "unknown option 'epoch'"),
        ("run.yaml", "epoch: 1", "unknown option 'epoch'"),
        ("run.json", "[1]", "expected options by name, got a list"),
        ("run.toml", "epochs", "cannot be read"),
    ],
)
def test_a_wrong_config_is_refused(table, tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    assert sentence in refused("train", table, "--config", tmp_path / name)


def test_the_version_is_printed():
    assert run("--version").strip() == pv.__version__
