"""Tables are read the same from every container, restored, and checked against their schema."""

import datetime
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.sources import read_by
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.reporting.rows import imputed
from tests.support.tables import CONTAINERS, nullable, random_table

SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_container_gives_the_same_x_and_kinds(seed, tmp_path):
    values, kinds = random_table(seed)
    found = {}
    for name, container in CONTAINERS.items():
        folder = tmp_path / name
        folder.mkdir()
        found[name] = pv.data.open(container(values, folder))
    expected = found["pandas"]
    assert {c.name: c.kind for c in expected.schema.columns} == kinds
    for name, data in found.items():
        assert [c.kind for c in data.schema.columns] == [c.kind for c in expected.schema.columns], (
            name
        )
        assert torch.equal(data[:].nan_to_num(nan=-999), expected[:].nan_to_num(nan=-999)), name


def plain(value):
    """Return a value as Python's own, None if it is missing."""
    if value is None or value is pd.NaT or value is pd.NA or value != value:
        return None
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_table_is_restored_up_to_float32(seed, container, tmp_path):
    values, kinds = random_table(seed)
    source = CONTAINERS[container](values, tmp_path)
    data = pv.data.open(source)
    restored = data.schema.restore(data[:], like=source)
    assert isinstance(restored, pl.DataFrame if container == "polars" else pd.DataFrame)
    kept = [name for name in values if kinds[name] != "identifier"]
    assert list(restored.columns) == kept
    for name in kept:
        for found, given in zip(map(plain, restored[name].to_list()), values[name], strict=True):
            if kinds[name] == "constant" and given is None:
                assert found == plain(data.schema.restore(data[:1])[name][0])
            elif given is None:
                assert found is None
            elif isinstance(given, datetime.datetime):
                # float32 has steps of 2^-13 days at 2,000 days.
                assert abs(found - given) < datetime.timedelta(seconds=20), name
            elif isinstance(given, float):
                assert found == pytest.approx(given, rel=1e-6)
            else:
                assert found == given, name
    again = data.schema.read(restored)
    torch.testing.assert_close(again[:], data[:], equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_restored_columns_have_the_types_of_the_table(seed):
    values, _ = random_table(seed)
    tables = {"pandas": nullable(values), "polars": pl.DataFrame(values)}
    for library, table in tables.items():
        data = pv.data.open(table)
        restored = data.schema.restore(data[:], like=table)
        for name in restored.columns:
            types = [str(frame[name].dtype).lower() for frame in (table, restored)]
            # Text is of three types in pandas, and nullable types have other names.
            same = {"boolean": "bool", "string": "object", "str": "object"}
            same = same if library == "pandas" else {}
            types = [same.get(t, t).partition("[")[0] for t in types]
            assert types[0] == types[1], (library, name)


WITHOUT_PANDAS = """
import sys
sys.modules["pandas"] = None
import polars as pl
import numpy as np
import torch
import pyro_vae as pv
rng = np.random.default_rng(0)
days = pl.datetime_range(pl.datetime(2020, 1, 1), pl.datetime(2020, 2, 29), "1d", eager=True)
frame = pl.DataFrame({
    "a": [None, *rng.normal(size=59)], "n": rng.poisson(4, 60), "t": [None, *"uvw" * 19, "u", "v"],
    "code": rng.choice(["1", "2", "3.5"], 60), "b": rng.random(60) < 0.5, "day": days[:60],
})
vae = pv.suggest(frame, 2, hidden=[8], show=False)
kinds = [column.kind for column in vae.schema.columns]
assert kinds == ["real", "count", "category", "real", "binary", "date"]
pv.fit(vae, frame, epochs=1, progress=False, compile=False)
assert vae.encode(frame).mean.shape == (60, 2)
full, again = vae.impute(frame, 5), vae.reconstruct(frame)
assert full.schema == frame.schema and full.null_count().sum_horizontal()[0] == 0
assert again["n"].dtype == pl.Int64 and set(again["t"]) <= {*"uvw"}
drawn = vae.schema.restore(vae.sample(4), like=frame)
assert drawn.columns == frame.columns
assert vae.schema.read(frame[:3])[:].shape == (3, 6)
for wrong in (frame.with_columns(t=pl.lit("z")), frame.with_columns(n=pl.lit(-1))):
    try:
        vae.schema.read(wrong)
    except pv.data.DataError as error:
        assert "row 0" in str(error)
    else:
        raise AssertionError
assert np.isfinite(pv.evaluate(vae, frame, num_samples=3).elbo).all()
"""


def test_frames_of_polars_need_no_pandas():
    subprocess.run([sys.executable, "-c", WITHOUT_PANDAS], check=True)


def test_new_data_are_read_by_the_schema_of_the_old():
    values, _ = random_table(0)
    schema = pv.data.open(pd.DataFrame(values)).schema
    first = {name: column[:1] for name, column in values.items()}
    for frame in (pd.DataFrame(first), pl.DataFrame(first)):
        torch.testing.assert_close(
            schema.read(frame)[:], schema.read(pd.DataFrame(values))[:1], equal_nan=True
        )


TABLE = pd.DataFrame(
    {
        "age": [31.5, 42.25, 28.5, 33.75],
        "rate": [0.25, 0.5, 0.875, 0.125],
        "visits": [0, 3, 2, 5],
        "town": ["Bonn", "Köln", "Jena", "Bonn"],
        "day": pd.to_datetime(["2020-01-05", "2020-02-01", "2020-03-01", "2020-01-07"]),
    }
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="town"), r"the column 'town' is missing"),
        (lambda t: t.assign(town=["Bonn", "Köln", "Bonn", "Ulm"]), r"'town', row 3: .*got 'Ulm'"),
        (
            lambda t: t.assign(town=[1, 2, 3, 4]),
            r"'town'(: expected values of type text|, row 0: expected the levels .*got '1')",
        ),
        (lambda t: t.assign(age=[1.5, np.nan, 2.5, 3.5]), r"'age', row 1: the value is missing"),
        (lambda t: t.assign(age=["a", "b", "c", "d"]), r"'age': .*real, got 'a' in row 0"),
        (lambda t: t.assign(age=[1.5, 2.5, np.inf, 3.5]), r"'age', row 2: the value is infinite"),
        (lambda t: t.assign(age=[1.5, 2.5, 1e39, 3.5]), r"'age', row 2: .*got 1e\+39"),
        (lambda t: t.assign(visits=[1, 2, -3, 4]), r"'visits', row 2: expected integers from 0"),
        (lambda t: t.assign(visits=[1, 2.5, 3, 4]), r"'visits', row 1: expected integers from 0"),
        (lambda t: t.assign(rate=[0.25, 0.5, 1.5, 0.5]), r"'rate', row 2: expected numbers b"),
        (lambda t: t.assign(rate=[0.25, 0.5, 1.0, 0.5]), r"'rate', row 2: .*without 0 and 1"),
        (lambda t: t.assign(day=["2020-01-01"] * 3 + ["soon"]), r"'day', row 3: 'soon' is not"),
        (lambda t: t.assign(day=[1, 2, 3, 4]), r"'day': expected values of type date"),
        (lambda t: t.iloc[:0], r"is empty"),
    ],
)
@pytest.mark.parametrize("library", ["pandas", "polars", "CSV"])
def test_other_data_are_refused_with_column_and_row(change, message, library, tmp_path):
    schema = pv.data.open(TABLE).schema
    frame = changed = change(TABLE.copy())
    if library == "polars":
        frame = pl.from_pandas(changed)
    elif library == "CSV":
        frame = tmp_path / "other.csv"
        changed.to_csv(frame, index=False)
        message = rf"other.*{message}"
    with pytest.raises(DataError, match=message):
        schema.read(frame)


def test_new_columns_are_ignored_with_a_warning():
    schema = pv.data.open(TABLE).schema
    with pytest.warns(DataWarning, match="'weight'"):
        x = schema.read(TABLE.assign(weight=1.0))[:]
    assert torch.equal(x, schema.read(TABLE)[:])


def test_an_array_has_the_columns_in_order():
    x = np.random.default_rng(0).normal(size=(20, 3))
    data = pv.data.open(pd.DataFrame(x, columns=["a", "b", "c"]))
    assert torch.equal(data.schema.read(x)[:], torch.from_numpy(x).float())
    assert isinstance(data.schema.restore(data[:], like=x), np.ndarray)


@pytest.mark.parametrize(
    ("values", "reported"),
    [
        (1e9 + np.random.default_rng(0).normal(size=50), True),
        (1_700_000_000 + np.arange(0, 350, 7), True),
        (2**24 + 1 + np.arange(50) * 1000, True),
        (1e6 + np.random.default_rng(0).normal(size=50) * 1e5, False),
        (np.random.default_rng(0).lognormal(20, 1, 500), False),
        (np.arange(50) * 1000 - 1, False),
        (pd.date_range("2020-01-01", periods=50, freq="h").to_numpy(), False),
    ],
)
def test_rounding_to_float32_is_reported(values, reported):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pv.data.open(pd.DataFrame({"a": values}))
    assert [w.category for w in found] == [DataWarning] * reported
    assert all("'a'" in str(w.message) for w in found)


def test_levels_of_a_given_kind_are_kept():
    frame = pd.DataFrame({"zip": ["01234", "10115", "01234"], "b": [1.5, 2.5, 4.0]})
    data = pv.data.open(frame, columns={"zip": "category"})
    assert data.schema.columns[0].levels == ["01234", "10115"]
    assert data.schema.restore(data[:])["zip"].tolist() == frame["zip"].tolist()


def test_a_schema_is_saved_with_the_model(tmp_path):
    values, _ = random_table(1)
    frame = pd.DataFrame(values)
    vae = pv.suggest(frame, show=False)
    vae.save(tmp_path / "model")
    schema = pv.load(tmp_path / "model").schema
    assert schema.rows() == vae.schema.rows()
    torch.testing.assert_close(
        schema.read(frame)[:], vae.schema.read(frame)[:], equal_nan=True, rtol=0, atol=0
    )


def test_a_schema_reads_other_files_with_the_options_of_the_first(tmp_path):
    options = {"encoding": "latin-1", "na": ["none"], "decimal": ",", "columns": {"size": "real"}}
    first, other = tmp_path / "first.csv", tmp_path / "other.csv"
    for path, rows in ((first, "2,5;Århus\nnone;Køge\n1,0;Århus\n"), (other, "none;Køge\n7,5;\n")):
        path.write_text(f"size;city\n{rows}", encoding="latin-1")
    schema = pv.data.open(first, separator=";", **options).schema
    found = read_by(schema, str(other), {"separator": ";", **options})[:]
    torch.testing.assert_close(
        found, torch.tensor([[torch.nan, 0.0], [7.5, torch.nan]]), equal_nan=True
    )


@pytest.mark.parametrize("num_draws", [1, 2, 7, 8])
def test_one_rule_summarizes_draws_everywhere(num_draws):
    """Numbers get numpy's median, and levels the smallest mode, in `center` and in `imputed`."""
    rng = np.random.default_rng(num_draws)
    frame = pd.DataFrame({"a": rng.normal(size=30), "b": list("xyz") * 10, "c": [True, False] * 15})
    data = pv.data.open(frame)
    numbers = rng.normal(size=(num_draws, 30))
    levels = rng.integers(0, 3, size=(num_draws, 30))
    truth = rng.integers(0, 2, size=(num_draws, 30))
    draws = torch.tensor(np.stack([numbers, levels, truth], axis=-1), dtype=torch.float32)
    expected = np.stack(
        [
            np.median(draws[..., 0].numpy(), axis=0),
            *([np.bincount(column).argmax() for column in codes.T] for codes in (levels, truth)),
        ],
        axis=-1,
    )
    found = imputed(
        SimpleNamespace(completed=lambda x, num_samples: draws), data, [0, 3, 2], num_draws, 0
    )
    for summary in (data.schema.center(draws), found["value"]):
        np.testing.assert_allclose(summary, expected, rtol=1e-6)
    shares = (draws[..., 1:] == torch.tensor(expected[:, 1:])).float().mean(0)
    torch.testing.assert_close(found["share"][:, 1:], shares)
    assert found["share"][:, 0].isnan().all()
