"""The same rows in every container: of x, or of x and y."""

import itertools

import numpy as np
import torch
import zarr
from PIL import Image
from scipy import sparse
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.sources import images, matrices

WIDTH = 5  # entries of x


class Sized(IterableDataset):
    """Gives rows one by one, or batches; its length may be another than it says."""

    def __init__(self, items, length):
        self.items, self.length = items, length

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        return self.length


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.repeat((torch.ones(WIDTH), torch.tensor(0)))


def pairs(rows):
    """A loader's data set gives x alone, or tuples."""
    return rows[0] if len(rows) == 1 else TensorDataset(*rows)


def alone(values):
    return values[0] if len(values) == 1 else tuple(values)


def loader(**options):
    return lambda rows, folder: DataLoader(pairs(rows), **options)


def memmaps(rows, folder):
    files = []
    for number, values in enumerate(rows):
        array = values.numpy()
        file = np.memmap(folder / f"{number}", array.dtype, "w+", shape=array.shape)
        file[:] = array
        files.append(file)
    return alone(files)


def zarrs(rows, folder):
    chunks = [(9, *values.shape[1:]) for values in rows]
    return alone(
        [
            zarr.create_array(str(folder / f"{number}.zarr"), data=values.numpy(), chunks=chunk)
            for number, (values, chunk) in enumerate(zip(rows, chunks, strict=True))
        ]
    )


def given_batches(rows, folder):
    batches = [alone(batch) for batch in zip(*(values.split(19) for values in rows), strict=True)]
    return DataLoader(Sized(batches, len(batches)), batch_size=None)


def sparse_rows(rows, folder):
    return Dataset(matrices.SparseRows(sparse.csr_array(rows[0].numpy())), context=tuple(rows[1:]))


def image_files(rows, folder):
    """Grey images of one row of pixels."""
    paths = [folder / f"{i:03}.png" for i in range(len(rows[0]))]
    for path, pixels in zip(paths, rows[0].numpy(), strict=True):
        Image.fromarray(pixels[None]).save(path)
    return images.ImageFiles(paths, images.ImageSchema([1, 1, WIDTH]))


CONTAINERS = {
    "numpy": lambda rows, folder: alone([values.numpy() for values in rows]),
    "memmap": memmaps,
    "zarr": zarrs,
    "sparse rows": sparse_rows,
    "data set": lambda rows, folder: Dataset(rows[0], context=tuple(rows[1:])),
    "data set of a loader": lambda rows, folder: Dataset(DataLoader(pairs(rows), batch_size=16)),
    "ragged loader": loader(batch_size=16),
    "loader of single rows": loader(batch_size=1),
    "loader of one batch": loader(batch_size=1000),
    "loader with workers": loader(batch_size=16, num_workers=2),
    "loader with persistent workers": loader(
        batch_size=16, num_workers=1, persistent_workers=True
    ),
    "iterable": lambda rows, folder: DataLoader(
        Sized(pairs(rows), len(rows[0])), batch_size=16
    ),
    "iterable that gives fewer": lambda rows, folder: DataLoader(
        Sized(pairs(rows), 100), batch_size=16
    ),
    "iterable of batches": given_batches,
}  # fmt: skip
