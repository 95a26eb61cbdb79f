"""Read arrays: `.npy`, `.npz`, `.pt`, `.h5` and `.zarr` files, numpy arrays and tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.conversion import as_tensor
from pyro_vae.data.dataset import Dataset, as_dataset
from pyro_vae.data.disk_array import is_stored
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import frames, tables
from pyro_vae.data.sources.reader import Reader
from pyro_vae.part import Part

ENDINGS = (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5", ".zarr")
MAX_COLUMNS = 1000  # arrays of more columns are not described column by column
IN_MEMORY = 2**30  # bytes of an array that is read at once


class ArraySchema(Part):
    """The shape and scale of an array of numbers.

    Args:
        event_shape: Shape of one datum.
        pixels: Whether values are 8-bit pixels. x is then pixel / 255.
        shift: Mean of x.
        unit: Standard deviation of x.
        low: Smallest number.
        high: Largest number.
        missing: Share of missing values.

    See also: `pyro_vae.data.open`.
    """

    content: ClassVar[str] = "array"

    def __init__(
        self,
        event_shape: list[int],
        pixels: bool,
        shift: float,
        unit: float,
        low: float,
        high: float,
        missing: float = 0.0,
    ) -> None:
        super().__init__()
        self._event_shape, self.pixels, self.missing = tuple(event_shape), pixels, missing
        self.shift, self.unit, self.low, self.high = shift, unit, low, high

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self._event_shape

    def read(self, source: object) -> Dataset:
        """Return other data as a dataset of this schema.

        Raises:
            DataError: If a datum has another shape.
        """
        data = _dataset(source, None)
        if data.event_shape != self.event_shape:
            raise DataError(
                f"expected data of shape (num_data, {', '.join(map(str, self.event_shape))}), got "
                f"({len(data)}, {', '.join(map(str, data.event_shape))})"
            )
        return Dataset(data.values, data.labels, name=data.name, schema=self)

    def restore(self, x: Tensor) -> np.ndarray:
        """Return data of the model as a numpy array; 8-bit pixels if the data were."""
        x = x.detach().cpu()
        return ((x * 255).round().clamp(0, 255).to(torch.uint8) if self.pixels else x).numpy()

    def names(self) -> tuple[str, ...]:
        """Return a name for each entry of a vector; nothing for other shapes."""
        shape = self.event_shape
        return tuple(f"x{i}" for i in range(shape[0])) if len(shape) == 1 else ()

    def rows(self) -> list[dict[str, str]]:
        """Return the description of the array, in one row."""
        return [
            {
                "shape of one datum": str(self.event_shape),
                "kind": "8-bit pixels" if self.pixels else "numbers",
                "missing": f"{self.missing:.1%}" if self.missing else "none",
                "values": f"{self.low:.4g} to {self.high:.4g}",
            }
        ]


def read(
    source: Any, *, key: str | None = None, columns: Mapping[str, str] | None = None
) -> Dataset:
    """Read an array. One of two dimensions, with at most `MAX_COLUMNS` columns, is a table.

    Args:
        source: Path of a file, a numpy array, a tensor, a dataset or a loader.
        key: Name of the array, if the file has several.
        columns: Kinds of columns by name (`x0`, `x1`, ...), for a table.

    Raises:
        DataError: If the file is damaged, or has several arrays and `key` is None.
    """
    value = _load(source, key) if isinstance(source, Path) else source
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    name = frames.name_of(source) if isinstance(source, Path) else "arrays"
    if isinstance(value, np.ndarray) and value.dtype.kind not in "fiub":
        raise DataError(f"{name}: expected an array of numbers, got dtype {value.dtype}")
    if isinstance(value, np.ndarray) and value.ndim == 1:
        raise DataError(
            f"{name}: expected an array of shape (num_data, ...), got {value.shape}. Numbers of "
            "one column have the shape (num_data, 1), as in x[:, None]"
        )
    is_table = isinstance(value, np.ndarray) and not is_stored(value) and value.ndim == 2
    if is_table and value.shape[1] <= MAX_COLUMNS and value.dtype != np.uint8:
        data = tables.read(value, columns=columns)
        return Dataset(data.values, name=name, schema=data.schema)
    if columns:
        raise DataError("columns= needs an array of two dimensions with at most 1,000 columns")
    data = _dataset(value, key)
    return Dataset(data.values, data.labels, name=name, schema=_schema_of(data))


def _dataset(source: Any, key: str | None) -> Dataset:
    if isinstance(source, str | Path):
        source = _load(Path(source), key)
    if isinstance(source, Dataset):
        return source
    value = source if is_stored(source) else as_tensor(source)
    if isinstance(value, Tensor) and value.dtype == torch.uint8:
        # Height and width without a channel are images of one channel.
        return Dataset(value.unsqueeze(1) if value.dim() == 3 else value)
    if isinstance(value, Tensor):
        value = value.float()
    return as_dataset(value)


def _schema_of(data: Dataset) -> ArraySchema:
    x = data.sample()
    observed = x[~x.isnan()].double()
    if not len(observed):
        raise DataError(f"{data.name}: all values are missing")
    return ArraySchema(
        list(data.event_shape),
        data.values.dtype in (torch.uint8, np.uint8),
        float(observed.mean()),
        float(observed.std(unbiased=False)) or 1.0,
        float(observed.min()),
        float(observed.max()),
        float(x.isnan().float().mean()),
    )


def _load(path: Path, key: str | None) -> Any:
    kind = path.suffix.lower()
    try:
        if kind == ".npy":
            large = path.stat().st_size > IN_MEMORY
            return np.load(path, mmap_mode="r" if large else None, allow_pickle=False)
        if kind == ".npz":
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                return file[_key(path, list(file.files), key)]
        if kind in (".pt", ".pth"):
            return _tensor(path, torch.load(path, weights_only=True, map_location="cpu"), key)
        if kind == ".zarr":
            import zarr

            opened = zarr.open(path, mode="r")
            return opened if hasattr(opened, "shape") else opened[_key(path, [*opened], key)]
        import h5py

        file = h5py.File(path)
        return file[_key(path, [name for name in file if hasattr(file[name], "shape")], key)]
    except ImportError as error:
        extra = "zarr" if kind == ".zarr" else "h5py"
        raise DataError(
            f"reading {path.name} needs {extra}: pip install 'pyro-vae[{extra}]'"
        ) from error
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _tensor(path: Path, value: object, key: str | None) -> Tensor:
    if isinstance(value, dict):
        value = value[_key(path, [str(name) for name in value], key)]
    if not isinstance(value, Tensor):
        raise DataError(f"{path}: expected a tensor, got a {type(value).__name__}")
    return value


def _key(path: Path, names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        given = f"key={key!r}" if key is not None else "no key="
        raise DataError(f"{path} has the arrays {names}: expected the key of one, got {given}")
    return key


def _accepts(source: Path | object) -> bool:
    if isinstance(source, Path):
        return source.suffix.lower() in ENDINGS
    return isinstance(source, np.ndarray | Tensor | Dataset) or is_stored(source)


READER = Reader(
    "array",
    _accepts,
    read,
    frozenset({"key", "columns"}),
    ".npy, .npz, .pt, .h5 and .zarr files, numpy arrays and tensors",
)
