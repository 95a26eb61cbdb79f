"""Columns of classes: one rule for all types, in tables and in AnnData."""

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pytest

import pyro_vae as pv
from pyro_vae.data import DataError, DataWarning

X = np.linspace(-1.0, 1.0, 12)
LABELS = {  # the values of a column, and the names of its classes
    "text": ([*"bacbac"] * 2, ["a", "b", "c"]),
    "integers": ([10, 9, 2, 10, 9, 2] * 2, ["2", "9", "10"]),
    "negative": ([-1, 1, 0] * 4, ["-1", "0", "1"]),
    "truth values": ([True, False] * 6, ["False", "True"]),
    "whole floats": ([2.0, 1.0, 10.0] * 4, ["1", "2", "10"]),
}


def tables(values, folder):
    yield pd.DataFrame({"x": X, "k": values})
    yield pd.DataFrame({"x": X, "k": values}).convert_dtypes()
    yield pl.DataFrame({"x": X, "k": values})
    for ending in ("csv", "parquet"):
        path = folder / f"a.{ending}"
        frame = pl.DataFrame({"x": X, "k": values})
        frame.write_csv(path) if ending == "csv" else frame.write_parquet(path)
        yield path


@pytest.mark.parametrize("kind", LABELS)
def test_classes_of_all_types_have_the_same_names_in_every_container(kind, tmp_path):
    values, names = LABELS[kind]
    texts = [str(int(v)) if isinstance(v, float) else str(v) for v in values]
    for source in tables(values, tmp_path):
        data = pv.data.open(source, labels="k")
        assert list(data.class_names) == names
        assert [names[i] for i in data.labels] == texts
        assert data.schema.names() == ("x",)
        for other in tables(values, tmp_path):
            assert data.schema.read(other).labels.tolist() == data.labels.tolist()


def test_an_unknown_class_is_one_warning_in_tables_and_anndata():
    for known, new in ((["a", "b"], ["a", "z"]), ([1, 2], [1, 3])):
        frame = pd.DataFrame({"x": X, "k": known * 6})
        cells = anndata.AnnData(
            np.ones((12, 3), np.float32), frame[["k"]].set_axis(map(str, range(12)))
        )
        others = cells.copy()
        others.obs["k"] = new * 6
        for source, other in ((frame, frame.assign(k=new * 6)), (cells, others)):
            schema = pv.data.open(source, labels="k").schema
            with pytest.warns(DataWarning, match=r"row 1: unknown class '[z3]' \(6 such rows\)"):
                data = schema.read(other)
            assert data.labels is None
            assert data.class_names == ()


def test_numbers_with_fractions_and_dates_are_no_classes():
    dates = pd.date_range("2020-01-01", periods=12)
    for values, reason in ((X, "got the number -1|-0"), (dates, "got dates")):
        with pytest.raises(DataError, match=f"column 'k'.*text, integers or truth.*({reason})"):
            pv.data.open(pd.DataFrame({"x": X, "k": values}), labels="k")
