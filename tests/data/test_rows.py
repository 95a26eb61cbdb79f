"""The containers of rows implement one protocol alike."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pyro_vae.data.dataset import as_rows
from pyro_vae.data.sources.images import ImageFiles, ImageSchema
from tests.support.arrays import EVENT, NUM_DATA, memmap, zarray


def image_files(path, array):
    paths = [path / f"{i:03}.png" for i in range(len(array))]
    for file, pixels in zip(paths, array, strict=True):
        Image.fromarray(pixels[0]).save(file)
    return ImageFiles(paths, ImageSchema(list(array.shape[1:])))


CONTAINERS = {
    "memory": lambda path, array: torch.from_numpy(array),
    "memmap": memmap,
    "zarr": zarray,
    "image files": image_files,
    "loader": lambda path, array: DataLoader(torch.from_numpy(array), batch_size=16),
}


@pytest.fixture(params=CONTAINERS)
def rows(request, tmp_path, pixels):
    return as_rows(CONTAINERS[request.param](tmp_path, pixels))


@pytest.fixture
def expected(pixels):
    return torch.from_numpy(pixels)


def test_shape_dtype_and_device(rows):
    assert (len(rows), rows.shape, rows.dtype) == (NUM_DATA, (NUM_DATA, *EVENT), torch.uint8)
    assert rows.device == rows.to("cpu").device == torch.device("cpu")
    assert not rows.has_infinities()
    assert as_rows(rows) is rows


def test_all_ways_of_reading_give_the_same_rows(rows, expected):
    assert torch.equal(torch.cat(list(rows.split(7))), expected)
    chunks = [(span, read()[0]) for span, read in rows.chunks(7, 5)]
    assert [len(x) for _, x in chunks] == [7] * 7 + [11]
    index, sampled = rows.sample()
    for places, x in [*chunks, (index, sampled)]:
        assert torch.equal(x, expected[places])
    for index in (3, slice(5, 40, 4), torch.tensor([30, 2])):
        assert torch.equal(rows.take(index)[0], expected[index])
    assert all(torch.equal(x, expected[: len(x)]) for x in rows.fingerprint())


def test_an_epoch_has_all_rows(rows, expected):
    generator = torch.Generator().manual_seed(0)
    size = rows.training_batch_size(16)
    entries = list(rows.order(generator, size, 0))
    assert len(entries) == rows.num_batches(size) == 4
    found = torch.cat([rows.select(entry)[0] for entry in entries])
    assert torch.equal(found.flatten(1).sort(0).values, expected.flatten(1).sort(0).values)
    assert len(list(rows.order(generator, size, 3))) == 1


def test_fixed_draws_do_not_depend_on_how_rows_are_read(rows):
    whole = rows.binarize(rows.take(slice(None))[0], slice(None), seed=3)
    assert whole.dtype == torch.float32
    assert set(whole.unique().tolist()) == {0.0, 1.0}
    for span, read in rows.chunks(7, 1):
        assert torch.equal(rows.binarize(read()[0], span, seed=3), whole[span])
    assert not torch.equal(rows.binarize(rows.take(slice(9))[0], slice(9), seed=4), whole[:9])


def test_a_part_has_its_rows(rows, expected):
    if rows.random_access:
        assert torch.equal(rows.narrow(5, 50).take(slice(None))[0], expected[5:55])
        numbers = torch.tensor([1, 5, 6, 30, 59])
        parts = (rows.subset(numbers), rows.narrow(1, 59).subset(numbers - 1))
        assert all(torch.equal(part.take(slice(None))[0], expected[numbers]) for part in parts)


def test_infinities_in_memory_are_found():
    x = torch.zeros(3, 2)
    assert not as_rows(x).has_infinities()
    x[1, 1] = -np.inf
    assert as_rows(x).has_infinities()
