"""Labels of data: numbers of classes and their names."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.conversion import check_values
from pyro_vae.data.errors import DataError

Labels: TypeAlias = Tensor | np.ndarray | Sequence[int] | Sequence[str] | None


def classes_of(
    labels: Labels, class_names: Sequence[str], num_data: int
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the class number of each datum, and the names of the classes.

    Args:
        labels: Class numbers, or names of classes, one for each datum; or None.
        class_names: Names of the classes in the order of their numbers. Without names, strings are
            numbered in alphabetical order, and numbers have no names.
        num_data: Number of data.

    Raises:
        DataError: If there is not one label for each datum, if a label is missing or has no name,
            or if a name occurs twice.
    """
    names = tuple(class_names)
    if isinstance(class_names, str) or any(not isinstance(name, str) for name in names):
        raise DataError(f"class_names must be a sequence of strings, got {class_names!r}")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"class_names has {repeated[0]!r} more than once")
    if labels is None:
        return None, names
    if isinstance(labels, Tensor):
        check_values(labels, "labels")
    else:
        if isinstance(labels, range):  # of any length, before its numbers are made
            _check_shape((len(labels),), num_data)
        labels, names = _numbered(labels, names)
    _check_shape(tuple(labels.shape), num_data)
    if names and labels.is_floating_point():
        raise DataError(f"labels with class_names must be class numbers, got {labels.dtype}")
    if names and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise DataError(
            f"labels are from {int(labels.min())} to {int(labels.max())}, but class_names has the "
            f"names of the classes 0 to {len(names) - 1}"
        )
    return labels, names


def _check_shape(shape: tuple[int, ...], num_data: int) -> None:
    if shape != (num_data,):
        raise DataError(f"labels have shape {shape}; expected ({num_data},), one for each datum")


def names_of_classes(labels: Tensor, class_names: Sequence[str]) -> Sequence[str] | range:
    """Return the names of the classes, by default their numbers."""
    return class_names or range(int(labels.max()) + 1)


def _numbered(labels: Labels, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels that are not a tensor as class numbers, and the names of the classes."""
    entries = labels if isinstance(labels, list | tuple) else np.asarray(labels).tolist()
    if not isinstance(entries, list | tuple) or any(isinstance(e, list | float) for e in entries):
        raise DataError(
            "labels must be a tensor of class numbers or a sequence of names, got "
            f"{type(labels).__name__}"
        )
    if all(isinstance(entry, int | np.integer) for entry in entries):
        return torch.tensor([int(entry) for entry in entries]), names
    for i, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise DataError(f"label {i} is {entry!r}; expected the name of a class, a string")
    names = names or tuple(sorted(set(entries)))
    numbers = {name: number for number, name in enumerate(names)}
    for i, entry in enumerate(entries):
        if entry not in numbers:
            raise DataError(f"label {i} is {entry!r}, which is not in class_names {names}")
    return torch.tensor([numbers[entry] for entry in entries], dtype=torch.int64), names
