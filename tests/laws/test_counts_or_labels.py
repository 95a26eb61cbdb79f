"""Whole numbers of few values: counts of any law are counts, and codes of categories are labels."""

import numpy as np
import pytest
from sklearn import datasets

from pyro_vae.data.sources.kinds import ROWS_ABOVE, Values, kind_of

REPEATS = 100
MEANS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0)
SIZES = (100, 300, 1000, 3000)


def negative_binomial(r, zeros):
    """Return a law with variance mean + mean^2 / r, and a share of further zeros."""
    return lambda rng, mean, size: (
        rng.negative_binomial(r, r / (r + mean), size) * (rng.random(size) >= zeros)
    )


LAWS = {
    "Poisson": lambda rng, mean, size: rng.poisson(mean, size),
    "Poisson, 30% zeros": lambda rng, mean, size: (
        rng.poisson(mean, size) * (rng.random(size) >= 0.3)
    ),
    **{
        f"negative binomial, r = {r}, {zeros:.0%} zeros": negative_binomial(r, zeros)
        for r in (0.5, 2.0, 10.0)
        for zeros in (0.0, 0.3, 0.7)
    },
}


def kind(x):
    return kind_of(Values("integer", np.asarray(x, dtype=np.float64))).name


@pytest.mark.parametrize("law", LAWS)
def test_counts_are_seldom_taken_as_labels(law):
    """At most exp(-`ROWS_ABOVE`) of the samples, and the error of its estimate from few rows."""
    rng = np.random.default_rng(0)
    rate = 0.01
    assert np.exp(-ROWS_ABOVE) < rate
    allowed = REPEATS * rate + 5 * np.sqrt(REPEATS * rate)
    for size in SIZES:
        for mean in MEANS:
            found = [kind(LAWS[law](rng, mean, size)) for _ in range(REPEATS)]
            assert found.count("category") <= allowed, (size, mean, found.count("category"))


# Rows of each code. TVnews to educ: American National Election Studies (1996). The others: the
# survey of Fair (1978) on marriages, and the classes of scikit-learn's tables.
CODES = {
    "TVnews": {0: 161, 1: 100, 2: 112, 3: 101, 4: 66, 5: 84, 6: 32, 7: 288},
    "selfLR": {1: 16, 2: 103, 3: 147, 4: 256, 5: 170, 6: 218, 7: 34},
    "ClinLR": {1: 109, 2: 317, 3: 236, 4: 160, 5: 67, 6: 36, 7: 19},
    "DoleLR": {1: 13, 2: 31, 3: 43, 4: 87, 5: 195, 6: 460, 7: 115},
    "PID": {0: 200, 1: 180, 2: 108, 3: 37, 4: 94, 5: 150, 6: 175},
    "educ": {1: 13, 2: 52, 3: 248, 4: 187, 5: 90, 6: 227, 7: 127},
    "rate_marriage": {1: 99, 2: 348, 3: 993, 4: 2242, 5: 2684},
    "religious": {1: 1021, 2: 2267, 3: 2422, 4: 656},
    "occupation": {1: 41, 2: 859, 3: 2783, 4: 1834, 5: 740, 6: 109},
    "iris": dict(enumerate(np.bincount(datasets.load_iris().target))),
    "wine": dict(enumerate(np.bincount(datasets.load_wine().target))),
    "digits": dict(enumerate(np.bincount(datasets.load_digits().target))),
}


@pytest.mark.parametrize("name", CODES)
def test_codes_of_categories_are_labels(name):
    codes, rows = [*CODES[name]], [*CODES[name].values()]
    assert kind(np.random.default_rng(0).permutation(np.repeat(codes, rows))) == "category"


@pytest.mark.parametrize("levels", range(3, 11))
@pytest.mark.parametrize("first", [0, 1])
def test_codes_of_similar_frequency_are_labels(levels, first):
    """Shares that differ by at most a factor of 3, in any order: 30 rows of each on average."""
    rng = np.random.default_rng(levels)
    for _ in range(50):
        shares = rng.uniform(1, 3, levels)
        x = first + rng.choice(levels, 60 * levels, p=shares / shares.sum())
        assert kind(x) == "category", np.bincount(x)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # 15^2 * 2 / (n_1 * 3) rows above 2: 5 for n_1 = 30.
        ([200, 30, 15], "category"),
        ([200, 31, 15], "count"),
        ([0, 31, 15, 31], "category"),  # not from 0
        ([200, 31, 0, 15], "category"),  # a gap, which no count law has
        ([200, 31, 9], "count"),  # a value in fewer than 10 rows
    ],
)
def test_the_rule_is_the_stated_one(rows, expected):
    assert kind(np.repeat(np.arange(len(rows)), rows)) == expected
