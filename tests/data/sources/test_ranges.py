"""Numbers outside of the range of float32 are refused by name, in each kind of numbers."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import DataError

X = np.linspace(1.0, 5.0, 12)


def refused(values, kind):
    frame = pd.DataFrame({"a": values, "b": X})
    with pytest.raises(DataError, match=r"expected numbers of magnitude 1.2e-38 to 3.4e\+38") as e:
        pv.data.open(frame, columns={"a": kind})
    return str(e.value)


@pytest.mark.parametrize("kind", ["real", "positive", "count"])
@pytest.mark.parametrize("row", [0, 7])
def test_a_number_too_large_is_named_with_its_row(kind, row):
    values = np.round(X)
    values[row] = 2e40
    assert refused(values, kind).startswith(f"column 'a', row {row}: expected")
    assert "got 2e+40 (1 such values" in refused(values, kind)
    schema = pv.data.open(pd.DataFrame({"a": np.round(X), "b": X}), columns={"a": kind}).schema
    with pytest.raises(DataError, match=rf"column 'a', row {row}: .*the range of float32.*2e\+40"):
        schema.read(pd.DataFrame({"a": values, "b": X}))


@pytest.mark.parametrize("kind", ["real", "positive"])
@pytest.mark.parametrize("scale", [1e-39, 1e-42, 1e-60, 1e-300])
def test_a_column_of_numbers_too_small_is_named(kind, scale):
    assert refused(X * scale, kind).startswith("column 'a', row 0: expected")


def test_a_small_number_among_others_is_zero_unless_zero_is_refused():
    values = X.copy()
    values[3] = 1e-50
    data = pv.data.open(pd.DataFrame({"a": values, "b": X}), columns={"a": "real"})
    assert float(data[:][3, 0]) == 0.0
    assert "row 3: expected" in refused(values, "positive")


def test_zeros_and_missing_values_are_in_the_range():
    values = np.where(np.arange(12) % 3 == 0, np.nan, 0.0)
    schema = pv.data.open(
        pd.DataFrame({"a": [*X[:-1], np.nan], "b": X}), columns={"a": "real"}
    ).schema
    found = schema.read(pd.DataFrame({"a": values, "b": X}))[:][:, 0].numpy()
    np.testing.assert_array_equal(found, values)


def test_a_small_number_alone_in_later_data_is_zero():
    schema = pv.data.open(pd.DataFrame({"a": X, "b": X}), columns={"a": "real"}).schema
    assert float(schema.read(pd.DataFrame({"a": [1e-50], "b": [1.0]}))[:][0, 0]) == 0.0


def test_a_frame_without_schema_has_the_same_range():
    with pytest.raises(DataError, match=r"column 'a', row 2: expected numbers of magnitude"):
        pv.data.as_dataset(pd.DataFrame({"a": [1.0, 2.0, -1e39], "b": [1.0, 2.0, 3.0]}))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">u4", ">M8[s]", np.longdouble])
def test_numbers_of_other_machines_are_the_same_numbers(dtype):
    values = np.arange(12).astype(np.dtype(dtype).newbyteorder("=")).astype(dtype)
    native = np.arange(12).astype("M8[s]" if ">M" in str(dtype) else np.float64)
    for read in (pv.data.open, pv.data.as_dataset):
        if read is pv.data.as_dataset and values.dtype.kind == "M":
            continue
        frames = (pd.DataFrame({"a": column, "b": X}) for column in (values, native))
        found, right = (read(frame)[:] for frame in frames)
        assert torch.equal(found, right)
    if values.dtype.kind != "M":
        array = np.stack([values, values[::-1]], axis=1)
        assert torch.equal(pv.data.open(array)[:], pv.data.open(array.astype(float))[:])
