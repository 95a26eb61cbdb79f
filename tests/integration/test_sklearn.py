"""`pyro_vae.sklearn.VAE` is an estimator of scikit-learn."""

import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn.utils.estimator_checks as checks
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pyro_vae as pv
from tests.support.tables import random_table

SMALL = {"latent_dim": 2, "hidden": [4], "epochs": 1, "num_samples": 4, "random_state": 0}
MONTE_CARLO = "score_samples is a Monte Carlo estimate: the noise of a row depends on its position"


class Deterministic(pv.sklearn.VAE):
    """Without the tag that skips checks of `transform`, too."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.non_deterministic = False
        return tags


def test_the_checks_of_scikit_learn_pass():
    expected = dict.fromkeys(
        ("check_methods_sample_order_invariance", "check_methods_subset_invariance"), MONTE_CARLO
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the checks, and of skipped ones
        found = checks.check_estimator(
            Deterministic(**SMALL), expected_failed_checks=expected, on_fail=None
        )
    assert not [(f["check_name"], f["exception"]) for f in found if f["status"] == "failed"]
    assert sum(f["status"] == "passed" for f in found) > 40
    assert pv.sklearn.VAE().__sklearn_tags__().non_deterministic


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(60, 4)) @ np.diag([1, 10, 100, 0.01])


@pytest.fixture
def frame():
    return pd.DataFrame(random_table(0)[0])


def test_scores_are_those_of_evaluate(x):
    estimator = pv.sklearn.VAE(**SMALL).fit(x)
    expected = pv.evaluate(estimator.vae_, x, num_samples=4, seed=estimator._seed)
    np.testing.assert_allclose(estimator.score_samples(x), expected.log_likelihood)
    assert estimator.score(x) == pytest.approx(expected.mean("log_likelihood"))


def test_equal_random_states_give_equal_estimators(x):
    first, second = (pv.sklearn.VAE(**SMALL).fit(x) for _ in range(2))
    np.testing.assert_array_equal(first.score_samples(x), second.score_samples(x))
    np.testing.assert_array_equal(first.sample(5), second.sample(5))
    assert not np.array_equal(first.sample(5), first.sample(5, random_state=1))
    other = pv.sklearn.VAE(**{**SMALL, "random_state": 1}).fit(x)
    assert not np.array_equal(first.transform(x), other.transform(x))


def test_a_search_and_a_pipeline(x):
    model = make_pipeline(StandardScaler(), clone(pv.sklearn.VAE(**SMALL)))
    search = GridSearchCV(model, {"vae__latent_dim": [1, 3]}, cv=2).fit(x)
    assert search.best_params_["vae__latent_dim"] in (1, 3)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    z = search.best_estimator_.transform(x)
    assert search.best_estimator_.inverse_transform(z).shape == x.shape


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_in_and_frames_out(frame, library):
    table = frame if library == "pandas" else pl.DataFrame(random_table(0)[0])
    estimator = pv.sklearn.VAE(**SMALL).set_output(transform=library).fit(table)
    z = estimator.transform(table)
    assert type(z) is type(table)
    assert list(z.columns) == list(estimator.get_feature_names_out()) == ["z0", "z1"]
    assert list(estimator.feature_names_in_) == list(table.columns)
    for found in (estimator.inverse_transform(z), estimator.sample(7), estimator.impute(table)):
        assert type(found) is type(table)
        assert not estimator.vae_.schema.read(found)[:].isnan().any()
    assert list(estimator.impute(table).columns) == list(table.columns)


def test_missing_values_of_arrays_are_filled(x):
    given = np.where(np.random.default_rng(1).random(x.shape) < 0.2, np.nan, x)
    estimator = pv.sklearn.VAE(**SMALL).fit(given)
    filled = estimator.impute(given)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[~np.isnan(given)], given[~np.isnan(given)])
    np.testing.assert_array_equal(filled, estimator.impute(given))


def test_early_stopping_holds_rows_out(x):
    settings = {**SMALL, "epochs": 30, "learning_rate": 0.1}
    estimator = pv.sklearn.VAE(**settings, validation_fraction=0.2, patience=1)
    history = estimator.fit(x).fit_.history
    assert len(history) < 30
    assert history[0]["num_data"] == 48
    assert "validation_elbo" in history[0]


def test_a_pickled_estimator_is_equal(x):
    estimator = pv.sklearn.VAE(**SMALL).fit(x)
    loaded = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(loaded.transform(x), estimator.transform(x))


def test_errors_name_the_column(frame):
    with pytest.raises(ValueError, match="has no column 'z'"):
        pv.sklearn.VAE(**SMALL, columns={"z": "real"}).fit(frame)
    estimator = pv.sklearn.VAE(**SMALL).fit(frame)
    with pytest.raises(ValueError, match="feature names"):
        estimator.transform(frame.rename(columns={"category 0": "other"}))
    with pytest.raises(ValueError, match=r"'category 0', row 0: .* got 'new'"):
        estimator.transform(frame.assign(**{"category 0": "new"}))
