"""benchmarks/records.py and ablation.py: rows, runs, and tables from the records of runs."""

import functools
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import pyro_vae as pv

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def records():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("records")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def record_table(records):
    return importlib.import_module("record_table")


def write(folder, row, seed, log_p, **changed):
    record = {
        "row": row, "seed": seed, "device": "cpu", "machine": "", "epochs": 7,
        "test_elbo": log_p - 4, "test_elbo_se": 0.3, "training_seconds": 90.0 + 60 * seed,
        "test_log_likelihood": log_p, "test_log_likelihood_se": 0.25,
        "num_importance_samples": 5000, "test_khat_share_above_threshold": 0.9,
    }  # fmt: skip
    path = folder / f"{row}-{seed}" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record | changed))


def test_rows_are_of_recipes_and_have_a_goal_at_least_as_high_as_the_published_score(record_table):
    for name, row in record_table.ROWS.items():
        assert row.recipe in pv.recipes.RECIPES, name
        assert row.binarization in ("static", "dynamic")
        published = float(re.match(r"-\d+\.\d+", row.published)[0])
        assert row.goal >= published, name


def test_the_table_has_means_and_errors_over_seeds(record_table, tmp_path, monkeypatch):
    for seed, log_p in enumerate([-88.0, -89.0, -90.0]):
        write(tmp_path, "relu", seed, log_p)
    refined = {"more": 0.5, "more_se": 0.04, "khat_share_above_threshold": 0.01}
    write(
        tmp_path, "relu-vamp", 0, -85.5, refined=refined
    )  # its folder begins with the name of another row
    page = tmp_path / "records.md"
    old = "old\n| `quick` | of a former run |\n| `relu` | of a former run |\n"
    page.write_text(f"before\n{record_table.BEGIN}\n{old}{record_table.END}\nafter\n")
    monkeypatch.setattr(record_table, "PAGE", page)
    record_table.write_table(tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("of a former run") == 1  # `quick` has no record in the folder
    rows = {line.split("`")[1]: line for line in text.splitlines() if "| `" in line}
    assert [*rows] == ["relu", "relu-vamp", "quick"]
    # The standard deviation of -88, -89 and -90 is 1; the mean time is 2.5 minutes.
    assert "-93.00 ± 0.58 | -89.00 ± 0.58 | 5000 | 90.0%" in rows["relu"]
    assert "2.5 processor minutes | 0, 1, 2 |" in rows["relu"]
    assert "| 90.0% |  | 7 |" in rows["relu"]
    assert "| +0.50 ± 0.04 (1.0%) | 7 |" in rows["relu-vamp"]
    assert "-85.50 ± 0.25" in rows["relu-vamp"]  # one seed: the error over images
    first = text
    record_table.write_table(tmp_path)
    assert page.read_text() == first


def test_a_finished_row_is_not_trained_again(records, tmp_path, capsys):
    write(tmp_path, "quick", 0, -92.0, num_test=10_000)
    records.main("quick", out=tmp_path, show_list=False, show_table=False, seed=0, device="cuda")
    assert "log p(x) -92.00 ± 0.25 (K = 5000, 10000 images, k-hat" in capsys.readouterr().out


def test_an_encoder_of_several_layers_is_refused_before_training(records, tmp_path):
    with pytest.raises(typer.BadParameter, match="one layer of latents; ladder has several"):
        records.main("ladder", out=tmp_path, encoder_epochs=1)
    assert not list(tmp_path.iterdir())


def test_a_row_is_trained_first_and_scored_later(records, tmp_path):
    run = functools.partial(
        records.main, "quick", out=tmp_path, seed=0, minutes=0.01, epochs=1, num_samples=10,
        num_test=20, dataset="mnist-5k", data_root=None, device="cpu", precision="fp32",
        refined=0, score_minutes=None, checkpoints=False, show_list=False, show_table=False,
    )  # fmt: skip
    run(scores=False)
    folder = tmp_path / "quick-0"
    assert not (folder / "record.json").exists()
    training = json.loads((folder / "training.json").read_text())
    shutil.copytree(folder, tmp_path / "encoder" / "quick-0")
    run(scores=True)
    record = json.loads((folder / "record.json").read_text())
    assert {name: record[name] for name in training} == training
    scores = pv.evaluate(
        pv.load(folder / "model"), pv.data.load("mnist-5k")[1].spread(20), num_samples=10, seed=0
    )
    assert record["test_elbo"] == pytest.approx(scores.metrics()["test_elbo"], rel=1e-6)
    assert record["num_test"] == 20
    with pytest.raises(typer.BadParameter, match="another encoder"):
        run(scores=True, encoder_epochs=1)
    run(scores=True, encoder_epochs=1, out=tmp_path / "encoder")
    folder = tmp_path / "encoder" / "quick-0"
    again = json.loads((folder / "record.json").read_text())
    assert again["encoder_epochs"] == 1
    assert again["training_seconds"] > record["training_seconds"]
    assert again["test_log_likelihood"] != record["test_log_likelihood"]
    one, other = pv.load(folder / "model"), pv.load(folder / "model-with-encoder")
    assert all(map(torch.equal, one.model.parameters(), other.model.parameters()))


@pytest.mark.parametrize("recipe", ["relu", "relu-vamp"])
def test_the_encoder_alone_does_not_change_the_model(records, recipe):
    train, _ = pv.data.load("mnist-5k", binarize="static")
    vae = pv.recipes.RECIPES[recipe].build(train, show=False)
    z = torch.randn(5, 40)
    before = vae.model.prior().log_prob(z), vae.decode(z).mean
    encoder = [p.clone() for p in vae.guide.parameters()]
    new = records.encoder_phase(vae, train[:200], seed=0, epochs=1, batch_size=100)
    for one, other in zip(before, (new.model.prior().log_prob(z), new.decode(z).mean), strict=True):
        assert torch.equal(one, other)
    assert all(map(torch.equal, encoder, vae.guide.parameters()))  # that of the caller
    assert not all(map(torch.equal, encoder, new.guide.parameters()))


def test_a_run_that_is_interrupted_is_not_scored(records, tmp_path, monkeypatch):
    ablation = importlib.import_module("ablation")
    train, _ = pv.data.load("mnist-5k", binarize="static")
    vae = pv.recipes.RECIPES["relu"].build(train, show=False)
    monkeypatch.setattr(pv, "fit", lambda *args, **settings: pv.Fit([], {}, "interrupted", 1))
    with pytest.raises(SystemExit):
        records.encoder_phase(vae, train[:200], seed=0, epochs=1)
    with pytest.raises(SystemExit):
        ablation.carry_out("tanh", 0, 1, 10, "mnist-5k", tmp_path / "tanh-0.json")
    assert not list(tmp_path.iterdir())


def test_the_table_of_the_ablation_has_paired_differences(records, tmp_path):
    ablation = importlib.import_module("ablation")
    generator = np.random.default_rng(0)
    images = 10 * generator.standard_normal(400)  # common to all, so that it cancels
    for name, seed, shift, seconds in (
        ("tanh", 0, 0.0, 100.0), ("tanh", 1, 0.0, 200.0), ("gated", 0, 1.0, 150.0),
        ("gated", 1, 3.0, 300.0), ("no-average", 0, -0.5, 90.0), ("normal", 2, 0.0, 1.0),
    ):  # fmt: skip
        path = tmp_path / f"{name}-{seed}.json"
        path.write_text(json.dumps({"seconds": seconds}))
        scores = images + shift
        np.savez(path.with_suffix(".npz"), elbo=scores, log_likelihood=scores + 4)
    rows = ablation.table(tmp_path).splitlines()[2:]
    assert len(rows) == 3  # the first variant has no run of the seed of `normal`
    assert rows[0].endswith("| 150 s | 0, 1 |")
    # The standard error of 1 and 3 over two seeds is 1.
    assert "gated layers | +2.00 ± 1.00 | +2.00 ± 1.00 | 1.50 of it | 0, 1 |" in rows[2]
    assert "| -0.50 ± 0.00 | -0.50 ± 0.00 | 0.90 of it | 0 |" in rows[1]


def test_every_variant_of_the_ablation_can_be_built(records):
    ablation = importlib.import_module("ablation")
    recipe, (train, _) = pv.recipes.RECIPES["quick"], pv.data.load("mnist-5k")
    for variant in ablation.VARIANTS.values():
        vae = recipe.build(train, show=False, **ablation.TANH | variant.parts)
        assert vae.encode(train[:2]).event_shape == (40,)
        assert set(variant.settings) <= set(recipe.settings(len(train)))
