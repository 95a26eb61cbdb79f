"""Reads of which the results are compared by value: entries, contents and states of objects."""

import array
import contextvars
import ctypes
import functools
import gc
import os
import pickle
import random
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, TypeAlias

import numpy as np
import torch

RandomSource: TypeAlias = (
    random.Random | np.random.Generator | np.random.RandomState | torch.Generator
)
Reader: TypeAlias = Callable[..., object]

ATOMS = {int, float, bool, str, bytes, complex, type(None)}
# Objects of which the content is in memory that `memoryview` reads.
BUFFERS = (array.array, bytearray, memoryview, ctypes.Structure, ctypes.Union, ctypes.Array,
           ctypes._SimpleCData)  # fmt: skip
# Objects that refer to others, but have no attributes that could be read.
OPAQUE: tuple[type, ...] = (functools._lru_cache_wrapper, types.MappingProxyType, type({}.keys()),
          type({}.values()), type({}.items()))  # fmt: skip


def by_value(value: object) -> object:
    """Return an atom, or the identity of any other object."""
    return value if type(value) in ATOMS else id(value)


# -- reads of which the results are compared by value ------------------------------------------


def entries_of(owner: Iterable[object], name: object) -> object:
    """Return the entries of a list, tuple or deque."""
    return tuple(map(by_value, owner))


def items_of(owner: Mapping[object, object], name: object) -> object:
    """Return the items of a dictionary."""
    return tuple((by_value(key), by_value(value)) for key, value in owner.items())


def members_of(owner: Set[object], name: object) -> object:
    """Return the members of a set."""
    return frozenset(owner)


def content_of(owner: Any, name: object) -> object:
    """Return the content of an array or another object with a buffer."""
    if isinstance(owner, np.ndarray):
        return np.ndarray.tobytes(owner)  # not that of a subclass, which can write attributes
    return bytes(owner) if isinstance(owner, bytearray) else memoryview(owner).tobytes()


def state_of(owner: RandomSource, name: object) -> object:
    """Return the state of a random generator."""
    if isinstance(owner, random.Random):
        return owner.getstate()
    if isinstance(owner, torch.Generator):
        return owner.get_state().numpy().tobytes()
    return pickle.dumps(
        owner.bit_generator.state if isinstance(owner, np.random.Generator) else owner.get_state()
    )


def context_of(owner: contextvars.ContextVar[object], name: object) -> object:
    """Return the value of a context variable."""
    return by_value(owner.get(None))


def referents_of(owner: object, name: object) -> object:
    """Return the objects that an object refers to, such as the results in a cache."""
    return tuple(map(by_value, gc.get_referents(owner)))


def target_of(owner: weakref.ref[object], name: object) -> object:
    """Return the object of a weak reference."""
    return by_value(owner())


def present_of(owner: tuple[Mapping[str, object], Set[str]], name: object) -> object:
    """Return how many of some names a mapping has."""
    return len(owner[0].keys() & owner[1])


def environment_of(owner: object, name: object) -> object:
    """Return the environment variables."""
    return tuple(os.environ.items())


VALUE_READERS = {
    entries_of, items_of, members_of, content_of, state_of, context_of, environment_of,
    present_of, referents_of, target_of,
}  # fmt: skip


def set_content(owner: Any, former: bytes) -> None:
    """Set the content of an array or another object to a result of `content_of`."""
    if isinstance(owner, np.ndarray):
        owner[...] = np.frombuffer(former, owner.dtype).reshape(owner.shape)
    elif isinstance(owner, array.array):
        owner[:] = array.array(owner.typecode, former)
    elif isinstance(owner, bytearray):
        owner[:] = former
    elif isinstance(owner, memoryview):
        owner.cast("B")[:] = former
    else:
        ctypes.memmove(ctypes.addressof(owner), former, len(former))


def set_state(owner: RandomSource, former: Any) -> None:
    """Set a random generator to a result of `state_of`."""
    if isinstance(owner, random.Random):
        owner.setstate(former)
    elif isinstance(owner, torch.Generator):
        owner.set_state(torch.frombuffer(bytearray(former), dtype=torch.uint8))
    elif isinstance(owner, np.random.Generator):
        owner.bit_generator.state = pickle.loads(former)
    else:
        owner.set_state(pickle.loads(former))


# Functions that set an owner to the result of a reader. Lists, dictionaries and sets are copied.
VALUE_WRITERS: dict[Reader, Callable[[Any, Any], None]] = {
    content_of: set_content,
    state_of: set_state,
}
