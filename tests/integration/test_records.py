"""benchmarks/records.py: its rows, and its table from the records of runs."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

import pyro_vae as pv

PATH = Path(__file__).parents[2] / "benchmarks" / "records.py"


@pytest.fixture(scope="module")
def records():
    spec = importlib.util.spec_from_file_location("records", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["records"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["records"]


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


def test_rows_are_of_recipes_and_have_a_goal_at_least_as_high_as_the_published_score(records):
    for name, row in records.ROWS.items():
        assert row.recipe in pv.recipes.RECIPES, name
        assert row.binarization in ("static", "dynamic")
        published = float(re.match(r"-\d+\.\d+", row.published)[0])
        assert row.goal >= published, name


def test_the_table_has_means_and_errors_over_seeds(records, tmp_path, monkeypatch):
    for seed, log_p in enumerate([-88.0, -89.0, -90.0]):
        write(tmp_path, "relu", seed, log_p)
    refined = {"more": 0.5, "more_se": 0.04, "khat_share_above_threshold": 0.01}
    write(
        tmp_path, "relu-vamp", 0, -85.5, refined=refined
    )  # its folder begins with the name of another row
    page = tmp_path / "records.md"
    page.write_text(f"before\n{records.BEGIN}\nold\n{records.END}\nafter\n")
    monkeypatch.setattr(records, "PAGE", page)
    records.write_table(tmp_path)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    rows = {line.split("`")[1]: line for line in text.splitlines() if "| `" in line}
    assert [*rows] == ["relu", "relu-vamp"]
    # The standard deviation of -88, -89 and -90 is 1; the mean time is 2.5 minutes.
    assert "-93.00 ± 0.58 | -89.00 ± 0.58 | 5000 | 90.0%" in rows["relu"]
    assert "2.5 processor minutes | 0, 1, 2 |" in rows["relu"]
    assert "| 90.0% |  | 7 |" in rows["relu"]
    assert "| +0.50 ± 0.04 (1.0%) | 7 |" in rows["relu-vamp"]
    assert "-85.50 ± 0.25" in rows["relu-vamp"]  # one seed: the error over images
    first = text
    records.write_table(tmp_path)
    assert page.read_text() == first


def test_a_finished_row_is_not_trained_again(records, tmp_path, capsys):
    write(tmp_path, "quick", 0, -92.0, num_test=10_000)
    records.main("quick", out=tmp_path, show_list=False, show_table=False, seed=0, device="cuda")
    assert "log p(x) -92.00 ± 0.25 (K = 5000, 10000 images, k-hat" in capsys.readouterr().out
