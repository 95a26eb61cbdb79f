"""Completed tables: a grid of types of columns and libraries, with exact values.

Each cell has the observed values of a column, and values that a model may draw: inside and far
outside of the type. No entry of the completed table is null, the observed ones are unchanged, and
types do not depend on the draws.
"""

import copy
import datetime
import decimal
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import pyro_vae as pv

ROWS = 12
OTHER = np.linspace(-1.0, 1.0, ROWS)
UTC = datetime.UTC
DAYS = [datetime.date(2020, 1, 1) + datetime.timedelta(days=9 * i) for i in range(ROWS - 2)]
TIMES = [datetime.datetime(2020, 1, 1, 8) + datetime.timedelta(hours=31 * i) for i in range(10)]
ENDS = {"Int8": (-128, 127), "Int16": (-(2**15), 2**15 - 1), "Int64": (-900, 900)}
ENDS |= {"UInt8": (0, 255), "UInt16": (0, 2**16 - 1), "UInt64": (0, 900)}
# The largest ones that float32 has.
ENDS |= {"Int32": (-(2**31), 2**31 - 128), "UInt32": (0, 2**32 - 256)}
LIBRARIES = ("pandas", "pyarrow", "polars", "parquet", "feather", "polars parquet")


def frame_of(library, values, dtype):
    """Return a frame with a column of an integer or real type, the last two values missing."""
    if library.startswith("polars"):
        column = pl.Series([*values, None, None], dtype=getattr(pl, dtype))
        return pl.DataFrame({"a": column, "b": OTHER})
    if library == "pyarrow":
        pytest.importorskip("pyarrow")
        kind = pd.ArrowDtype(getattr(__import__("pyarrow"), dtype.lower())())
        return pd.DataFrame({"a": pd.array([*values, None, None], dtype=kind), "b": OTHER})
    return pd.DataFrame({"a": pd.array([*values, None, None], dtype=dtype), "b": OTHER})


def source_of(library, frame, tmp_path):
    """Return a frame, or the path of its file."""
    if library == "parquet":
        frame.to_parquet(tmp_path / "a.parquet")
        return tmp_path / "a.parquet"
    if library == "feather":
        frame.to_feather(tmp_path / "a.feather")
        return tmp_path / "a.feather"
    if library == "polars parquet":
        frame.write_parquet(tmp_path / "a.parquet")
        return tmp_path / "a.parquet"
    return frame


def completed(source, kind, fills):
    """Return the first column of a table and of its completion, and the type of the latter."""
    data = pv.data.open(source, columns={"a": kind})
    x = data[:].clone()
    x[-2:, 0] = torch.tensor(fills)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = data.schema.complete(source, x)
    return list(found["a"]), found["a"].dtype


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", ENDS)
def test_integers_outside_of_their_type_are_written(dtype, library, tmp_path):
    low, high = ENDS[dtype]
    observed = [low, high, *range(8)]
    source = source_of(library, frame_of(library, observed, dtype), tmp_path)
    outside = [float(low - 1000), float(2 ** (high.bit_length() + 1))]
    far, wide = completed(source, "real", outside)
    assert far == [*observed, *map(int, torch.tensor(outside).tolist())]
    near, same = completed(source, "real", [3.2, 4.8])
    assert near == [*observed, 3, 5]
    assert wide == same  # tables of draws can be written below each other


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_integers_beyond_the_signed_ones_stay_unsigned(library):
    observed = [2**63 + 2**40 * i for i in range(10)]
    found, dtype = completed(frame_of(library, observed, "UInt64"), "real", [-5.0, 1e30])
    assert found == [*observed, 0, 2**64 - 2048]
    assert str(dtype) == "UInt64"


REALS = [
    ("polars", "Float32"),
    ("polars", "Float64"),
    ("pandas", "Float32"),
    ("pyarrow", "Float32"),
]


@pytest.mark.parametrize(("library", "dtype"), [*REALS, ("pyarrow", "Float16")])
def test_reals_outside_of_their_type_are_written(library, dtype):
    observed = [0.5 * i for i in range(10)]
    found, _ = completed(frame_of(library, observed, dtype), "real", [2.0**100, -(2.0**90)])
    assert found == [*observed, 2.0**100, -(2.0**90)]


def of_values(values, **options):
    """Return frames of pandas and polars with a column of Python objects."""
    column = pd.Series([*values, None, None], dtype=options.get("pandas", object))
    yield pd.DataFrame({"a": column, "b": OTHER})
    column = pl.Series([*values, None, None], dtype=options.get("polars"))
    yield pl.DataFrame({"a": column, "b": OTHER})


def test_decimals_have_their_places_and_any_number_of_digits():
    observed = [decimal.Decimal(150 + i) / 100 for i in range(10)]
    for frame in of_values(observed, polars=pl.Decimal(3, 2)):
        found, _ = completed(frame, "real", [-123456.789, 2.5])
        assert found[:-2] == observed
        assert found[-2:] == [decimal.Decimal("-123456.79"), decimal.Decimal("2.50")]


def test_dates_are_of_the_class_of_the_others():
    later = datetime.timedelta(days=200.0)
    for values, polars in ((DAYS, pl.Date), (TIMES, pl.Datetime("us"))):
        for frame in of_values(values, polars=polars):
            found, _ = completed(frame, "date", [200.0, 200.0])
            are_times = {isinstance(value, datetime.datetime) for value in found}
            assert are_times == {polars != pl.Date}
            assert found[:-2] == values
            assert found[-2:] == [values[0] + later] * 2


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Oslo"])
@pytest.mark.parametrize("unit", ["ns", "us", "ms"])
def test_dates_of_any_unit_and_zone_are_the_same_moments(unit, zone):
    columns = [pl.Series([*TIMES, None, None]).cast(pl.Datetime(unit, zone))]
    columns.append(pd.Series(columns[0].to_list(), dtype=columns[0].to_pandas().dtype))
    columns.append(pd.Series(columns[0].to_list(), dtype=f"timestamp[{unit}, tz={zone}][pyarrow]"))
    for column in columns if zone else columns[:2]:
        frame = type(column.to_frame())({"a": column, "b": OTHER})
        found, dtype = completed(frame, "date", [200.0, 200.0])
        first = found[0].astimezone(UTC) if zone else found[0]  # a day is 24 hours
        assert found[-2:] == [first + datetime.timedelta(days=200)] * 2
        assert dtype == column.dtype


EMPTY = [("UInt64", pl.UInt64), ("Int8", pl.Int8), ("string", pl.String), (object, pl.Float32)]


@pytest.mark.parametrize(("pandas", "polars"), EMPTY)
def test_a_column_without_any_value_is_filled(pandas, polars):
    numbers = pd.DataFrame({"a": [*range(ROWS - 1), None], "b": OTHER})
    schema = pv.data.open(numbers, columns={"a": "real"}).schema
    nulls, x = [None] * ROWS, torch.full((ROWS, 2), 3.0)
    for column in (pd.Series(nulls, dtype=pandas), pl.Series(nulls, dtype=polars)):
        frame = type(column.to_frame())({"a": column, "b": OTHER})
        assert [float(value) for value in schema.complete(frame, x)["a"]] == [3.0] * ROWS


@pytest.mark.parametrize("unit", ["ns", "us", "ms"])
def test_dates_beyond_the_range_of_their_unit_are_limited(unit):
    frames = of_values(TIMES, pandas=f"datetime64[{unit}]", polars=pl.Datetime(unit))
    for frame in frames:
        found, _ = completed(frame, "date", [1e7, -1e7])
        years = [value.year for value in found[-2:]]
        is_ns = unit == "ns" or isinstance(frame, pd.DataFrame)
        assert years == ([2262, 1677] if is_ns else [9999, 1])


DATE_FORMS = {  # each with the text of 2020-07-19 08:00 UTC
    "%Y-%m-%d": "2020-07-19",
    "%Y-%m-%d %H:%M": "2020-07-19 08:00",
    "%Y-%m-%dT%H:%M:%S": "2020-07-19T08:00:00",
    "%Y-%m-%d %H:%M:%S": "2020-07-19 08:00:00",
    "%Y-%m-%dT%H:%M:%S.000": "2020-07-19T08:00:00.000",
    "%Y-%m-%d %H:%M:%S.%f": "2020-07-19 08:00:00.000000",
    "%Y-%m-%dT%H:%M:%SZ": "2020-07-19T08:00:00Z",
    "%Y-%m-%d %H:%M:%S +00:00": "2020-07-19 08:00:00 +00:00",
    "%Y-%m-%dT%H:%M:%S+0000": "2020-07-19T08:00:00+0000",
}


@pytest.mark.parametrize("form", DATE_FORMS)
def test_dates_in_text_have_the_form_of_the_column(form, tmp_path):
    texts = [time.strftime(form) for time in TIMES]
    expected = [*texts, DATE_FORMS[form], DATE_FORMS[form]]
    for frame in of_values(texts):
        assert completed(frame, "date", [200.0, 200.0])[0] == expected
    frame.write_csv(tmp_path / "a.csv")
    assert completed(tmp_path / "a.csv", "date", [200.0, 200.0])[0] == expected


def test_numbers_in_text_have_the_form_of_the_column():
    for frame in of_values([str(i) for i in range(10)]):
        assert completed(frame, "count", [12.0, 3.0])[0][-2:] == ["12", "3"]
    for frame in of_values([f"{i}.5" for i in range(10)]):
        assert completed(frame, "real", [12.0, 0.25])[0][-2:] == ["12.0", "0.25"]


def test_categories_are_the_objects_of_the_column():
    numbers = pd.DataFrame(
        {"a": pd.Categorical([3, 1, 2, 3, 1, 2, 3, 1, 2, 3, None, None]), "b": OTHER}
    )
    assert completed(numbers, "category", [0.0, 2.0])[0] == [3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 3]
    texts = [*"abcabcabca"]
    for frame in of_values(texts, pandas="category", polars=pl.Enum(["a", "b", "c"])):
        found, dtype = completed(frame, "category", [0.0, 2.0])
        assert found == [*texts, "a", "c"]
        assert dtype == frame["a"].dtype


def test_a_categorical_column_without_some_of_the_levels_becomes_text():
    schema = pv.data.open(pd.DataFrame({"a": [*"abcabcabca", None, None], "b": OTHER})).schema
    texts = [*"ababababab"]
    for frame in of_values(texts, pandas="category", polars=pl.Enum(["a", "b"])):
        x = schema.read(frame)[:].clone()
        x[-2:, 0] = torch.tensor([2.0, 0.0])
        assert list(schema.complete(frame, x)["a"]) == [*texts, "c", "a"]


@pytest.mark.parametrize("missing", [[], ["a"], ["a", "b"]])
@pytest.mark.parametrize("library", ["pandas", "pyarrow", "polars", "numpy"])
def test_completed_tables_share_no_memory_with_their_source(library, missing):
    frame = pd.DataFrame({"a": np.arange(ROWS) * 1.5, "b": OTHER, "c": OTHER**2})
    schema = pv.data.open(frame).schema
    frame.loc[3, missing] = np.nan
    x = torch.zeros(ROWS, 3)
    sources = {
        "pandas": lambda: frame.copy(),
        "pyarrow": lambda: frame.convert_dtypes(dtype_backend="pyarrow"),
        "polars": lambda: pl.from_pandas(frame),
        "numpy": frame.to_numpy,
    }
    source = sources[library]()
    before = copy.deepcopy(source)
    drawn = [schema.complete(source, x) for _ in range(2)]
    for table in drawn:
        if library == "numpy":
            table[0] = -1.0
        elif library == "polars":
            table[0, "c"] = -1.0
        else:
            table.insert(0, "draw", 0)
            table.loc[:, "c"] *= 2.0
            table.loc[0, "c"] = -1.0
    if library == "numpy":
        np.testing.assert_array_equal(source, before)
    else:
        assert source.equals(before)
    assert drawn[0] is not drawn[1]
