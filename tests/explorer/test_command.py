"""`pyro-vae explore` writes a page, and `inspect --explorer` adds it to the page of a run."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.cli import using


def command(monkeypatch, *arguments):
    """Run a command as a shell does; return its exit status or the sentence it ends with."""
    monkeypatch.setattr(sys, "argv", ["pyro-vae", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the model of a table, as of a run, and the file of the table."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=40), "kind": random.choice(["x", "y"], 40)})
    frame.to_csv(folder / "table.csv", index=False)
    data = pv.data.open(folder / "table.csv")
    vae = pv.suggest(data, latent_dim=2, show=False)
    vae.save(folder / "run" / "model")
    metrics = {"dataset": "table", "binarization": "none", "seed": 0}
    metrics |= {"num_test": 40, "num_importance_samples": 10}
    (folder / "run" / "metrics.json").write_text(json.dumps(metrics))
    return folder / "run", folder / "table.csv"


def test_explore_writes_the_page_that_the_class_does(run, tmp_path, monkeypatch):
    folder, table = run
    out = tmp_path / "page.html"
    options = ["--num-samples", 10, "--num-data", 4, "--refine", "--seed", 3]
    assert command(monkeypatch, "explore", folder, table, "--out", out, *options) == 0
    vae = pv.load(folder / "model")
    settings = {"num_data": 4, "num_samples": 10, "refine": True, "seed": 3}
    expected = pv.explorer.Explorer(vae, vae.schema.read(table), **settings)
    assert out.read_text() == expected.html()
    assert len(expected.contents["data"]["rows"]) == 4
    assert expected.contents["clouds"]["refined"]["dtype"] == "float16"


def test_explore_writes_into_the_run_by_default(run, monkeypatch):
    folder, table = run
    assert command(monkeypatch, "explore", folder, table, "--num-samples", 5) == 0
    assert b"pv-explorer" in (folder / "explorer.html").read_bytes()


@pytest.mark.parametrize("added", [False, True])
def test_inspect_passes_the_explorer_to_the_page(run, tmp_path, monkeypatch, added):
    folder, table = run
    written = []
    monkeypatch.setattr(using, "write_page", lambda *_, explorer, **__: written.append(explorer))
    options = ["--html", tmp_path / "page.html", "--num-samples", 20]
    options += ["--explorer"] if added else []
    assert command(monkeypatch, "inspect", folder, table, *options) == 0
    assert [explorer is not None for explorer in written] == [added]
    if added:
        assert len(written[0].contents["data"]["rows"]) == 40


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["explore", "nowhere"], "nowhere: no such directory"),
        (["explore", "{run}", "{table}", "--out", "."], "--out . is a folder"),
        (["explore", "{run}", "{table}", "--num-data", "1"], "num_data must be a whole number"),
        (["inspect", "{run}", "{table}", "--explorer"], "--explorer adds to the page of --html"),
    ],
)
def test_a_mistake_is_a_sentence(run, tmp_path, monkeypatch, arguments, sentence):
    folder, table = run
    monkeypatch.chdir(tmp_path)
    given = [argument.format(run=folder, table=table) for argument in arguments]
    assert sentence in str(command(monkeypatch, *given))


def test_contents_are_the_same_for_the_same_seed_and_leave_the_random_state():
    vae = pv.VAE(
        pv.priors.StandardNormal(3),
        pv.likelihoods.Bernoulli(pv.networks.MLP(3, [4], 5)),
        pv.guides.DiagonalNormal(pv.networks.MLP(5, [4], 6)),
    )
    x = torch.rand(12, 5).round()
    before = torch.random.get_rng_state()
    one, two = (pv.explorer.Explorer(vae, x, num_samples=5, seed=7) for _ in range(2))
    assert one.contents == two.contents
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.contents != pv.explorer.Explorer(vae, x, num_samples=5, seed=8).contents
