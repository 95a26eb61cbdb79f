"""Compilation guards: a comparable snapshot of the globals, closures and attributes of a program.

A traced program keeps the Python values that it was traced with. The values that a model or guide
can reach (globals and closures named by its functions, attributes of its modules and objects) are
read before every step. If one has changed, the step needs another trace.
"""

import builtins
import contextlib
import functools
import itertools
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import Transform
from torch.optim import Optimizer

Read = tuple[Callable[[Any, Any], Any], Any, Any]

ATOMS = {int, float, bool, str, bytes, complex, type(None)}
LIBRARIES = {"torch", "pyro", "numpy", "opt_einsum", "functools", *sys.stdlib_module_names}
LIMIT = 100  # entries of lists and dictionaries: more are data, not settings
# Values in all. Comparing this many before a step takes about half a millisecond.
MAX_VALUES = 10_000
# Objects that run the training step. An object that holds its SVI would otherwise lead the walk
# into the compiler, which keeps the result of each walk. Optimizers are compared elsewhere.
ENGINE = (SVI, PyroOptim, Optimizer)
CONTAINERS = {dict, list, tuple}
STRUCTURE = {"training", "_parameters", "_buffers", "_modules"}
PLUMBING = set(vars(nn.Module())) - STRUCTURE  # hooks and the like, which every module has
# What transforms keep of their last call: each step has its own, and finds no other step's.
CACHES = {"_cached_x_y", "_cached_log_scale", "_cache_log_detJ"}


class GuardedState:
    """The Python values that some functions and objects can see.

    Args:
        roots: the model, the guide and the loss.

    Attributes:
        modules: The modules found.
        complete: False if there are more than `MAX_VALUES` values; the others are not read.
    """

    def __init__(self, *roots: Any) -> None:
        self._roots = roots
        self.complete = True
        self._reads: list[Read] = []
        self._held: list[Any] = []
        self._last: list[Any] | None = None
        self._key: tuple[Any, ...] = ()
        # The reads by their function: owners, names, and the objects that were read last.
        self._groups: list[tuple[Callable[..., Any], list[Any], list[Any], list[Any]]] = []
        self.modules: list[nn.Module] = []

    def key(self) -> tuple[Any, ...]:
        """Return the values; equal keys mean that a program sees the same.

        Numbers, strings and what is in lists and dictionaries count by value, other objects only
        as themselves.
        """
        if self._untouched():
            return self._key
        values = self._read()
        if values != self._last:
            self._collect()
            self._last = self._read()
        return self._key

    def _untouched(self) -> bool:
        """Tell whether every read gives the very object that it gave, as it does in most steps."""
        try:
            return bool(self._groups) and all(
                all(map(operator.is_, map(read, owners, names), held))
                for read, owners, names, held in self._groups
            )
        except (LookupError, AttributeError, ValueError):  # something is gone
            return False

    def difference(self, old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
        """Name what differs between two keys."""
        names = (name for (name, a), (other, b) in zip(old, new, strict=False)
                 if (name, a) != (other, b))  # fmt: skip
        return str(next(names, "the number of objects that it sees"))

    def _read(self) -> list[Any]:
        return [
            value if type(value) in ATOMS else id(value)
            for value in itertools.starmap(_get, self._reads)
        ]

    def _collect(self) -> None:
        self._reads, self._held, self.modules = [], [], []
        key: list[tuple[str, Any]] = []
        seen: set[int] = set()
        queue: list[Any] = list(self._roots)
        while queue and len(key) < MAX_VALUES:
            value = queue.pop()
            if id(value) in seen or type(value) in ATOMS or isinstance(value, (Tensor, *ENGINE)):
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                self.modules.append(value)
            queue += _methods(value)
            for read in itertools.islice(_visible(value), MAX_VALUES - len(key)):
                self._reads.append(read)
                child = _get(*read)
                # What is identified by its address must stay alive, else another takes its place.
                self._held.append(child)
                queue.append(child)
                kind = type(child)
                by_value = child if kind in ATOMS else kind if kind in CONTAINERS else id(child)
                key.append((str(read[2]), by_value))
        self._key = tuple(key)
        self.complete = len(key) < MAX_VALUES
        groups: dict[Any, tuple[list[Any], list[Any], list[Any]]] = {}
        for (function, owner, name), held in zip(self._reads, self._held, strict=True):
            entries = groups.setdefault(function, ([], [], []))
            for entry, value in zip(entries, (owner, name, held), strict=True):
                entry.append(value)
        self._groups = [(read, *entries) for read, entries in groups.items()]


def modules_of(*programs: Any) -> list[nn.Module]:
    """Return the modules that programs can see, as far as they can be found."""
    surroundings = GuardedState(*programs)
    with contextlib.suppress(Exception):  # of an attribute of a foreign object
        surroundings.key()
    return surroundings.modules


def _get(read: Callable[[Any, Any], Any], owner: Any, name: Any) -> Any:
    try:
        return read(owner, name)
    except (LookupError, AttributeError, ValueError):  # it is gone
        return None


def _methods(value: Any) -> list[types.FunctionType]:
    """Return the functions of an object's class, as far as they are the user's own."""
    if isinstance(value, type | types.ModuleType) or _from_library(type(value)):
        return []
    attributes = [vars(kind) for kind in type(value).__mro__ if not _from_library(kind)]
    return [f for names in attributes for f in names.values() if isinstance(f, types.FunctionType)]


def _visible(value: Any) -> Iterator[Read]:
    if isinstance(value, types.MethodType):
        yield getattr, value, "__self__"
        yield getattr, value, "__func__"
    elif isinstance(value, types.FunctionType):
        yield from _visible_to_function(value)
    elif isinstance(value, functools.partial):
        for name in ("func", "args", "keywords"):
            yield getattr, value, name
    elif isinstance(value, nn.Module):
        own = not _from_library(type(value))  # a library's modules rebuild caches in every run
        passing = PLUMBING | CACHES if isinstance(value, Transform) else PLUMBING
        yield from (
            (dict.get, vars(value), name)
            for name, child in vars(value).items()
            if name in STRUCTURE or type(child) in ATOMS or (own and name not in passing)
        )
    elif isinstance(value, dict) and len(value) <= LIMIT:
        yield from ((dict.get, value, key) for key in value)
        yield operator.length_hint, value, 0
    elif isinstance(value, list | tuple) and len(value) <= LIMIT:
        kind = list.__getitem__ if isinstance(value, list) else tuple.__getitem__
        yield from ((kind, value, i) for i in range(len(value)))
        yield operator.length_hint, value, 0
    elif not isinstance(value, type | types.ModuleType) and hasattr(value, "__dict__"):
        if not _from_library(type(value)):
            yield from ((dict.get, vars(value), name) for name in vars(value))
        else:  # of Pyro's own objects, such as an ELBO, their settings
            yield from (
                (dict.get, vars(value), n) for n, v in vars(value).items() if type(v) in ATOMS
            )


def _visible_to_function(function: types.FunctionType) -> Iterator[Read]:
    for cell in function.__closure__ or ():
        yield getattr, cell, "cell_contents"
    if function.__defaults__ is not None:
        yield getattr, function, "__defaults__"
    if function.__kwdefaults__ is not None:
        yield getattr, function, "__kwdefaults__"
    if hasattr(function, "__wrapped__"):
        yield getattr, function, "__wrapped__"
    if _from_library(function):
        return
    names = set(_names(function.__code__))
    for name in names:
        if name in function.__globals__:
            yield dict.get, function.__globals__, name
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
                # settings.beta: the attributes that the function names
                yield from ((getattr, value, n) for n in names if hasattr(value, n))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # functions inside the function
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _from_library(value: Any) -> bool:
    return _is_library(getattr(value, "__module__", None) or "")


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in LIBRARIES or name == builtins.__name__
