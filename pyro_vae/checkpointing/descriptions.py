"""Describe Python values and code as text that is equal if they are."""

import enum
import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from pyro_vae.part import PACKAGE

LIBRARIES = {"torch", "pyro", "numpy", "opt_einsum", "builtins", *sys.stdlib_module_names}
SAMPLED = 100_000  # entries of a large array
ATOMS = (
    bool | int | float | complex | str | bytes | None
    | torch.dtype | torch.device | enum.Enum | PurePath | range | slice | np.generic
)  # fmt: skip


def attributes_of(value: object) -> dict[str, object] | None:
    """Return the attributes of an object by name; None if it has no such description."""
    slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
    held = getattr(value, "__dict__", None)
    if not isinstance(held, dict) and not slots:
        return None
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**found, **(held if isinstance(held, dict) else {})}


def is_known(value: object) -> bool:
    """Return whether a library or this package defines a function or a class."""
    return is_from_library(value) or owner_of(value) == PACKAGE


def functions_of(value: object) -> list[object]:
    """Return the functions of a class attribute."""
    if isinstance(value, property):
        return [f for f in (value.fget, value.fset) if f is not None]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, functools.cached_property):
        return [value.func]
    return [value] if isinstance(value, types.FunctionType) else []


def text_of(value: object) -> str:
    """Return the text of a plain value."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def hash_of_array(value: Tensor | np.ndarray) -> str:
    """Return dtype, shape and a hash of an array; of evenly spaced entries if it is large."""
    if isinstance(value, Tensor):
        if value.device.type == "meta" or value.layout != torch.strided:
            return f"{value.dtype} {tuple(value.shape)}"
        flat = value.detach().reshape(-1)[:: max(1, value.numel() // SAMPLED)].cpu()
        data = flat.contiguous().view(torch.uint8).numpy().tobytes()
        if value.numel() == 1:
            return text_of(flat.item())
    else:
        flat_array = value.reshape(-1)[:: max(1, value.size // SAMPLED)]
        data = repr(flat_array).encode() if value.dtype.hasobject else flat_array.tobytes()
    return f"{value.dtype} {tuple(value.shape)} {sha256(data)}"


def hash_of_code(code: types.CodeType, doc: str | None = None) -> str:
    """Return a hash of the instructions, names and constants of a function."""
    constants = [
        hash_of_code(item) if isinstance(item, types.CodeType) else _constant(item)
        for item in code.co_consts
        if item is None or item != doc
    ]
    return sha256(repr((code.co_code, code.co_names, constants)).encode())


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names and the strings in a function and in the functions inside it."""
    yield from code.co_names
    yield from _strings(code.co_consts)


def _strings(constants: Iterable[object]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)
        elif isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _strings(constant)


def owner_of(value: object) -> str:
    """Return the package that defines a function or a class."""
    return (getattr(value, "__module__", None) or "").partition(".")[0]


def is_from_library(value: object) -> bool:
    """Return whether a library defines a function or a class."""
    return is_library(getattr(value, "__module__", None) or "")


def is_library(name: str | None) -> bool:
    """Return whether a module belongs to a library."""
    return (name or "").partition(".")[0] in LIBRARIES


def sha256(data: bytes) -> str:
    """Return the first 16 digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]
