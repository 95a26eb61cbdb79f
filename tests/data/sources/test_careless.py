"""Files and arrays of careless people are read right, or refused in a sentence with the way out.

Each row has a source, options of `open`, and either the kinds and some values that are right, or
the words that the refusal has. The name of the file must be in each refusal.
"""

import datetime
import os
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources.kinds import LABEL_ROWS, MAX_LABELS, ROWS_ABOVE, Values, is_labels

ROWS = 60
Z = np.random.default_rng(0).normal(size=ROWS).round(2)
COMMA = [f"{value}".replace(".", ",") for value in Z]


def lines(head, line, *more):
    return "\n".join([head, *(line(i) for i in range(ROWS)), *more, ""])


# Text, options, and for each column its kind and the first values as they must be restored.
RIGHT = {
    "decimal comma": (
        lines("x;n", lambda i: f"{COMMA[i]};{i % 7}"),
        {"decimal": ","},
        {"x": ("real", Z[:3]), "n": ("count", [0, 1, 2])},
    ),
    "points for thousands": (
        lines("x;n", lambda i: f"{1 + i}.234,{i % 90 + 10};{i % 7}"),
        {"decimal": ","},
        {"x": ("real", [1234.10, 2234.11]), "n": ("count", [0, 1])},
    ),
    "points for thousands, integers": (
        lines("x;n", lambda i: f"{1 + i}.234;{i % 7}"),
        {"decimal": ","},
        {"x": ("real", [1234, 2234]), "n": ("count", [0, 1])},
    ),
    "decimal points next to decimal commas": (
        lines("x;n", lambda i: f"{36 + i * 0.123};{COMMA[i]}"),
        {"decimal": ","},
        {"x": ("real", [36, 36.123, 36.246]), "n": ("real", Z[:3])},
    ),
    "decimal points of three digits": (
        lines("x,n", lambda i: f"{0.101 + i * 0.001:.3f},{i % 7}"),
        {"decimal": ","},
        {"x": ("real", [0.101, 0.102, 0.103]), "n": ("count", [0, 1])},
    ),
    "commas for thousands": (
        lines("x,n", lambda i: f'"-{1 + i},234.50",{i % 7}'),
        {"thousands": ","},
        {"x": ("real", [-1234.5, -2234.5]), "n": ("count", [0])},
    ),
    "narrow blanks for thousands": (
        lines("x,n", lambda i: f"{1 + i}\u202f000,{i % 7}"),
        {"thousands": " "},
        {"x": ("real", [1000, 2000]), "n": ("count", [0])},
    ),
    "a minus sign": (
        lines("x,n", lambda i: f"{Z[i]},{i % 7}").replace("-", "\N{MINUS SIGN}"),
        {},
        {"x": ("real", Z[:9]), "n": ("count", [0])},
    ),
    "codes with zeros": (
        lines("zip,x", lambda i: f"{['01067', '53113', '04109'][i % 3]},{Z[i]}"),
        {},
        {"zip": ("category", ["01067", "53113", "04109"]), "x": ("real", Z[:3])},
    ),
    "numbers with zeros": (
        lines("a,x", lambda i: f"{['007', '1.5', '12', '-3'][i % 4]},{Z[i]}"),
        {},
        {"a": ("real", [7, 1.5, 12, -3]), "x": ("real", Z[:3])},
    ),
    "empty columns and rows at the end": (
        lines("x,n,,", lambda i: f"{Z[i]},{i % 7},,", ",,,", ",,,"),
        {},
        {"x": ("real", Z[:2]), "n": ("count", [0])},
    ),
    "an index without a name": (
        lines(",x", lambda i: f"{i * 7 % ROWS},{Z[i]}"),
        {},
        {"Unnamed: 0": ("identifier", None), "x": ("real", Z[:2])},
    ),
    "a name of identifiers": (
        lines("customer_id,x", lambda i: f"{i * 7 % ROWS + 500},{Z[i]}"),
        {},
        {"customer_id": ("identifier", None), "x": ("real", Z[:2])},
    ),
    "blanks around values and names": (
        lines(" sex , x ", lambda i: f"{['male', 'female '][i % 2]} , {Z[i]} "),
        {},
        {"sex": ("binary", ["male", "female"]), "x": ("real", Z[:2])},
    ),
    "points for missing": (
        lines("a,x", lambda i: f"{['u', 'v', '.', 'w'][i % 4]},{[Z[i], '.'][i % 2]}"),
        {},
        {"a": ("category", ["u", "v", None]), "x": ("real", [Z[0]])},
    ),
    "the separator of a spreadsheet": (
        "sep=;\n" + lines("x;n", lambda i: f"{Z[i]};{i % 7}"),
        {},
        {"x": ("real", Z[:2]), "n": ("count", [0])},
    ),
    "a title": (
        "Survey of 2020,\n" + lines("x,n", lambda i: f"{Z[i]},{i % 7}"),
        {"skip": 1},
        {"x": ("real", Z[:2]), "n": ("count", [0])},
    ),
    "blanks between columns": (
        lines("x   n", lambda i: f"{Z[i]}   {i % 7}"),
        {"separator": " "},
        {"x": ("real", Z[:2]), "n": ("count", [0])},
    ),
    "years as names": (
        lines("2019,2020", lambda i: f"{Z[i]},{-Z[i]}"),
        {},
        {"2019": ("real", Z[:2]), "2020": ("real", -Z[:2])},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_careless_tables_are_read_right(name, tmp_path):
    text, options, expected = RIGHT[name]
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    data = pv.data.open(path, **options)
    assert {c.name: c.kind for c in data.schema.columns} == {k: v[0] for k, v in expected.items()}
    assert len(data) == ROWS
    restored = data.schema.restore(data[:])
    for column, (_, values) in expected.items():
        if values is not None:
            found = [None if pd.isna(value) else value for value in restored[column]]
            for value, wanted in zip(found, values, strict=False):
                is_number = isinstance(wanted, float | int)
                assert value == (pytest.approx(wanted) if is_number else wanted)
    # New rows are read in the same way, without the rows that decided on the kinds.
    start = text.splitlines(keepends=True)
    first = next(i for i, line in enumerate(start) if len(line) > 1 and "=" not in line)
    first += options.get("skip", 0)
    (tmp_path / "new.csv").write_text("".join(start[: first + 4]), encoding="utf-8")
    again = data.schema.read(tmp_path / "new.csv", **options)
    torch.testing.assert_close(again[:], data[:3], equal_nan=True)


def test_codes_are_text_in_new_files_too(tmp_path):
    frame = pd.DataFrame({"zip": ["01067", "53113", "04109"] * 9, "x": np.arange(27) * 0.7})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame[frame.zip == "53113"].to_csv(tmp_path / "b.csv", index=False)
    data = pv.data.open(tmp_path / "a.csv")
    for container in (frame, pl.from_pandas(frame)):
        assert torch.equal(pv.data.open(container)[:], data[:])
    assert torch.equal(data.schema.read(tmp_path / "b.csv")[:], data[:][1::3])


REFUSED = {
    "percent": (lines("a,x", lambda i: f"{i}%,{Z[i]}"), "'a', row 0: '0%' looks like a number"),
    "a unit": (lines("a,x", lambda i: f"{i + 40} kg,{Z[i]}"), "'40 kg' .*Remove the unit"),
    "a unit without blank": (lines("a,x", lambda i: f"{i}.5mm,{Z[i]}"), "Remove the unit"),
    "currency": (lines("a,x", lambda i: f"${i}.50,{Z[i]}"), "'a', row 0: '\\$0.50' looks"),
    "negative in parentheses": (lines("a,x", lambda i: f"({i}.50),{Z[i]}"), "looks like a number"),
    "exponents of Fortran": (lines("a,x", lambda i: f"{i}.5D+01,{Z[i]}"), "looks like a number"),
    "thousands": (lines("a,x", lambda i: f'"{i + 1},234.5",{Z[i]}'), r"thousands=','"),
    "thousands or decimals": (
        lines("a,x", lambda i: f'"{i + 1},234",{Z[i]}'),
        r"decimal=',' or thousands=','",
    ),
    "names of months": (lines("a,x", lambda i: f"{i % 28 + 1} Jan 2020,{Z[i]}"), "looks like a d"),
    "American dates": (
        lines("a,x", lambda i: f'"January {i % 28 + 1}, 2020",{Z[i]}'),
        "'January 1, 2020' looks like a date",
    ),
    "compact dates": (
        lines("a,x", lambda i: f"202001{i % 28 + 1:02d},{Z[i]}"),
        "'a': all values are dates without hyphens.*2020-01-01",
    ),
    "times": (lines("a,x", lambda i: f"{i % 24}:30,{Z[i]}"), "looks like a time of day"),
    "a header in the middle": (
        lines("a,x", lambda i: f"{i},{Z[i]}" if i != 30 else "a,x"),
        "'a', row 30: 'a' is not a number",
    ),
    "a title": ("Survey,\n" + lines("a,x", lambda i: f"{i},{Z[i]}"), "column 2 has .*skip=1"),
    "a comment": ("# by me\n" + lines("a,x", lambda i: f"u{i % 3},{Z[i]}"), "line 2: .*skip=1"),
    "no names": ("".join(f"{i % 3 + 1},{i % 7}\n" for i in range(ROWS)), "number '1'.*names of c"),
    "blanks": (lines("a b", lambda i: f"{i} {Z[i]}"), "separator=' '"),
    "a page": ("<!DOCTYPE html>\n<p>404</p>\n", "HTML page"),
    "JSON": ('{"a": 1}\n', "JSON.*pandas.read_json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_careless_tables_are_refused(name, tmp_path):
    text, words = REFUSED[name]
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"(?s){words}") as error:
        pv.data.open(path)
    assert str(path) in str(error.value)


def test_readings_in_doubt_are_said(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(lines("a;x", lambda i: f"{i + 1}.234;{Z[i]}"))
    with pytest.warns(DataWarning, match="'a': .*separates thousands, pass decimal=','"):
        pv.data.open(path)
    frame = pd.DataFrame({"a": ["Male", "male", "female"] * 9, "x": np.arange(27) * 0.7})
    with pytest.warns(DataWarning, match="'Male' and 'male' differ in upper and lower case"):
        pv.data.open(frame)


FRAMES = {
    "sparse": lambda: (
        pd.DataFrame({"a": pd.arrays.SparseArray([0, 3, 0, 5, 1]), "x": Z[:5]}),
        {"a": "count", "x": "real"},
    ),
    "null, polars": lambda: (pl.DataFrame({"a": [None] * 5, "x": Z[:5]}), {"a": "constant"}),
    "periods": lambda: (
        pd.DataFrame({"a": pd.period_range("2020-01", periods=5, freq="M"), "x": Z[:5]}),
        r"column 'a' has values of type period\[M\]",
    ),
    "durations": lambda: (
        pl.DataFrame({"a": [datetime.timedelta(hours=i) for i in range(5)], "x": Z[:5]}),
        r"column 'a' .*\.dt\.total_seconds",
    ),
    "a sparse tensor": lambda: (torch.eye(5).to_sparse(), "to_dense"),
    "channels last": lambda: (np.zeros((9, 8, 8, 3), np.uint8), r"transpose\(0, 3, 1, 2\)"),
    "records": lambda: (np.zeros(5, dtype=[("a", float)]), "pandas.DataFrame"),
}


@pytest.mark.parametrize("name", FRAMES)
def test_careless_objects_are_read_right_or_refused(name):
    source, expected = FRAMES[name]()
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected):
            pv.data.open(source)
        return
    kinds = {column.name: column.kind for column in pv.data.open(source).schema.columns}
    assert kinds == {"x": "real"} | expected


# Rows beyond those that readers look at to guess types.
MANY = 30_000


def _csv(frame, folder):
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def _parquet(frame, folder):
    frame.to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


LAST = {
    "a level": ("a", "b", "c", "category"),
    "a float": (3, 7, 2.5, "real"),
    "no number": (3, 7, "x", "row 29999: 'x' is not a number"),
    "no date": ("2020-01-01", "2020-02-01", "soon", "row 29999: 'soon' is not a date"),
    "no such date": ("2020-01-01", "2020-02-01", "2020-02-30", "row 29999: '2020-02-30' is"),
    "an infinite number": (0.5, 2.5, np.inf, "row 29999: the value is infinite"),
    "a negative count": (3, 7, -1, "real"),
    "a code": ("53113", "10115", "01067", "category"),
    "a large proportion": (0.1, 0.9, 1.01, "real"),
}


@pytest.mark.parametrize("container", [_csv, _parquet, lambda f, _: f])
@pytest.mark.parametrize("name", LAST)
def test_the_last_row_counts(name, container, tmp_path):
    first, second, last, expected = LAST[name]
    values = [first, second] * (MANY // 2)
    if name in ("a float", "no number", "a negative count"):
        values = [*range(1, 40)] * (MANY // 39 + 1)
    if name in ("a large proportion", "an infinite number"):
        values = np.linspace(0.01, 0.99, MANY).tolist()
    values = [*values[: MANY - 1], last]
    if container is _parquet and len({*map(type, values)}) > 1 and isinstance(last, str):
        values = [*map(str, values)]
    frame = pd.DataFrame({"a": values, "x": np.random.default_rng(0).normal(size=MANY)})
    source = container(frame, tmp_path)
    if "row" in expected:
        with pytest.raises(DataError, match=f"column 'a', {expected}"):
            pv.data.open(source)
        return
    column = pv.data.open(source).schema.columns[0]
    assert column.kind == expected
    if column.levels:
        assert last in column.levels


@pytest.mark.parametrize("form", [int, float, str])
def test_whole_numbers_are_labels_if_all_are_frequent(form):
    """The grid of the rule: number of values by number of rows of the rarest and largest one."""
    for count in range(3, MAX_LABELS + 3):
        for rarest in (1, LABEL_ROWS - 1, LABEL_ROWS, 3 * LABEL_ROWS):
            for start in (-1, 0, 5):
                values = [*range(start, start + count)] * (3 * LABEL_ROWS)
                values = [v for v in values if v != start + count - 1]
                values += [start + count - 1] * rarest
                frame = pd.DataFrame(
                    {"a": [*map(form, values)], "x": np.linspace(-2, 1, len(values))}
                )
                above = rarest**2 / (3 * LABEL_ROWS) * (count - 1) / count  # of a count from 0 on
                is_labels = count <= MAX_LABELS and rarest >= LABEL_ROWS
                is_labels &= start != 0 or above >= ROWS_ABOVE
                data = pv.data.open(frame)
                expected = "category" if is_labels else "count" if start >= 0 else "real"
                assert data.schema.columns[0].kind == expected, (count, rarest, start)
                assert [*map(float, data.schema.restore(data[:])["a"])] == [*map(float, values)]


@pytest.mark.parametrize("mean", [1.0, 2.0, 4.0, 8.0])
def test_samples_of_counts_are_seldom_labels(mean):
    """The largest value of a sample of counts is rare, whatever the size of the sample."""
    rng = np.random.default_rng(0)
    r = rng.gamma(2.0, mean / 2.0, 10_000)
    for draw in (lambda n: rng.poisson(mean, n), lambda n: rng.poisson(r[:n])):
        for size in (100, 300, 1000, 3000, 10_000):
            found = [is_labels(Values("integer", draw(size).astype(float))) for _ in range(100)]
            assert np.mean(found) <= 0.08  # at most 0.013 in 10,000 samples of each


@pytest.mark.parametrize(
    ("values", "new"),
    [
        (np.linspace(0, 1, 50), 1.01),
        (np.arange(50) % 13, -1),
        (np.exp(np.linspace(-3, 3, 50)), -0.5),
        (np.repeat([1, 2, 3, 4], 12), 5),
        (np.repeat([1, 2], 25), 3),
    ],
)
def test_values_beyond_the_kind_are_refused_with_the_way_out(values, new):
    frame = pd.DataFrame({"a": values, "b": np.random.default_rng(0).normal(size=len(values))})
    other = frame.copy()
    other["a"] = other["a"].astype(float)
    other.loc[7, "a"] = new
    way_out = r"column 'a', row 7: .*build the model with columns={'a': 'real'}"
    with pytest.raises(DataError, match=way_out):
        pv.data.open(frame).schema.read(other)
    found = pv.data.open(frame, columns={"a": "real"}).schema.read(other)
    assert found[7, 0] == pytest.approx(new)


def test_notes_name_the_columns_that_may_be_labels():
    frame = pd.DataFrame(
        {
            "sex": [0, 1] * 60,
            "class": [1, 2, 3] * 40,
            "children": [0, 1, 2, 0, 1, 0] * 19 + [7, 3, 4, 1, 1, 1],
            "x": np.random.default_rng(0).normal(size=120),
        }
    )
    data = pv.data.open(frame)
    assert [c.kind for c in data.schema.columns] == ["binary", "category", "count", "real"]
    assert [note.split(": ")[0] for note in data.schema.notes(data)] == ["'children'", "'class'"]
    assert [note.split("pass ")[1] for note in data.schema.notes(data)] == [
        "columns={'children': 'category'}",
        "columns={'class': 'count'}",
    ]
    assert not data.schema.notes(data, given=["class", "children"])


def test_the_careless_are_warned_of_nothing_else(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.data.open(pd.DataFrame({"a": ["x", "y", "z"] * 9, "b": np.arange(27) * 0.7}))


@pytest.mark.parametrize("ending", ["csv", "parquet", "npy", "npz", "pt", "mtx", "h5ad", "png", ""])
def test_a_pipe_is_refused_at_once(ending, tmp_path):
    path = tmp_path / f"data.{ending}"
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe"):
        pv.data.open(path)
