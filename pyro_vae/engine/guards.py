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
from collections.abc import Callable, Hashable, Iterator
from typing import TypeAlias

from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.distributions import Transform
from torch.optim import Optimizer

# A function with an owner and a name: `read(owner, name)` gives the value.
Reader: TypeAlias = Callable[..., object]
Read: TypeAlias = tuple[Reader, object, object]
GuardKey: TypeAlias = tuple[tuple[str, Hashable], ...]

ATOMS = {int, float, bool, str, bytes, complex, type(None)}
LIBRARIES = {"torch", "pyro", "numpy", "opt_einsum", "functools", *sys.stdlib_module_names}
LIMIT = 100  # entries of a list or dictionary; larger ones are data, not settings
# Total number of values. Comparing this many before a step takes about half a millisecond.
MAX_VALUES = 10_000
# Objects that run the training step. An object that holds its SVI would otherwise lead the walk
# into the compiler, which keeps the result of each walk. Optimizers are compared elsewhere.
ENGINE = (SVI, PyroOptim, Optimizer)
CONTAINERS = {dict, list, tuple}
STRUCTURE = {"training", "_parameters", "_buffers", "_modules"}
PLUMBING = set(vars(nn.Module())) - STRUCTURE  # attributes of every module, such as hooks
# Results of the last call that transforms cache; they change in every step.
CACHES = {"_cached_x_y", "_cached_log_scale", "_cache_log_detJ"}


class GuardedState:
    """The Python values that functions and objects can read.

    Args:
        roots: Model, guide and loss.

    Attributes:
        modules: Modules found.
        complete: False if there are more than `MAX_VALUES` values; the others are not read.
    """

    def __init__(self, *roots: object) -> None:
        self._roots = roots
        self.complete = True
        self._reads: list[Read] = []
        self._held: list[object] = []
        self._last: list[Hashable] | None = None
        self._key: GuardKey = ()
        # The reads by function: owners, names, and the objects that the last reads gave.
        self._groups: list[tuple[Reader, list[object], list[object], list[object]]] = []
        self.modules: list[nn.Module] = []

    def key(self) -> GuardKey:
        """Return the values; a program that reads equal keys reads equal values.

        Numbers, strings and the entries of lists and dictionaries are compared by value, other
        objects by identity.
        """
        if self._untouched():
            return self._key
        values = self._read()
        if values != self._last:
            self._collect()
            self._last = self._read()
        return self._key

    def _untouched(self) -> bool:
        """Return whether every read gives the identical object, as in most steps."""
        try:
            return bool(self._groups) and all(
                all(map(operator.is_, map(read, owners, names), held))
                for read, owners, names, held in self._groups
            )
        except (LookupError, AttributeError, ValueError):  # a value no longer exists
            return False

    def difference(self, old: GuardKey, new: GuardKey) -> str:
        """Return the name of the first value that differs between two keys."""
        names = (name for (name, a), (other, b) in zip(old, new, strict=False)
                 if (name, a) != (other, b))  # fmt: skip
        return str(next(names, "the number of objects that it reads"))

    def _read(self) -> list[Hashable]:
        return [
            value if type(value) in ATOMS else id(value)
            for value in itertools.starmap(_get, self._reads)
        ]

    def _collect(self) -> None:
        self._reads, self._held, self.modules = [], [], []
        key: list[tuple[str, Hashable]] = []
        seen: set[int] = set()
        queue: list[object] = list(self._roots)
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
                # Objects compared by address must stay alive; otherwise the address is reused.
                self._held.append(child)
                queue.append(child)
                kind = type(child)
                by_value = child if kind in ATOMS else kind if kind in CONTAINERS else id(child)
                key.append((str(read[2]), by_value))
        self._key = tuple(key)
        self.complete = len(key) < MAX_VALUES
        groups: dict[Reader, tuple[list[object], list[object], list[object]]] = {}
        for (function, owner, name), held in zip(self._reads, self._held, strict=True):
            entries = groups.setdefault(function, ([], [], []))
            for entry, value in zip(entries, (owner, name, held), strict=True):
                entry.append(value)
        self._groups = [(read, *entries) for read, entries in groups.items()]


def modules_of(*programs: object) -> list[nn.Module]:
    """Return the modules that programs consist of or refer to, each once."""
    own = [m for program in programs if isinstance(program, nn.Module) for m in program.modules()]
    if all(isinstance(program, nn.Module) for program in programs) and all(map(_is_plain, own)):
        return list(dict.fromkeys(own))  # the walk would find no others, and takes milliseconds
    state = GuardedState(*programs)
    with contextlib.suppress(Exception):  # raised by an attribute of a foreign object
        state.key()
    return list(dict.fromkeys([*own, *state.modules]))


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module of this package or of torch refers to nothing but its children."""
    return type(module).__module__.startswith(("pyro_vae.", "torch.nn.")) and all(
        name.startswith("_") or name == "build_arguments" or _is_constant(value)
        for name, value in vars(module).items()
    )


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, str | int | float | bool)


def _get(read: Reader, owner: object, name: object) -> object:
    try:
        return read(owner, name)
    except (LookupError, AttributeError, ValueError):  # the value no longer exists
        return None


def _methods(value: object) -> list[types.FunctionType]:
    """Return the methods of an object, except methods that a library's class defines."""
    if isinstance(value, type | types.ModuleType) or _from_library(type(value)):
        return []
    attributes = [vars(kind) for kind in type(value).__mro__ if not _from_library(kind)]
    return [f for names in attributes for f in names.values() if isinstance(f, types.FunctionType)]


def _visible(value: object) -> Iterator[Read]:
    """Yield the reads of the values that an object gives access to."""
    if isinstance(value, types.MethodType):
        yield getattr, value, "__self__"
        yield getattr, value, "__func__"
    elif isinstance(value, types.FunctionType):
        yield from _visible_to_function(value)
    elif isinstance(value, functools.partial):
        for name in ("func", "args", "keywords"):
            yield getattr, value, name
    elif isinstance(value, nn.Module):
        own = not _from_library(type(value))  # modules of libraries rebuild caches in every run
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
    elif isinstance(value, type | types.ModuleType):
        return
    elif isinstance(getattr(value, "__dict__", None), dict):  # a type alias has another mapping
        if not _from_library(type(value)):
            yield from ((dict.get, vars(value), name) for name in vars(value))
        else:  # the settings of Pyro's objects, such as an ELBO
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
                # the attributes that the function names, such as settings.beta
                yield from ((getattr, value, n) for n in names if hasattr(value, n))


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:  # functions inside the function
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _from_library(value: object) -> bool:
    return _is_library(getattr(value, "__module__", None) or "")


def _is_library(name: str) -> bool:
    return name.partition(".")[0] in LIBRARIES or name == builtins.__name__
