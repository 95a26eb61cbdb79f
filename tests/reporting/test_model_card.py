"""The model card of a run has its scores, verdict and code, and stays readable without some."""

import json
import re

import pytest
import torch

import pyro_vae as pv
from pyro_vae.reporting import model_card

pytestmark = pytest.mark.xdist_group("model card")  # a module's runs are made once


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, its model and its metrics."""
    torch.manual_seed(0)
    folder, x = tmp_path_factory.mktemp("runs") / "a|b", torch.rand(40, 3).round()
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.networks.MLP(2, [4], 3)),
        pv.guides.DiagonalNormal(pv.networks.MLP(3, [4], 4)),
    )
    data = pv.data.Dataset(x, name="a|b `c`")
    fit = pv.fit(vae, data, epochs=2, average="ema", seed=5, out=folder)
    pv.report(vae, fit, data, folder, num_samples=60, seed=5)
    return folder, vae, json.loads((folder / "metrics.json").read_text())


def test_the_card_has_scores_with_errors_and_settings(run):
    folder, _, metrics = run
    card = (folder / "model_card.md").read_text()
    for score in ("elbo", "log_likelihood"):
        mean, se = metrics[f"test_{score}"], metrics[f"test_{score}_se"]
        assert f"| {mean:.2f} | {se:.2f} |" in card
    for row in ("| seed | 5 |", "| average of the weights | ema |", r"| data set | a\|b `c` |"):
        assert row in card
    assert "K = 60 importance samples from the guide" in card
    assert "Not diagnosed" in card
    assert "None" not in card
    # Each row of a table has the columns of its header.
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table


def test_the_code_of_the_card_runs(run, monkeypatch):
    folder, _, _ = run
    monkeypatch.chdir(folder)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "model_card.md").read_text(), re.DOTALL)
    names = {"x": torch.zeros(4, 3), "z": torch.zeros(4, 2)}
    exec(code, names)
    assert names["vae"].sample(2).shape == (2, 3)


def test_the_card_has_verdict_and_reasons(run, tmp_path):
    _, vae, metrics = run
    card = pv.diagnose(vae, torch.rand(30, 3).round(), num_samples=60, num_gap_data=0)
    card.save(tmp_path / "trust.json")
    model_card.write(tmp_path, metrics, vae, model_card.read_trust(tmp_path))
    text = (tmp_path / "model_card.md").read_text()
    assert f"trust card on 30 data: **{card.verdict}**" in text
    assert all(f"- {reason}" in text for reason in card.reasons)
    (tmp_path / "trust.json").write_text("{")
    assert model_card.read_trust(tmp_path) is None


def test_the_card_has_the_schema_of_the_model(run, tmp_path, monkeypatch):
    _, vae, metrics = run
    schema = pv.data.TableSchema([pv.data.Column("age", "real", low=18.0, high=90.0)])
    monkeypatch.setattr(vae, "schema", schema)
    model_card.write(tmp_path, metrics, vae, None)
    assert "| age | real | none | 18 to 90 |" in (tmp_path / "model_card.md").read_text()


def test_metrics_of_an_earlier_version_make_a_card(run, tmp_path):
    _, vae, metrics = run
    few = {key: metrics[key] for key in ("dataset", "binarization", "seed")}
    model_card.write(tmp_path, few, vae, None)
    assert "K is too small" in (tmp_path / "model_card.md").read_text()
