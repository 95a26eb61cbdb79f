"""Load the arrays in `.npy`, `.npz`, `.pt`, `.h5` and `.zarr` files."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import setting
from pyro_vae.data.disk_array import StoredArray
from pyro_vae.data.errors import DataError

ENDINGS = (".npy", ".npz", ".pt", ".pth", ".h5", ".hdf5", ".zarr")
IN_MEMORY = 2**30  # bytes of an array that is read at once


def load(path: Path, key: str | None = None) -> np.ndarray | Tensor | StoredArray:
    """Return the array in a file; an array on disk if it is large, or stored in blocks.

    Args:
        path: File with one of `ENDINGS`.
        key: Name of the array, if the file has several.

    Raises:
        DataError: If the file is damaged, or has several arrays and `key` is None.
    """
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
            if isinstance(opened, zarr.Group):
                opened = opened[_key(path, [*opened], key)]
            return cast(StoredArray, opened)
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
        has_objects = "it is damaged, or has Python objects, which are not loaded"
        reason = has_objects if "pickle" in str(error) else error
        raise DataError(f"{path} cannot be read: {reason}") from error


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
        first = setting("key", names[0] if names else "name")
        given = setting("key", key) if key is not None else f"no {setting('key')}"
        raise DataError(
            f"{path} has the arrays {names}: expected the key of one, as in {first}, got {given}"
        )
    return key
