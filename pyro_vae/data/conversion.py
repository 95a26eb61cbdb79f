"""Convert numpy arrays to tensors."""

import os
from collections.abc import Mapping
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.errors import DataError

T = TypeVar("T")


@overload
def as_tensor(x: np.ndarray) -> Tensor: ...


@overload
def as_tensor(x: T) -> T: ...


def as_tensor(x: object) -> object:
    """Return a numpy array as a tensor, and any other object unchanged.

    See also: `as_dataset`.

    Args:
        x: Array, or any other object. Arrays that torch cannot share memory with are copied. Masked
            entries of a `numpy.ma.MaskedArray` become NaN, which is a missing value.

    Raises:
        DataError: If torch has no such dtype, as for arrays of objects or strings, or if entries of
            an array of whole numbers are masked.

    Example:
        >>> import numpy as np
        >>> import pyro_vae as pv
        >>> pv.data.as_tensor(np.zeros((3, 2), ">f4")).dtype
        torch.float32
    """
    if not isinstance(x, np.ndarray):
        return x
    x = without_mask(x)
    try:
        # torch cannot hold read-only, reversed or foreign-endian arrays: these are copied.
        return torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise DataError(f"an array of dtype {x.dtype} cannot be a tensor: {error}") from error


def without_mask(x: np.ndarray) -> np.ndarray:
    """Return an array with NaN in the place of masked entries.

    Raises:
        DataError: If entries are masked and the dtype has no NaN.
    """
    if not isinstance(x, np.ma.MaskedArray):
        return x
    if not np.ma.is_masked(x):
        return x.data
    if x.dtype.kind != "f":
        raise DataError(
            f"{np.ma.count_masked(x)} entries of an array of {x.dtype} are masked: convert it by "
            "x.astype(float), in which masked entries are missing values, or fill them by x.filled"
        )
    return x.filled(np.nan)


def advice_for(x: object) -> str:
    """Return how an object of another class is converted to data, as a clause; empty if unknown."""
    if isinstance(x, str | os.PathLike):
        return "pv.data.open(path) reads a file"
    if isinstance(x, torch.utils.data.Dataset):
        return "torch.utils.data.DataLoader(dataset, batch_size=...) reads its rows"
    if isinstance(x, list) and x and isinstance(x[0], Mapping):
        return "pandas.DataFrame(...) makes a frame of a list of dicts"
    if isinstance(x, list) and x and isinstance(x[0], Tensor):
        return "torch.stack(...) makes a tensor of a list of tensors"
    conversions = {
        "collect": "call .collect() of a lazy frame",
        "to_frame": "call .to_frame() of a series",
        "keys": "pandas.DataFrame(...) makes a frame of a dict",
        "append": "numpy.array(...) makes an array of a list of numbers",
        "__array__": "numpy.asarray(...) makes an array of it",
    }
    return next((advice for name, advice in conversions.items() if hasattr(x, name)), "")


def check_layout(x: Tensor, name: str = "x") -> None:
    """Raise `DataError` for nested, quantized and sparse tensors."""
    if x.is_nested or x.is_quantized or x.layout != torch.strided:
        kind = "nested" if x.is_nested else "quantized" if x.is_quantized else f"of {x.layout}"
        raise DataError(
            f"{name} must be a dense tensor, got one that is {kind}: convert it, for example by "
            f"{name}.to_dense() or {name}.dequantize()"
        )


def check_values(x: Tensor, name: str = "x") -> None:
    """Raise `DataError` for nested, quantized, sparse and meta tensors."""
    check_layout(x, name)
    if x.is_meta:
        raise DataError(f"{name} is on the device meta, which has shapes but no values")


def check_numbers(dtype: torch.dtype | np.dtype, is_number: bool) -> None:
    """Raise `DataError` for other dtypes than floats and int64."""
    if not is_number:
        raise DataError(
            f"expected data of a floating-point dtype, got {dtype}: divide bytes 0..255 by 255, or "
            "wrap them in pv.data.Dataset(pixels, binarization='dynamic'); convert counts and "
            "tokens to int64"
        )
