"""A loader gives the rows and the chunks of a tensor."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError

CHUNK = 7


@pytest.fixture
def rows():
    return torch.randn(83, 5), torch.arange(83) % 3


@pytest.mark.parametrize("num_data", [1, 6, 7, 8, 14, 15])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 8, 100])
@pytest.mark.parametrize("least", [1, 2])
def test_chunks_begin_at_the_same_places(num_data, batch_size, least):
    x = torch.arange(float(num_data))[:, None]
    expected = [(place, read()) for place, read in Dataset(x).chunks(CHUNK, least)]
    data = Dataset(DataLoader(x, batch_size=batch_size))
    found = [(place, read()) for place, read in data.chunks(CHUNK, least)]
    assert [place for place, _ in found] == [place for place, _ in expected]
    assert all(
        torch.equal(one[1][0], other[1][0]) for one, other in zip(found, expected, strict=True)
    )
    assert min(len(batch) for _, (batch,) in found) >= min(least, num_data)


@pytest.mark.parametrize("batch_size", [1, 16, 100])
@pytest.mark.parametrize(
    "index",
    [
        slice(None), slice(2), slice(0), slice(30, 60), slice(None, None, 7), slice(5, 70, 20),
        slice(20, 15), slice(80, 1000), 3, 82, torch.tensor([40, 2, 77, 2]),
    ],
)  # fmt: skip
def test_rows_of_a_loader_are_those_of_a_tensor(index, batch_size, rows):
    data = pv.data.as_dataset(DataLoader(TensorDataset(*rows), batch_size=batch_size))
    expected = tuple(values[index] for values in rows)
    assert all(map(torch.equal, data.batch(index), expected))
    assert torch.equal(data[index], expected[0])


@pytest.mark.parametrize("index", [-1, slice(-3, None), slice(None, -1), slice(None, None, -1), 83])
def test_rows_that_a_loader_cannot_give_are_refused(index, rows):
    with pytest.raises(DataError, match="DataLoader"):
        pv.data.as_dataset(DataLoader(rows[0], batch_size=16))[index]
