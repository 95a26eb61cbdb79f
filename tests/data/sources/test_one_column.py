"""Text files with one column: a missing value is a blank line, and no row is lost."""

import itertools

import numpy as np
import pandas as pd
import pytest

import pyro_vae as pv
from pyro_vae.data.sources import frames

VALUES = [1.5, 2.25, 3.0, 4.75, 5.5, 6.25]
PLACES = [
    places for count in (1, 2, 3) for places in itertools.combinations(range(len(VALUES)), count)
]


def with_missing(places):
    values = np.array(VALUES)
    values[list(places)] = np.nan
    return values


def read(path, **options):
    frame = frames.read(path, frames.TextForm(**options))
    return frame["x"].to_numpy().astype(float)


@pytest.mark.parametrize("places", PLACES)
def test_a_column_that_pandas_writes_is_read_as_it_was(places, tmp_path):
    values = with_missing(places)
    for end in ("\n", "\r\n"):
        pd.DataFrame({"x": values}).to_csv(tmp_path / "a.csv", index=False, lineterminator=end)
        np.testing.assert_array_equal(read(tmp_path / "a.csv"), values)


@pytest.mark.parametrize("missing", ["", '""', "NA", "?"])
@pytest.mark.parametrize("start", ["x\n", "sep=;\nx\n", "made by me\n\nx\n"])
def test_a_missing_value_is_written_in_any_form(start, missing, tmp_path):
    options = {"skip": 2} if start.startswith("made") else {}
    for places in PLACES:
        values = with_missing(places)
        lines = [missing if value != value else str(value) for value in values]
        (tmp_path / "a.csv").write_text(start + "\n".join([*lines, "7.0", "", ""]))
        found = read(tmp_path / "a.csv", **options)
        np.testing.assert_array_equal(found, [*values, 7.0])  # blank lines at the end are none


def test_blank_lines_between_rows_of_several_columns_are_ignored(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1.5,2\n\n3.5,4\n\n")
    np.testing.assert_array_equal(read(tmp_path / "a.csv"), [1.5, 3.5])


def test_the_share_of_missing_values_of_one_column_is_known(tmp_path):
    lines = ["" if i % 4 == 0 else f"{i * 1.3:.1f}" for i in range(40)]
    (tmp_path / "a.csv").write_text("x\n" + "\n".join(lines) + "\n")
    data = pv.data.open(tmp_path / "a.csv")
    assert len(data) == 40
    assert data.schema.columns[0].missing == 0.25
