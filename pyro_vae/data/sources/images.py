"""Read images: a folder, a list of files, or one file."""

import math
import os
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_vae.arguments import Count, checked, setting
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.indexed_rows import IndexedRows
from pyro_vae.data.sources import frames
from pyro_vae.data.sources.image_files import OtherSizeError, decoded, is_grey, opened, reason_of
from pyro_vae.data.sources.reader import Reader
from pyro_vae.part import Part
from pyro_vae.runtime.progress_bar import reading_bar

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
# Images of formats that are not read.
OTHER_ENDINGS = {".jfif", ".jpe", ".jp2", ".jpx", ".j2k", ".jxl", ".heic", ".heif", ".avif", ".tga"}
OTHER_ENDINGS |= {".pgm", ".ppm", ".pnm", ".dcm", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw"}
DATA = (".mtx", ".mtx.gz", ".h5ad", ".csv", ".tsv", ".parquet", ".npy", ".npz", ".pt")
ARRAY_STORES = (".zarr", ".zgroup", ".zarray", "zarr.json")  # folders that are arrays
LABEL = "label"  # the context of images
IN_MEMORY = 2**31  # bytes of pixels; more are decoded batch by batch
SAMPLED = 64  # images that decide on the size and the channels
NAMED = 10  # files in a message

Size: TypeAlias = Count | Sequence[Count]
Channels: TypeAlias = Literal["grey", "colour"]


class ImageSchema(Part):
    """Size, channels and classes of images.

    Args:
        shape: Shape of one datum, `[channels, height, width]`.
        classes: Names of the folders of the classes, in the order of their labels.
        resized: Whether images of other sizes are cropped and resized.
        channels: `"grey"` or `"colour"` if images of the other kind are converted, or None.
        context: `["label"]` if the class of each image is context, encoded by zeros and a one.

    Raises:
        DataError: If the context has another name.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> schema = pv.data.ImageSchema([3, 64, 48])
        >>> schema.restore(torch.ones(1, 3, 64, 48)).unique()
        tensor([255], dtype=torch.uint8)

    See also: `open`, `CountsSchema`, `TableSchema`.
    """

    content: ClassVar[str] = "images"

    def __init__(
        self,
        shape: Sequence[Count],
        classes: Sequence[str] = (),
        resized: bool = False,
        channels: Channels | None = None,
        context: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if unknown := [name for name in context if name != LABEL]:
            raise DataError(
                f"unknown context {unknown[0]!r} of images; expected {LABEL!r}, the folder of each"
            )
        self.has_context = bool(context)
        self._shape, self.class_names = tuple(shape), tuple(classes)
        self.resized, self.channels = resized, channels

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum, `(channels, height, width)`."""
        return self._shape

    def read(self, source: object) -> Dataset:
        """Return other images of this size, these channels and these classes.

        Raises:
            DataError: If an image cannot be read, has another size or other channels, or is in the
                folder of another class.
        """
        source = Path(source) if isinstance(source, str | os.PathLike) else source
        paths, labels, classes = _find(source)
        if self.class_names and (unknown := sorted(set(classes) - set(self.class_names))):
            raise DataError(
                f"{_name(source)}: the class {unknown[0]!r} is unknown; expected folders of the "
                f"classes {list(self.class_names)}"
            )
        if self.class_names and labels:
            labels = [self.class_names.index(classes[label]) for label in labels]
        return _dataset(_name(source), paths, labels, self, skip_unreadable=False)

    def standardized_by(self, data: Dataset) -> Self:
        """Return the schema, which has neither shift nor unit."""
        return self

    def restore(self, x: Tensor) -> Tensor:
        """Return images of the model, shape `(num_data, *event)`, as 8-bit pixels."""
        return (x.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8)

    def names(self) -> tuple[str, ...]:
        """Return no names."""
        return ()

    def context(self, num_data: Count = 1, *, label: str) -> Tensor:
        """Return the same context for some data: the class `label`, as the model takes it.

        Raises:
            DataError: If the class is unknown.
        """
        if label not in self.class_names:
            raise DataError(f"unknown label {label!r}; expected one of {list(self.class_names)}")
        number = torch.full((num_data,), self.class_names.index(label))
        return one_hot(number, len(self.class_names)).float()

    def rows(self) -> list[dict[str, str]]:
        """Return the properties of the images, one in a row."""
        channels, height, width = self.event_shape
        found = {
            "height x width": f"{height} x {width}",
            "channels": "grey" if channels == 1 else "colour",
            "classes": ", ".join(self.class_names) or "none",
            "context": "the class" if self.has_context else "none",
        }
        return [{"property": name, "value": value} for name, value in found.items()]


class ImageFiles(IndexedRows):
    """Image files that implement `Rows`. Threads decode the images of a batch.

    Args:
        paths: Paths of the images.
        schema: Size and channels of the images.
    """

    def __init__(self, paths: Sequence[Path], schema: ImageSchema) -> None:
        super().__init__(len(paths), schema.event_shape, torch.uint8)
        self._paths, self._schema = paths, schema

    def _read(self, numbers: np.ndarray, rows: Tensor) -> None:
        paths = [self._paths[number] for number in numbers]
        for path, error in zip(paths, decoded(paths, self._schema, rows.numpy()), strict=True):
            if error is not None:
                raise DataError(f"{path} cannot be read: {reason_of(error)}") from error


@checked
def read(
    source: object,
    *,
    size: Size | None = None,
    channels: Channels | None = None,
    skip_unreadable: bool = False,
    context: Sequence[str] = (),
) -> Dataset:
    """Read images as 8-bit pixels of shape `(num_data, channels, height, width)`.

    Images are rotated as their EXIF data state, and transparent pixels are shown on white.
    Subfolders of a folder are classes, unless images lie next to them. Hidden files and folders,
    whose names begin with a dot, are left out. All files are decoded once,
    so unreadable files are found here. Pixels of more than `IN_MEMORY` bytes are decoded again for
    each batch.

    Args:
        source: Path of a folder or an image, or a sequence of paths of images.
        size: Height and width, or one number for both. Images of another size are cropped at the
            centre to this aspect ratio and resized. By default all images must have one size.
        channels: `"grey"` or `"colour"`, to which all images are converted. By default grey if all
            sampled images are.
        skip_unreadable: Whether unreadable files are left out, with a warning, instead of an error.
        context: `["label"]` to give a conditional model the class of each image, its folder.

    Raises:
        DataError: If there are no images, if files cannot be read, have more than 8 bits in a
            channel or several pictures, or if sizes or channels differ.

    Warns:
        DataWarning: If unreadable files, or images in a folder with another ending, are left out.
    """
    paths, labels, classes = _find(source)
    name = _name(source)
    if size is not None:
        size = (size, size) if isinstance(size, int) else tuple(size)
        if len(size) != 2:
            raise DataError(f"size must be one number or (height, width), got {size}")
    shape = _shape_of_sample(name, paths, size, channels)
    schema = ImageSchema(list(shape), list(classes), size is not None, channels, list(context))
    return _dataset(name, paths, labels, schema, skip_unreadable)


def _find(source: Any) -> tuple[list[Path], list[int], list[str]]:
    """Return the paths of images, their labels and the classes; no labels without folders."""
    if not isinstance(source, Path):
        paths = [Path(path) for path in source]
        if missing := [path for path in paths if not path.is_file()]:
            raise DataError(f"{missing[0]}: no such file")
        return paths, [], []
    if not source.is_dir():
        return [source], [], []
    paths, others = files_in(source), _files_in(source, OTHER_ENDINGS)
    if not paths:
        raise DataError(_no_images(source))
    if others:
        endings = sorted({path.suffix.lower() for path in others})
        warnings.warn(
            f"{source}: {len(others):,} files that end in {', '.join(endings)} are left out, such "
            f"as {others[0]}; expected images that end in {', '.join(ENDINGS)}. Convert them, or "
            "rename those that have one of these formats",
            DataWarning,
            stacklevel=4,
        )
    parts = [path.relative_to(source).parts for path in paths]
    if min(map(len, parts)) == 1:
        return paths, [], []
    classes = sorted({part[0] for part in parts})
    number = {name: i for i, name in enumerate(classes)}
    return paths, [number[part[0]] for part in parts], classes


def files_in(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders that are read, sorted.

    Names that begin with a dot are left out, those of folders, too: they are copies and indices of
    programs, such as `.ipynb_checkpoints`.
    """
    return _files_in(folder, ENDINGS)


def _files_in(folder: Path, endings: Collection[str]) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _no_images(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    data = [path for ending in DATA for path in files if path.name.lower().endswith(ending)]
    message = f"{folder}: no images in this folder; expected files {', '.join(ENDINGS)}"
    if data:
        return f"{message}. For other data, pass the path of a file, such as {data[0]}"
    endings = sorted({path.suffix for path in files})
    return f"{message}, found {', '.join(endings[:NAMED]) if files else 'no files'}"


def _name(source: object) -> str:
    return frames.name_of(source) if isinstance(source, Path) else "images"


def _shape_of_sample(
    name: str, paths: list[Path], size: Sequence[int] | None, channels: str | None
) -> tuple[int, ...]:
    """Return the shape of one datum, from evenly spaced images that can be read."""
    pictures, errors = [], []
    for place in np.unique(np.linspace(0, len(paths) - 1, SAMPLED).astype(int)):
        try:
            pictures.append(opened(paths[place]))
        except Exception as error:  # decoders raise errors of many classes
            errors.append((paths[place], error))
    if not pictures:
        raise DataError(_unreadable(name, errors, len(paths)))
    sizes = Counter(picture.size for picture in pictures)
    if size is None and len(sizes) > 1:
        raise _other_sizes(name, "one size", sizes)
    width, height = pictures[0].size
    grey = channels == "grey" or (channels is None and all(map(is_grey, pictures)))
    return (1 if grey else 3, *((height, width) if size is None else size))


def _dataset(
    name: str, paths: list[Path], labels: list[int], schema: ImageSchema, skip_unreadable: bool
) -> Dataset:
    """Decode all files once; return the dataset of those that can be read."""
    fits = len(paths) * math.prod(schema.event_shape) <= IN_MEMORY
    pixels = torch.empty((len(paths) if fits else 0, *schema.event_shape), dtype=torch.uint8)
    with reading_bar(f"reading images of {name}", len(paths)) as advance:
        errors = decoded(paths, schema, pixels.numpy() if fits else None, advance)
    sizes = Counter(error.size for error in errors if isinstance(error, OtherSizeError))
    if sizes:
        height, width = schema.event_shape[1:]
        sizes[width, height] += sum(error is None for error in errors)
        raise _other_sizes(name, f"{height} x {width} pixels", sizes)
    if bad := [(path, e) for path, e in zip(paths, errors, strict=True) if e is not None]:
        message = _unreadable(name, bad, len(paths))
        if not skip_unreadable or len(bad) == len(paths):
            way_out = (
                "repair or remove them, or pass "
                f"{setting('skip_unreadable', True)} to leave them out"
            )
            raise DataError(f"{message}. Expected 8-bit images: {way_out}")
        warnings.warn(f"{message}. They are left out", DataWarning, stacklevel=4)
        kept = [i for i, error in enumerate(errors) if error is None]
        paths, labels = [paths[i] for i in kept], [labels[i] for i in kept if labels]
        pixels = pixels[kept] if fits else pixels
    values = pixels if fits else ImageFiles(paths, schema)
    classes = schema.class_names if labels else ()
    known = torch.tensor(labels) if labels else None
    if schema.has_context and not labels:
        raise DataError(
            f"{name}: {setting('context', [LABEL])} needs images in folders, one for each class"
        )
    context: tuple[Tensor, ...] = ()
    if schema.has_context and known is not None:
        context = (one_hot(known, len(classes)).float(),)
    return Dataset(
        values,
        known,
        name=name,
        schema=schema,
        class_names=classes,
        context=context,
        identifiers={"file": np.array([str(path) for path in paths], object)},
    )


def _unreadable(name: str, errors: list[tuple[Path, Exception]], num_files: int) -> str:
    named: dict[str, list[str]] = {}
    for path, error in errors[:NAMED]:
        named.setdefault(reason_of(error), []).append(str(path))
    files = "; ".join(f"{', '.join(paths)}: {reason}" for reason, paths in named.items())
    more = f"; and {len(errors) - NAMED:,} more" if len(errors) > NAMED else ""
    return f"{name}: cannot read {len(errors):,} of {num_files:,} images: {files}{more}"


def _other_sizes(name: str, expected: str, sizes: "Counter[tuple[int, int]]") -> DataError:
    found = ", ".join(
        f"{height} x {width} ({count:,})" for (width, height), count in (+sizes).most_common(5)
    )
    more = f" and {len(sizes) - 5:,} further sizes" if len(sizes) > 5 else ""
    return DataError(
        f"{name}: expected images of {expected}, got height x width (number of images): {found}"
        f"{more}. Open them with a height and a width, such as {setting('size', (64, 48))} or "
        f"{setting('size', 64)} for both, to crop and resize them"
    )


def _accepts(source: Path | object) -> bool:
    if isinstance(source, Path):
        if source.is_dir():
            stores = (source / name for name in ARRAY_STORES[1:])
            return source.suffix != ARRAY_STORES[0] and not any(map(Path.exists, stores))
        return source.suffix.lower() in ENDINGS
    return (
        isinstance(source, list | tuple)
        and bool(source)
        and all(isinstance(path, str | os.PathLike) for path in source)
    )


READER = Reader(
    "image",
    _accepts,
    read,
    frozenset({"size", "channels", "skip_unreadable", "context"}),
    "a folder or a list of PNG, JPEG, TIFF, WebP, BMP and GIF files",
)
