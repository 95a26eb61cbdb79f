"""Every command takes a run of a `LadderVAE`, or refuses its arguments before it trains."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pyro_vae as pv
from pyro_vae.cli import app

pytestmark = pytest.mark.xdist_group("ladders")  # one run is used by all tests

QUICK = ("--hidden", "6", "--epochs", "2", "--num-samples", "20", "--no-page")
LAYERS = ("--latent-dim", "3", "--latent-dim", "2")


def command(*words):
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return " ".join(done.output.split())


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    z = rng.normal(size=300)
    frame = pd.DataFrame(
        {
            "height": 170 + 8 * z + rng.normal(size=300),
            "visits": rng.poisson(np.exp(1 + z / 2)),
            "group": np.where(z + rng.normal(size=300) > 0, "a", "b"),
        }
    )
    frame.loc[rng.random(300) < 0.15, "height"] = np.nan
    path = tmp_path_factory.mktemp("data") / "people.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "ladder"
    printed = command("train", table, *LAYERS, *QUICK, "--out", folder)
    assert "vae = pv.LadderVAE(" in printed
    vae = pv.load(folder / "model")
    assert (type(vae), vae.latent_site) == (pv.LadderVAE, "z2")
    return folder


def test_a_run_has_its_scores_and_figures(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert np.isfinite(metrics["test_log_likelihood"])
    assert metrics["guide"] == "LadderGuide"
    for name in ("columns", "dependence", "imputation", "latents", "learning_curve"):
        assert (run / f"{name}.png").is_file()
    assert "LadderVAE" in (run / "model_card.md").read_text()


def test_rows_are_encoded_scored_and_completed(run, table, tmp_path):
    vae, rows = pv.load(run / "model"), pd.read_csv(table)
    command("encode", run, table, "--out", tmp_path / "z.csv", "--num-samples", 20)
    encoded = pd.read_csv(tmp_path / "z.csv")
    with torch.no_grad():
        top = vae.encode(rows).mean.numpy()
    np.testing.assert_allclose(encoded[["z0_mean", "z1_mean"]], top, rtol=1e-4, atol=1e-5)
    command("score", run, table, "--out", tmp_path / "s.csv", "--num-samples", 200)
    scores = pd.read_csv(tmp_path / "s.csv")
    columns = scores[[f"log_p_{name}" for name in rows]].sum(axis=1)
    elbo = pv.evaluate(vae, rows, num_samples=200).elbo
    # The contributions of the columns and the KL are those of other samples of the same guide.
    difference = columns - scores["kl"] - elbo
    assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(len(rows))
    command("impute", run, table, "--out", tmp_path / "x.csv", "--num-samples", 20)
    completed = pd.read_csv(tmp_path / "x.csv")
    assert not completed.isna().any(axis=None)
    known = rows["height"].notna()
    np.testing.assert_allclose(completed["height"][known], rows["height"][known])


def test_the_other_commands(run, table, tmp_path):
    assert "log p(x)" in command("evaluate", run, "--num-samples", 20)
    html = tmp_path / "page.html"
    command("inspect", run, "--html", html, "--explorer", "--num-data", 20, "--num-samples", 20)
    assert "z is z2, the top layer of a LadderVAE" in html.read_text()
    command("explore", run, "--num-samples", 20, "--out", tmp_path / "e.html")
    command("sample", run, "-n", 30, "--out", tmp_path / "d.csv")
    assert list(pd.read_csv(tmp_path / "d.csv")) == ["height", "visits", "group"]
    other = tmp_path / "vae"
    command("train", table, "--latent-dim", 2, *QUICK, "--out", other)
    assert "minus best" in command("compare", run, other, "--num-samples", 20)


def test_images_have_figures_and_an_explorer(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", (rng.random((60, 1, 8, 8)) < 0.3).astype(np.float32))
    out = tmp_path / "run"
    command("train", tmp_path / "x.npy", *LAYERS, *QUICK, "--out", out)
    for name in ("samples", "reconstructions", "manifold"):
        assert (out / f"{name}.png").is_file()
    command("explore", out, "--num-data", 20, "--num-samples", 10)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((*LAYERS, "--guide", "flow"), "--latent-dim 3 --latent-dim 2 asks for a LadderVAE, which "
         "has the guide 'diagonal-normal' in all layers; got 'flow': leave out --guide"),
        ((*LAYERS, "--context", "group"), "asks for a LadderVAE, which has no context"),
        (("--recipe", "ladder", "--latent-dim", "3"), "for 2 layers of latents; expected as many "
         "sizes, got --latent-dim 3"),
        (("--latent-dim", "3", "--latent-dim", "0"), "latent_dim"),
    ],
)  # fmt: skip
def test_impossible_ladders_are_refused_before_training(table, tmp_path, options, sentence):
    done = CliRunner().invoke(app, ["train", str(table), *options, "--out", str(tmp_path / "run")])
    assert done.exit_code != 0
    assert sentence in " ".join(f"{done.output} {done.exception}".split())
    assert not (tmp_path / "run").exists()
