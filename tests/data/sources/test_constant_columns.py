"""Columns that are left out because they are constant: other values are reported."""

import datetime
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest

import pyro_vae as pv

ROWS = 30
VALUES = {
    "number": (0.0, [9999.0, -1.0, np.inf, "x", True]),
    "integer": (7, [8, 7.5, "seven"]),
    "text": ("Oslo", ["Rome", "oslo", 3, 3.5]),
    "boolean": (True, [False, "no"]),
    "date": (datetime.date(2024, 1, 1), [datetime.date(2024, 1, 2), "2024-01-01 09:00"]),
}


def frame(value):
    numbers = np.random.default_rng(0).normal(size=ROWS)
    return pd.DataFrame({"a": numbers, "b": numbers**2 + numbers, "same": [value] * ROWS})


def said(schema, table):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = schema.read(table)
    return data, [str(w.message) for w in caught if w.category is pv.data.DataWarning]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("count", [1, 12, ROWS])
def test_another_value_is_reported(name, count):
    value, others = VALUES[name]
    schema = pv.data.open(frame(value)).schema
    assert schema.names() == ("a", "b")
    for other in others:
        table = frame(value).astype({"same": object})
        table.loc[ROWS - count :, "same"] = other
        data, (message,) = said(schema, table)
        assert "'same'" in message
        assert f"row {ROWS - count}" in message
        assert f"expected {value}" in message
        assert f"got {other}" in message
        assert f"({count} such rows)" in message
        assert bool((data[:] == schema.read(frame(value))[:]).all())


@pytest.mark.parametrize("name", VALUES)
def test_the_same_value_is_not_reported(name, tmp_path):
    value, _ = VALUES[name]
    table = frame(value)
    schema = pv.data.open(table).schema
    table.to_csv(tmp_path / "table.csv", index=False)
    part = table.astype({"same": object})
    part.loc[:4, "same"] = None
    for same in (table, part, pl.from_pandas(table), tmp_path / "table.csv", table[["a", "b"]]):
        assert said(schema, same)[1] == []


def test_any_name_is_one_of_a_context():
    table = pd.DataFrame({"num_data": [1.0, 2, 3], "self": [2.0, 4, 1], "x": [0.5, 1, 7]})
    schema = pv.data.open(table, context=["num_data", "self"]).schema
    assert schema.context(5, num_data=1.0, self=2.0).shape == (5, 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schema": "foo.json"}, "schema must be the schema of a table"),
        ({"skip": "two"}, "skip must be a whole number"),
        ({"skip": -1}, "skip must be a whole number"),
        ({"encoding": 3}, "encoding must be a string"),
        ({"na": "x"}, "na must be a sequence"),
    ],
)
def test_options_of_another_type_are_refused(options, expected, tmp_path):
    frame(1.0).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(ValueError, match=expected):
        pv.data.open(tmp_path / "table.csv", **options)
    if "schema" not in options:
        schema = pv.data.open(frame(1.0)).schema
        with pytest.raises(ValueError, match=expected):
            schema.read(tmp_path / "table.csv", **options)
