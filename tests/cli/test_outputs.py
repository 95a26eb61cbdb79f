"""Tables that commands write: each format, with columns of each type and of several."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import sparse

import pyro_vae as pv
from pyro_vae.cli import outputs
from pyro_vae.data import DataWarning

COLUMNS = {
    "real": [0.5, 1.25, 2.5, 3.125] * 3,
    "count": [0, 1, 2, 9] * 3,
    "town": [*"abca"] * 3,
    "flag": [True, False, False, True] * 3,
    "day": [*pd.date_range("2020-01-01", periods=12, freq="D")],
}
KINDS = {"real": "real", "count": "count", "town": "category", "flag": "binary", "day": "date"}
FILLS = {"real": 7.5, "count": 4.0, "town": 2.0, "flag": 1.0, "day": 30.0}
VALUES = {"real": "7.5", "count": "4", "town": "c", "flag": "True", "day": "2020-01-31"}
READERS = {"csv": pd.read_csv, "tsv": pd.read_table, "parquet": pd.read_parquet}
READERS |= {"feather": pd.read_feather}
ENDS = ("value", "low_50", "high_50", "low_90", "high_90")


def table_of(names):
    """Return a table in which the last value of each column is missing."""
    columns = {name: pd.Series(COLUMNS[name], dtype=object) for name in names}
    frame = pd.DataFrame({"other": [0.1 * i for i in range(12)], **columns})
    frame.loc[11, list(names)] = None
    return frame


def plain(value):
    """Return a value as text, the same for numbers of all types."""
    try:
        return str(float(value))
    except (TypeError, ValueError):
        return str(value).removesuffix(" 00:00:00")


CASES = [("real", "count"), ("town",), ("day",), ("count", "town"), ("flag", "real"), (*COLUMNS,)]


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("names", CASES, ids="-".join)
def test_intervals_of_columns_of_any_types_are_written(names, ending, tmp_path):
    data = pv.data.open(table_of(names), columns={name: KINDS[name] for name in names})
    x = data[:].clone()
    x[11, 1:] = torch.tensor([FILLS[name] for name in names])
    missing = data[:].isnan()
    found = {**dict.fromkeys(ENDS, x), "share": torch.full_like(x, 0.5)}
    path = tmp_path / f"iv.{ending}"
    outputs.write_intervals(path, data, missing, found)
    written = READERS[ending](path)
    assert written["row"].tolist() == [11] * len(names)
    assert written["column"].tolist() == list(names)
    for end in ENDS:
        assert [*map(plain, written[end])] == [plain(VALUES[name]) for name in names]
    if {*names} <= {"real", "count"}:
        assert written["value"].dtype.kind in "if"


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("taken", [[], ["draw"], ["draw", "draw_1"]])
def test_the_number_of_a_draw_is_in_a_column_of_its_own(taken, ending, tmp_path):
    frame = table_of(["real"]).assign(**dict.fromkeys(taken, "mine"))
    source = tmp_path / f"a.{ending}"
    outputs.write_frame(source, frame)
    data = pv.data.open(source)
    tables = torch.stack([data[:].nan_to_num(float(i)) for i in range(3)])
    name = ["draw", "draw_1", "draw_2"][len(taken)]
    path = tmp_path / f"out.{ending}"
    if taken:
        with pytest.warns(DataWarning, match=f"number of each completed table is in '{name}'"):
            outputs.write_completed(path, str(source), {}, data, tables)
    else:
        outputs.write_completed(path, str(source), {}, data, tables)
    written = READERS[ending](path)
    assert list(written.columns) == [name, *frame.columns]
    assert written[name].tolist() == [i for i in range(3) for _ in range(12)]
    assert all((written[column] == "mine").all() for column in taken)
    assert written["real"][11::12].tolist() == [0.0, 1.0, 2.0]


def test_a_copy_of_anndata_needs_anndata(tmp_path):
    for data in ("people.csv", "mnist", "a.npy"):
        with pytest.raises(ValueError, match=f"needs data in this format, got {data}"):
            outputs.check(tmp_path / "z.h5ad", "--out", [data, None], [".csv", ".h5ad"])
    outputs.check(tmp_path / "z.h5ad", "--out", ["cells.h5ad"], [".csv", ".h5ad"])


def filled_arrays():
    """Return arrays with missing values: levels that are not 0, 1, ..., digits beyond float32."""
    rng = np.random.default_rng(0)
    levels = np.stack([rng.choice(of, 60) for of in ([1, 2], [10, 20, 30], [0.5, 7.5])], axis=1)
    precise = 1e6 + rng.normal(size=(60, 2)).round(6)
    wide = rng.normal(size=(60, 1001)).round(12)
    return {"levels": levels.astype(np.float64), "precise": precise, "wide": wide}


@pytest.mark.parametrize("ending", ["npy", "npz", "pt", "h5"])
@pytest.mark.parametrize("content", filled_arrays())
def test_arrays_are_filled_with_values_and_keep_observed_ones(content, ending, tmp_path):
    x = filled_arrays()[content]
    x[::7, 0] = np.nan
    source = tmp_path / f"x.{ending}"
    if ending == "npy":
        np.save(source, x)
    elif ending == "npz":
        np.savez(source, other=np.zeros(3), x=x)
    elif ending == "pt":
        torch.save(torch.from_numpy(x), source)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(source, "w") as file:
            file["x"] = x
    options = {"key": "x"} if ending == "npz" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        data = pv.data.open(source, **options)
    draws = torch.stack([data[:].nan_to_num(value) for value in (0.0, 1.0)])
    expected = np.stack([np.nan_to_num(x, nan=value) for value in (0.0, 1.0)])
    if content == "levels" and data.schema.content == "table":
        expected = np.stack([np.nan_to_num(x, nan=value) for value in (1.0, 2.0)])
    for tables, right in ((draws, expected), (draws[1], expected[1])):
        outputs.write_completed(tmp_path / "full.npy", str(source), options, data, tables)
        written = np.load(tmp_path / "full.npy")
        assert written.dtype == np.float64
        np.testing.assert_array_equal(written, right)


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("index", ["name", "dates", "two levels", "shuffled"])
def test_completed_tables_keep_the_index_of_parquet_files(index, ending, tmp_path):
    indices = {
        "name": pd.Index([f"P{i}" for i in range(12)], name="patient"),
        "dates": pd.date_range("2020-01-01", periods=12, name="day"),
        "two levels": pd.MultiIndex.from_product([[*"abc"], range(4)], names=["site", "visit"]),
        "shuffled": pd.Index([*range(11, -1, -1)]),
    }
    frame = table_of(["real"]).astype({"real": float}).set_axis(indices[index], axis="index")
    source, path = tmp_path / "a.parquet", tmp_path / f"out.{ending}"
    frame.to_parquet(source)
    data = pv.data.open(source)
    for tables in (data[:].nan_to_num(1.0), data[:].nan_to_num(1.0).expand(2, -1, -1)):
        outputs.write_completed(path, str(source), {}, data, tables)
        written = READERS[ending](path)
        assert len(written) == 12 * (tables.dim() - 1)
        if ending == "parquet":
            assert written.index[:12].equals(frame.index)
        else:
            names = [name or "index" for name in frame.index.names]
            assert [*written.columns] == ["draw"] * (tables.dim() - 2) + [*names, *frame.columns]
            expected = frame.reset_index()[names].astype(str).to_numpy()
            np.testing.assert_array_equal(written[names][:12].astype(str).to_numpy(), expected)


def test_samples_in_arrays_are_numbers(tmp_path):
    """Text and dates have no array that `numpy.load` reads; flags and sparse counts have one."""
    counts = pv.data.open(sparse.csr_array(np.array([[0, 3, 1], [2, 0, 0]])))
    flags = pv.data.open(table_of(["flag", "count"]))
    for schema, x in ((counts.schema, counts[:]), (flags.schema, flags[:].nan_to_num(1.0))):
        outputs.write_samples(tmp_path / "s.npy", schema, x, len(x))
        np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), x.numpy())
        assert ".npy" in outputs.endings_of_samples(schema, is_image=False)
    for name in ("town", "day"):
        schema = pv.data.open(table_of([name, "real"])).schema
        assert ".npy" not in outputs.endings_of_samples(schema, is_image=False)


@pytest.mark.parametrize("folders", [("a", "b"), ("",)])
def test_rows_of_images_have_the_names_of_their_files(folders, tmp_path):
    names = [f"{folder}/{i}.png".lstrip("/") for folder in folders for i in (10, 2, 9)]
    for value, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), 30 * value, np.uint8)).save(tmp_path / name)
    first = pv.data.open(tmp_path)
    for path in (tmp_path, tmp_path / names[-1]):
        data = first.schema.read(path)
        columns = outputs.row_columns(data, str(path))
        assert len(columns["file"]) == len(data)
        for file, x in zip(columns["file"], data[:], strict=True):
            value = np.asarray(Image.open(tmp_path / file)).flat[0]
            np.testing.assert_allclose(first.schema.restore(x[None]).flatten()[0], value)
    assert "file" not in outputs.row_columns(pv.data.open(np.eye(12) + 0.5), "x.npy")
