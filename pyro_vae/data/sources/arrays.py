"""Read arrays: `.npy`, `.npz`, `.pt`, `.h5` and `.zarr` files, numpy arrays and tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import setting
from pyro_vae.data.any_data import Data, as_dataset
from pyro_vae.data.conversion import as_tensor, check_values, without_mask
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.disk_array import is_stored
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import array_files, frames, tables
from pyro_vae.data.sources.reader import Reader
from pyro_vae.part import Part

CHANNELS = (1, 3, 4)  # of images
MAX_COLUMNS = 1000  # arrays of more columns are not described column by column


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

    def read(self, source: object, *, key: str | None = None) -> Dataset:
        """Return other data as a dataset of this schema.

        Args:
            source: Path of a file, a numpy array, a tensor, a dataset or a loader.
            key: Name of the array, if the file has several.

        Raises:
            DataError: If a datum has another shape.
        """
        with frames.errors_of(source):
            data = _dataset(source, key, self.pixels)
        if data.event_shape != self.event_shape:
            raise DataError(
                f"expected data of shape (num_data, {', '.join(map(str, self.event_shape))}), got "
                f"({len(data)}, {', '.join(map(str, data.event_shape))})"
            )
        return Dataset(data.values, data.labels, name=data.name, schema=self)

    def standardized_by(self, data: Dataset) -> Self:
        """Return the schema with the shift and unit of other data, such as the training data."""
        x = data.sample()
        observed = x[~x.isnan()].double()
        if not len(observed):
            return self
        arguments: dict[str, Any] = self.build_arguments | _moments(observed)
        return type(self)(**arguments)

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
    source: object, *, key: str | None = None, columns: Mapping[str, str] | None = None
) -> Dataset:
    """Read an array. One of two dimensions, with at most `MAX_COLUMNS` columns, is a table.

    Arrays of bytes (`uint8`) are 8-bit pixels, unless all are 0 or 1.

    Args:
        source: Path of a file, a numpy array, a tensor, a dataset or a loader.
        key: Name of the array, if the file has several.
        columns: Kinds of columns by name (`x0`, `x1`, ...), for a table.

    Raises:
        DataError: If the file is damaged, or has several arrays and `key` is None.
    """
    with frames.errors_of(source):
        value = array_files.load(source, key) if isinstance(source, Path) else source
        if isinstance(value, Tensor):
            check_values(value, "the array")
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if isinstance(value, np.ndarray):
            value = _checked(without_mask(value))
        name = frames.name_of(source) if isinstance(source, Path) else "arrays"
        if _is_small_table(value):
            data = tables.read(value, columns=columns)
            return Dataset(data.values, name=name, schema=data.schema)
        if columns:
            raise DataError(
                f"{setting('columns')} needs an array of two dimensions with at most 1,000 columns"
            )
        data = _dataset(value, key)
        return Dataset(data.values, data.labels, name=name, schema=schema_of(data))


def _checked(x: np.ndarray) -> np.ndarray:
    """Check dtype and shape of an array; return truth values that are stored as bytes as floats."""
    if x.dtype.kind not in "fiub":
        advice = ". pandas.DataFrame(array) makes a frame of it" if x.dtype.kind in "OV" else ""
        raise DataError(f"expected an array of numbers, got dtype {x.dtype}{advice}")
    if x.ndim == 1:
        raise DataError(
            f"expected an array of shape (num_data, ...), got {x.shape}. Numbers of one column "
            "have the shape (num_data, 1), as in x[:, None]"
        )
    if x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS and x.shape[2] > 4:
        raise DataError(
            f"expected images of shape (num_data, channels, height, width), got {x.shape}, which "
            "has the channels last. Transpose it, by x.transpose(0, 3, 1, 2)"
        )
    is_truth = x.dtype == np.uint8 and not isinstance(x, np.memmap) and x.size and x.max() <= 1
    return x.astype(np.float32) if is_truth else x


def _is_small_table(value: object) -> TypeGuard[np.ndarray]:
    if not isinstance(value, np.ndarray) or isinstance(value, np.memmap) or value.ndim != 2:
        return False
    return value.shape[1] <= MAX_COLUMNS and value.dtype != np.uint8


def _dataset(source: object, key: str | None, pixels: bool = True) -> Dataset:
    if isinstance(source, str | Path):
        source = array_files.load(Path(source), key)
    if isinstance(source, Dataset):
        return source
    value: object = source if is_stored(source) else as_tensor(source)
    if isinstance(value, Tensor) and value.dtype == torch.uint8 and pixels:
        # Height and width without a channel are images of one channel.
        return Dataset(value.unsqueeze(1) if value.dim() == 3 else value)
    if isinstance(value, Tensor):
        check_values(value, "the array")
        value = value.float()
    return as_dataset(cast(Data, value))


def schema_of(data: Dataset) -> ArraySchema:
    """Describe data as an array, by all rows in memory or a sample of those on disk.

    Raises:
        DataError: If all values are missing.
    """
    x = data.sample()
    observed = x[~x.isnan()].double()
    if not len(observed):
        raise DataError(f"{data.name}: all values are missing")
    return ArraySchema(
        list(data.event_shape),
        data.values.dtype in (torch.uint8, np.uint8),
        **_moments(observed),
        low=float(observed.min()),
        high=float(observed.max()),
        missing=float(x.isnan().float().mean()),
    )


def _moments(observed: Tensor) -> dict[str, Any]:
    return {
        "shift": float(observed.mean()),
        "unit": float(observed.std(unbiased=False)) or 1.0,
    }


def _accepts(source: Path | object) -> bool:
    if isinstance(source, Path):
        return source.suffix.lower() in array_files.ENDINGS
    return isinstance(source, np.ndarray | Tensor | Dataset) or is_stored(source)


READER = Reader(
    "array",
    _accepts,
    read,
    frozenset({"key", "columns"}),
    ".npy, .npz, .pt, .h5 and .zarr files, numpy arrays and tensors",
)
