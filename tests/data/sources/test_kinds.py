"""The rules of kinds, and tables of careless people: each is refused with a sentence, or right."""

import datetime
import decimal
import re
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest

import pyro_vae as pv
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources.kinds import KINDS, MAX_LEVELS
from tests.support.tables import COLUMNS

B = [1.0, 2.0, 3.5]  # a column of real numbers


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.5, 2.5, -1.0], "real"),
        ([1, 2, -1], "real"),
        ([0, 5, 2], "count"),
        ([0.0, 5.0, np.nan, 2.0], "count"),
        ([0, 2**24 + 2, 4], "real"),
        ([*range(9)], "count"),
        ([*range(10)], "identifier"),
        ([*range(1, 11)], "identifier"),
        ([0.0, 0.5, 1.0], "proportion"),
        ([0.5, 0.6, 1.5], "real"),
        (np.exp(np.linspace(-3, 3, 50)), "positive"),
        ([2.5, 2.5, 7.0], "binary"),
        (["a", "b", "a"], "binary"),
        (["a", "b", "c", "a"], "category"),
        (["a", "b", "c"], "identifier"),
        ([f"{i}x" for i in range(MAX_LEVELS)] * 2, "category"),
        ([f"{i}x" for i in range(MAX_LEVELS + 1)] * 2, "identifier"),
        (["2020-01-01", "2020-01-02", "2020-01-05"], "date"),
        (["2020-01-01T10:00:00Z", "2020-01-02 10:00Z", "2020-01-05T00:00:00+02:00"], "date"),
        ([None, "x", None], "constant"),
        ([None, None, None], "constant"),
        (pd.Categorical([1, 2, 3, 1]), "category"),
        ([decimal.Decimal("1.5"), decimal.Decimal("2.5"), decimal.Decimal("-4.5")], "real"),
        ([1, "2", -2.5], "real"),
    ],
)
def test_kinds_are_found_by_the_stated_rules(values, kind):
    frame = pd.DataFrame({"a": values})
    schema = pv.data.open(frame.assign(b=np.linspace(-1, 1, len(frame)))).schema
    assert schema.columns[0].kind == kind


@pytest.mark.parametrize("code", [-999, -99, 999, 9999, 888, -77.0])
@pytest.mark.parametrize("repeats", [0, 1, 2, 30])
@pytest.mark.parametrize("container", ["frame", "CSV"])
def test_codes_for_missing_values_are_reported(code, repeats, container, tmp_path):
    rng = np.random.default_rng(0)
    a = rng.permutation([*rng.normal(25, 3, 60).round(1), *[code] * repeats])
    frame = pd.DataFrame({"bmi": a, "b": rng.normal(size=len(a))})
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pv.data.open(frame if container == "frame" else path)
        pv.data.open(frame, columns={"bmi": "real"})
    texts = [str(warning.message) for warning in found]
    assert len(texts) == (repeats > 1)
    if texts:
        assert f"'bmi': {code:g} occurs {repeats} times" in texts[0]
        data = pv.data.open(path, na=[str(code), str(float(code))])
        assert int(data[:].isnan().sum()) == repeats


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ([*range(500, 9000, 90), -99, -99], [-99]),  # below 0, and less far than the others
        ([*range(18, 90), -99, -99, -88, -88], [-99, -88]),
        ([*range(18, 90), -99, -98, -97], [-99, -98, -97]),
        ([*range(18, 100), 998, 999], [999, 998]),  # ages of 97 to 99 are none
        ([1, 2, 3, 4, 5, 98, 99] * 12, [99, 98]),  # answers
        ([0, 1, 3, 0, 1, 2, -99, -99], [-99]),
        ([0, 99] * 12, [99]),
    ],
)
def test_codes_of_surveys_are_reported(values, codes):
    frame = pd.DataFrame({"a": values, "b": np.linspace(-1, 1, len(values))})
    with pytest.warns(pv.data.DataWarning, match="missing values") as found:
        pv.data.open(frame)
    texts = [str(warning.message) for warning in found if "missing values" in str(warning.message)]
    assert len(texts) == 1
    assert f"na={[str(code) for code in codes]}," in texts[0]
    kind = re.search(r"columns=\{'a': '(\w+)'\}", texts[0])[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.data.open(frame, columns={"a": kind})


@pytest.mark.parametrize(
    "values",
    [
        [99, 98, 97.5, *range(90)],  # no gap
        [97, 98, 99] * 12,  # labels
        [98, 99] * 12,
        [-99, *range(-98, 0)] * 2,  # no other sign
        [99.5, 99.5, 1, 2.5, 3],  # another number
        [1, 2, 5, 9] * 12,  # labels
        [99, 1, 2, 3, 4, 5.5],  # once
    ],
)
def test_other_numbers_are_no_codes(values):
    pv.data.open(pd.DataFrame({"a": values, "b": np.linspace(-1, 1, len(values))}))


@pytest.mark.parametrize("largest", [2**31, 2**53, 2**63 - 2**11, 2**63, 2**64 - 2**12])
def test_large_integers_are_restored(largest):
    values = np.array([0, largest // 3, largest // 5, largest], dtype=np.uint64)
    frame = pd.DataFrame({"a": values, "b": [0.5, 1.5, 2.0, -1.0]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pv.data.open(frame, columns={"a": "real"})
    restored = data.schema.restore(data[:])["a"]
    assert restored.dtype.kind in "iu"
    np.testing.assert_allclose(restored.astype(float), values.astype(float), rtol=1e-7)


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("first", [2**53 + 1, 2**60 + 1, -(2**62) - 1])
def test_integers_that_change_as_floats_are_no_levels(first, count, library):
    """In float64 they would be rounded, and different levels could become one."""
    values = [None, *[first + 2 * i for i in range(count)] * 20]
    column = pl.Series(values) if library is pl.DataFrame else pd.array(values, dtype="Int64")
    frame = library({"id": column, "b": np.arange(len(values)) / 7})
    with pytest.raises(DataError, match=r"'id', row [123]: -?\d{16,} has too many digits"):
        pv.data.open(frame, columns={} if count < 3 else {"id": "category"})
    assert pv.data.open(frame, columns={"id": "identifier"}).schema.names() == ("b",)


def test_every_kind_is_found():
    assert set(COLUMNS) == set(KINDS)


def test_times_with_a_zone_are_utc():
    berlin = pd.date_range("2020-01-01", periods=5, tz="Europe/Berlin")
    data = pv.data.open(pd.DataFrame({"a": berlin}))
    restored = data.schema.restore(data[:])["a"].tolist()
    assert restored[0] == datetime.datetime(2019, 12, 31, 23, tzinfo=datetime.UTC)


def rows(template, count=12):
    return "a,b\n" + "".join(template.format(i=i, j=i + 1) + f",{i * 0.7}\n" for i in range(count))


# Files, and the sentence about each.
FILES = [
    ("", "first line is empty"),
    ("\n\n", "first line is empty"),
    ("a,b\n", "is empty: it has 0 rows"),
    (("a,b\n1.5,2\n3,4.5\n", {"separator": ";"}), "separator=';' gives .* separator=','"),
    ("a,b\n1.5,2\n2,3,4\n", "line 3: got 3 values, expected 2, .* must be quoted"),
    ("a,b\n1.5,2\n2\n3,4.5\n", "line 3: got 1 values, expected 2, .* add the ','"),
    ("a,b\n1.5,2\n3,4.5\n# lab 3\n", "line 4: got 1 values, .* if it is a comment"),
    ("a,b\n1.5,2\n# lab 3, Graz, 2020\n", "line 3: got 3 values, .* if it is a comment"),
    ("a,b\n1.5,2,7\n2,3,7\n", "line 2: got 3 values, expected 2"),
    ('a,b\n"u,2\nw,3\n', "line 3: got 1 values"),
    ("a,a\n1,2\n", "'a' occurs 2 times"),
    ("1.5,x\n2.5,y\n", "first line has the number '1.5'"),
    (rows("{i}.5") + "abc,3\n", r"column 'a', row 12: 'abc' is not a number"),
    (rows('"{i},5"'), r"column 'a', row 0: '0,5' looks like a number with a decimal comma"),
    (rows("{i}%"), r"column 'a', row 0: '0%' looks like a number"),
    (rows("{j:02d}.01.2020"), r"column 'a', row 0: '01.01.2020' looks like a date"),
    (rows("{j}/1/2020"), r"column 'a', row 0: '1/1/2020' looks like a date"),
    (rows("2020-02-{j:02d}") + "2020-02-30,3\n", r"column 'a', row 12: '2020-02-30' is no date"),
    ("a\ninf\n1\n2.5\n", r"column 'a', row 0: the value is infinite"),
    ("a\n1\n-1e39\n2.5\n", r"column 'a', row 1: expected numbers of magnitude .*, got -1e\+39"),
    (b"PK\x03\x04" + bytes(200), "Excel workbook"),
    (b"a,b\n1.5,2\n\x00\x00,3\n", "line 3: the line has a NUL byte"),
    ("a,b\n1.5,ü\n".encode("utf-16"), "encoding='utf-16'"),
    ("a,b\n1.5,x\n2,Müller\n".encode("latin-1"), "line 3: the byte 0xfc .*encoding='latin-1'"),
    (("a\n1.5\n", {"encoding": "klingon"}), "unknown encoding: klingon"),
    (("a\n1.5\n", {"columns": {"z": "real"}}), "has no column 'z'"),
    (("a\n1.5\n2\n3\n", {"columns": {"a": "rael"}}), "unknown kind 'rael'"),
    (("a\n1.5\n2\n3\n", {"columns": {"a": "binary"}}), "'a': .*exactly 2 different values, got 3"),
    (("a\n1.5\n-2\n3\n", {"columns": {"a": "count"}}), "'a', row 0: expected integers from 0"),
    (("a\n1.5\n-2\n3\n", {"columns": ["a"]}), "expected columns as kinds by name"),
    (("a\n1.5\n-2\n3\n", {"colums": {}}), "'colums' does not apply"),
    (("a,b\n,1.5\n,2\n,4\n", {"columns": {"a": "real"}}), "'a' has no values"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_careless_files_are_refused_with_a_sentence(content, message, tmp_path):
    content, options = content if isinstance(content, tuple) else (content, {})
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"(?s){message}") as error:
        pv.data.open(path, **options)
    assert str(path) in str(error.value) or "colums" in options


FRAMES = {
    "lists": (pd.DataFrame({"a": [[1], [2], [3]], "b": B}), "column 'a', row 0: got a list"),
    "dicts": (pd.DataFrame({"b": B, "a": [None, {1: 2}, {}]}), "column 'a', row 1: got a dict"),
    "bytes": (pd.DataFrame({"b": B, "a": [b"x", b"y", b"z"]}), "column 'a', row 0: got a bytes"),
    "lists, polars": (pl.DataFrame({"a": [[1], [2], [3]]}), "'a' has values of type List"),
    "complex": (pd.DataFrame({"a": [1j, 2, 3]}), "'a' has values of type"),
    "periods": (pd.DataFrame({"a": pd.period_range("2020", periods=3)}), "'a' has values of type"),
    "durations": (pd.DataFrame({"a": pd.to_timedelta(B, unit="D")}), "'a' has values of type Dur"),
    "infinite": (pl.DataFrame({"a": [1.0, np.inf]}), "'a', row 1: the value is infinite"),
    "duplicates": (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), "'a' 2 times"),
    "duplicates as text": (pd.DataFrame([[1.0, 2.0]], columns=["1", 1]), "'1' 2 times"),
    "all missing": (pd.DataFrame({"a": [np.nan] * 3}), "no column to model"),
    "constants": (pd.DataFrame({"a": [1, 1, 1]}), "no column to model"),
    "no rows": (pd.DataFrame({"a": []}), "0 rows"),
    "no columns": (pd.DataFrame(), "0 rows"),
    "lazy": (pl.DataFrame({"a": B}).lazy(), r"\.collect\(\)"),
    "series": (pd.Series(B), r"\.to_frame\(\)"),
    "series of polars": (pl.Series(B), r"\.to_frame\(\)"),
    "dict": ({"a": B}, "DataFrame"),
    "list": ([B, B], r"numpy\.array"),
    "number": (3, "cannot read a int"),
    "no file": ("absent.csv", "absent.csv: no such file"),
}


@pytest.mark.parametrize(("source", "message"), FRAMES.values(), ids=FRAMES)
def test_careless_frames_are_refused_with_a_sentence(source, message):
    with pytest.raises(DataError, match=message):
        pv.data.open(source)


def test_a_directory_is_refused(tmp_path):
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: no images in this folder; expected"):
        pv.data.open(folder)


@pytest.mark.parametrize("name", ["table.parquet", "table.feather"])
def test_damaged_files_are_refused(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"PAR1 and noise")
    with pytest.raises(DataError, match="cannot be read as a table"):
        pv.data.open(path)


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ("a\n1.5\n2.5\n-3\n", {}, [1.5, 2.5, -3]),
        ("\ufeffa\n1.5\n2.5\n-3\n", {}, [1.5, 2.5, -3]),
        ("a;b\n1,5;x\n2,5;x\n-3;x\n", {"decimal": ","}, [1.5, 2.5, -3]),
        ("a\n1.5\n2.5\n?\n-3\n", {}, [1.5, 2.5, np.nan, -3]),
        ("a\n1.5\n2.5\nnone at all\n-3\n", {"na": ["none at all"]}, [1.5, 2.5, np.nan, -3]),
        ("a\n1\n9223372036854775808\n2\n", {}, [1, 2**63, 2]),
        ("a\n1\n1180591620717411303424\n2\n", {}, [1, 2**70, 2]),
        ("a, b\n1.5, x\n2.5, x\n4.5, x\n", {}, [1.5, 2.5, 4.5]),
        ('"a"\n"1.5"\n"2.5"\n"4.5"\n', {}, [1.5, 2.5, 4.5]),
    ],
)
def test_unusual_files_are_read_right(content, options, expected, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(content, encoding="utf-8")
    x = pv.data.open(path, **options)[:]
    assert x.shape == (len(expected), 1)
    np.testing.assert_array_equal(x[:, 0].numpy(), np.array(expected, np.float32))


def test_10_000_levels_are_left_out_unless_they_are_a_category():
    levels = [f"level {i % 10_000}" for i in range(20_000)]
    frame = pd.DataFrame({"a": levels, "b": np.linspace(-1, 1, 20_000)})
    assert pv.data.open(frame).event_shape == (1,)
    assert pv.data.open(frame, columns={"a": "category"}).schema.columns[0].num_levels == 10_000


def test_text_is_a_category_on_request():
    frame = pd.DataFrame({"a": ["1,5", "2,5", "1,5"], "b": B})
    assert pv.data.open(frame, columns={"a": "binary"}).schema.columns[0].levels == ["1,5", "2,5"]


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2", "3"] * 20, "category"),
        (["0", "1"] * 30, "binary"),
        (["2021"] * 60, "constant"),
        ([str(i % 7) for i in range(59)] + ["12"], "count"),
        ([str(1900 + 7 * i % 90) for i in range(60)], "real"),
        (["1", "2", None] * 20, "binary"),
        (["1.5", "2", "4"] * 20, "real"),
    ],
)
def test_whole_numbers_written_as_text_are_restored_as_whole_numbers(values, kind, library):
    """As in a CSV file, which has no other text."""
    frame = library({"a": values, "b": np.linspace(-1, 1, 60)})
    data = pv.data.open(frame)
    assert data.schema.columns[0].kind == kind
    restored = data.schema.restore(data[:])["a"]
    expected = [None if value is None else float(value) for value in values]
    assert [None if pd.isna(value) else float(value) for value in restored] == expected
    written = {str(value) for value in restored if not pd.isna(value)}
    assert written == {*values} - {None} or "1.5" in values
