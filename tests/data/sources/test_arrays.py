"""Arrays are read from every container with the same values and schema, and bad ones refused."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.errors import DataError


def _npy(x, path):
    np.save(path.with_suffix(".npy"), x)
    return path.with_suffix(".npy")


def _npz(x, path):
    np.savez(path.with_suffix(".npz"), x=x)
    return path.with_suffix(".npz")


def _pt(x, path):
    torch.save({"x": torch.from_numpy(x)}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


CONTAINERS = {
    "array": lambda x, path: x,
    "tensor": lambda x, path: torch.from_numpy(x),
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
}


def arrays():
    rng = np.random.default_rng(0)
    yield "numbers", rng.normal(size=(20, 3, 4)).astype(np.float32)
    yield "float64", rng.normal(size=(20, 2, 3))
    yield "grey pixels", rng.integers(0, 256, (20, 4, 5), dtype=np.uint8)
    yield "colour pixels", rng.integers(0, 256, (20, 3, 4, 5), dtype=np.uint8)
    yield "a table", rng.normal(size=(20, 5))
    missing = rng.normal(size=(20, 2, 3))
    missing[3, 1, 2] = np.nan
    yield "missing", missing
    yield "many columns", rng.normal(size=(20, 1001)).astype(np.float32)


@pytest.mark.parametrize(("name", "x"), [*arrays()], ids=[name for name, _ in arrays()])
def test_every_container_gives_the_same_x(name, x, tmp_path):
    expected = x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1)
    expected = expected[:, None] if name == "grey pixels" else expected
    for container in CONTAINERS.values():
        data = pv.data.open(container(x, tmp_path / "data"))
        np.testing.assert_array_equal(data[:].numpy(), expected)
        assert data.schema.event_shape == expected.shape[1:]
        assert data.schema.content == ("table" if name == "a table" else "array")
        assert torch.equal(data.schema.read(x)[:].nan_to_num(), data[:].nan_to_num())
        if name != "a table":
            restored = data.schema.restore(data[:])
            np.testing.assert_array_equal(
                restored, x.reshape(expected.shape).astype(restored.dtype)
            )
            assert restored.dtype == (np.uint8 if x.dtype == np.uint8 else np.float32)


def test_the_moments_are_those_of_the_observed_values():
    x = np.arange(24.0).reshape(4, 2, 3)
    x[1, 1, 1] = np.nan
    schema = pv.data.open(x).schema
    assert schema.shift == pytest.approx(np.nanmean(x))
    assert schema.unit == pytest.approx(np.nanstd(x))
    assert (schema.low, schema.high, schema.missing) == (0, 23, pytest.approx(1 / 24))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.arange(5.0), r"got \(5,\).*x\[:, None\]"),
        (np.array(3.0), "is empty"),
        (np.zeros((0, 3)), "0 rows"),
        (np.zeros((3, 0)), "is empty"),
        (np.zeros((0, 3, 2)), "is empty"),
        (np.array([[1, "a"]], dtype=object), "got dtype object"),
        (np.array([["a"]]), "got dtype <U1"),
        (np.ones((3, 2), complex), "got dtype complex128"),
        (np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "got dtype"),
        (np.full((5, 2, 3), np.nan), "all values are missing"),
        (np.full((5, 2), np.nan), "no column to model"),
        (np.full((5, 2, 2), np.inf), "infinite"),
        (np.array([[1, np.inf], [2, 3.5]]), "column 'x1', row 0: the value is infinite"),
    ],
)
def test_other_arrays_are_refused(x, message):
    with pytest.raises(DataError, match=message):
        pv.data.open(x)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".pt"])
def test_damaged_files_are_refused(ending, tmp_path):
    path = tmp_path / f"data{ending}"
    path.write_bytes(b"noise")
    with pytest.raises(DataError, match="cannot be read"):
        pv.data.open(path)


def test_a_file_of_several_arrays_needs_a_key(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, a=np.ones((3, 2, 2)), b=np.zeros((3, 2, 2)))
    with pytest.raises(DataError, match=r"\['a', 'b'\].*no key="):
        pv.data.open(path)
    assert pv.data.open(path, key="b")[:].sum() == 0


def test_data_of_another_shape_are_refused():
    schema = pv.data.open(np.zeros((4, 2, 3))).schema
    with pytest.raises(DataError, match=r"expected data of shape \(num_data, 2, 3\)"):
        schema.read(np.zeros((4, 3, 3)))
