"""`Data`, the types of data that functions take, and `as_dataset`, which makes one of them."""

import dataclasses
from typing import TypeAlias

import numpy as np
import torch
from narwhals.typing import IntoDataFrame
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.arguments import checked
from pyro_vae.data.containers import as_rows
from pyro_vae.data.conversion import as_tensor, check_numbers
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.disk_array import StoredArray, is_stored
from pyro_vae.data.sources import frames

Data: TypeAlias = (
    Dataset
    | Tensor
    | np.ndarray
    | StoredArray
    | IntoDataFrame
    | DataLoader[object]
    | tuple["Data", ...]
)


@checked
def as_dataset(x: Data, name: str = "arrays") -> Dataset:
    """Return x as a `Dataset`, with its numbers unchanged.

    See also: `Dataset`, `as_tensor`.

    Args:
        x: Floats, or counts and tokens as int64, of shape `(num_data, *event)` in memory or on
            disk, a frame of numbers, a sparse matrix, AnnData, a `DataLoader`, a `Dataset`, or a
            tuple of one of these and its context: tensors or arrays of as many rows.
        name: Name of the dataset in results.

    Raises:
        DataError: If x has integers of another type than int64. They may be pixels.

    Example:
        >>> import numpy as np
        >>> import pyro_vae as pv
        >>> data = pv.data.as_dataset((np.ones((6, 4), np.float32), np.arange(6)))
        >>> [part.shape for part in data.batch(slice(2))]
        [torch.Size([2, 4]), torch.Size([2])]
    """
    if isinstance(x, Dataset):
        return x
    from pyro_vae.data.sources import column_order, counts  # import this module

    if frames.is_frame(x):
        return column_order.read_numbers(x, name)
    if frames.is_matrix(x):
        return dataclasses.replace(counts.read(x, kind="real"), name=name)
    if isinstance(x, tuple) and x:
        data, *context = x
        arrays = [value if is_stored(value) else as_tensor(value) for value in context]
        return dataclasses.replace(as_dataset(data, name), context=tuple(arrays))
    if isinstance(x, np.ndarray) and not is_stored(x):
        check_numbers(
            x.dtype, x.dtype == np.int64 or (x.dtype.kind == "f" and x.dtype.itemsize <= 8)
        )
        x = as_tensor(x)
    rows = as_rows(x)
    check_numbers(rows.dtype, rows.dtype == torch.int64 or rows.dtype.is_floating_point)
    return Dataset(rows, name=name)
