"""Columns whose few values are all held out: the model is built, and has finite scores."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.sources import Source

RARE = {
    "real": [1.5, -2.0, 0.25, 3.5],
    "positive": [0.5, 1.0, 20.0, 400.0],
    "proportion": [0.1, 0.9, 0.5, 0.2],
    "count": [0, 4, 1, 7],
    "binary": ["yes", "no", "yes", "no"],
    "category": ["a", "b", "c", "a"],
    "date": ["2020-01-01", "2020-03-01", "2020-02-01", "2021-01-01"],
}


@pytest.mark.parametrize("kind", RARE)
def test_columns_without_values_in_the_training_rows_are_modelled(kind, tmp_path):
    rows = torch.arange(40)[:, None].float()
    held = pv.data.Dataset(rows).hold_out(0.1, seed=0)[1][:].flatten().long().numpy()
    frame = pd.DataFrame({"a": np.random.default_rng(0).normal(size=40), "rare": None})
    frame["more"] = np.random.default_rng(1).poisson(4, 40)
    frame.loc[held, "rare"] = RARE[kind]
    frame.to_csv(tmp_path / "a.csv", index=False)
    options = {"columns": {"rare": kind, "more": "count"}}
    training, _, test = Source(str(tmp_path / "a.csv"), options).split()
    assert training[:].isnan().all(0).tolist() == [False, True, False]
    assert not test[:].isnan().any()
    torch.manual_seed(0)
    vae = pv.suggest(training, latent_dim=1, hidden=[4], show=False)
    pv.fit(vae, training, epochs=2, progress=False)
    assert np.isfinite(pv.evaluate(vae, test, num_samples=5).log_likelihood).all()
    assert vae.sample(20).isfinite().all()


@pytest.mark.parametrize("num_rows", [2, 3, 4])
def test_splits_of_few_rows_say_how_many_are_needed(num_rows, tmp_path):
    path = tmp_path / "a.csv"
    pd.DataFrame({"a": [0.5, 1.5, 2.0, 9.0]}).head(num_rows).to_csv(path, index=False)
    with_test = Source(str(path), test=str(path))
    assert [*map(len, with_test.split())] == [num_rows - 1, 1, num_rows]
    if num_rows == 2:
        with pytest.raises(ValueError, match=r"expected at least 3 rows, of which .* tests, got 2"):
            Source(str(path)).split()
    else:
        assert [*map(len, Source(str(path)).split())] == [num_rows - 2, 1, 1]
