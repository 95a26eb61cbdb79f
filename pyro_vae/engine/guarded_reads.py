"""Reads of the Python values that a program can use, found in its bytecode and its objects.

A *read* is a function with an owner and a name: `read(owner, name)` gives the value. The reads of
a function are the globals, free variables and imported modules that its bytecode loads, with the
attributes that are loaded from modules. The reads of an object are its attributes, slots and
entries; the reads of a class are the entries of the classes along its MRO.
"""

import argparse
import builtins
import collections
import contextvars
import dis
import functools
import gc
import operator
import os
import sys
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import numpy as np
from pyro.poutine.trace_messenger import TraceHandler, TraceMessenger
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pyro_vae.engine.compared_values import (
    ATOMS,
    BUFFERS,
    OPAQUE,
    RandomSource,
    Reader,
    content_of,
    context_of,
    entries_of,
    environment_of,
    items_of,
    members_of,
    referents_of,
    state_of,
    target_of,
)

Container: TypeAlias = (
    dict[object, object]
    | list[object]
    | tuple[object, ...]
    | collections.deque[object]
    | set[object]
    | frozenset[object]
)
Read: TypeAlias = tuple[Reader, object, object]

LIBRARIES = {"torch", "pyro", "numpy", "opt_einsum", "functools", *sys.stdlib_module_names}
# Functions and classes of this package read no values that change, but its objects hold the
# user's settings and functions.
CODE_LIBRARIES = LIBRARIES | {"pyro_vae"}
LIMIT = 100  # numbers and strings of a list or dictionary; more are compared together
LARGE = 1000  # numbers and strings of a container; more are data, not settings
LARGE_CONTENT = 100_000  # bytes of an array or a buffer; more are data
# Classes of libraries of which the objects hold a program's own values, or a program and its trace.
HOLDERS = {types.SimpleNamespace, argparse.Namespace, TraceHandler, TraceMessenger}
HOLDING_MODULES = {"collections", "configparser", "functools", "multiprocessing.sharedctypes",
                   "weakref", "_weakrefset", "_thread"}  # fmt: skip
STRUCTURE = {"training", "_parameters", "_buffers", "_modules"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLUMBING = set(vars(nn.Module())) - STRUCTURE  # attributes of every module
OF_EACH_MODULE = {*STRUCTURE, *PLUMBING, "forward"}
MATCH_CLASS = "MATCH_CLASS"  # a pattern, the attributes of which are constants in the bytecode
# Results of the last call and inverses that transforms cache; they change in every step.
CACHES = {"_cached_x_y", "_cached_log_scale", "_cache_log_detJ", "_inv"}
DUNDER_DATA = {"__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__slots__",
               "__abstractmethods__", "__parameters__", "__orig_bases__", "_abc_impl",
               "__static_attributes__", "__firstlineno__", "__qualname__"}  # fmt: skip
PROXY_GET = types.MappingProxyType.get


GETTERS: dict[type, Reader] = {
    list: list.__getitem__,
    tuple: tuple.__getitem__,
    collections.deque: collections.deque.__getitem__,
}


# -- code ------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def loads_of(code: types.CodeType) -> tuple[tuple[tuple[str, ...], ...], frozenset[str]]:
    """Return the loads of a function's bytecode, including the functions inside it.

    Returns:
        Paths, and the names of attributes that are loaded, stored or deleted. A path begins with
        the kind (`global`, `free`, `import`) and the name of the first value, followed by the
        attributes that are loaded from it.
    """
    paths: list[list[str]] = []
    attributes: set[str] = set()
    extends = False
    for step in dis.get_instructions(code):
        kind, value = step.opname, step.argval
        if kind in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"):  # a result that is left behind
            paths.append(["global", value])
        elif kind in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"):
            paths.append(["free", value])
        elif kind == "IMPORT_NAME":
            paths.append(["import", value])
        elif kind in ("STORE_ATTR", "DELETE_ATTR", MATCH_CLASS):
            attributes.add(MATCH_CLASS if kind == MATCH_CLASS else value)
        elif kind in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM", "LOAD_SUPER_ATTR"):
            attributes.add(value)
            if extends:
                paths[-1].append(value)
            continue
        elif kind in ("PUSH_NULL", "CACHE", "PRECALL", "RESUME"):
            continue
        extends = kind in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME") or kind.startswith(
            ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT")
        )
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, names = loads_of(constant)
            paths += map(list, inner)
            attributes |= names
    return tuple(dict.fromkeys(map(tuple, paths))), frozenset(attributes)


def is_library(name: str, libraries: set[str] = LIBRARIES) -> bool:
    """Return whether a module of this name belongs to a library."""
    return name.partition(".")[0] in libraries or name == builtins.__name__


def from_library(value: object, libraries: set[str] = LIBRARIES) -> bool:
    """Return whether a class or function belongs to a library."""
    return is_library(getattr(value, "__module__", None) or "", libraries)


def is_own(kind: type) -> bool:
    """Return whether objects of a class hold a program's own values."""
    return kind in HOLDERS or kind.__module__ in HOLDING_MODULES or not from_library(kind)


def reads_of_function(function: types.FunctionType) -> Iterator[Read]:
    """Yield the reads of a function's closure, defaults, attributes and globals."""
    for cell in function.__closure__ or ():
        yield getattr, cell, "cell_contents"
    for name in ("__defaults__", "__kwdefaults__"):
        if getattr(function, name) is not None:
            yield getattr, function, name
    if vars(function):
        yield getattr, function, "__dict__"  # its attributes, and the function that it wraps
    if from_library(function, CODE_LIBRARIES):
        return
    paths, attributes = loads_of(function.__code__)
    for kind, name, *rest in paths:
        if kind == "global" and name in function.__globals__:
            yield dict.get, function.__globals__, name
            yield from _reads_of_path(function.__globals__[name], rest)
        elif kind == "import":
            module = sys.modules.get(name)
            yield dict.get, sys.modules, name
            yield from _reads_of_path(module, rest)
    if attributes & {"environ", "getenv"} or any("environ" in path for path in paths):
        yield environment_of, os, "environ"


def _reads_of_path(value: object, attributes: list[str]) -> Iterator[Read]:
    """Yield the reads of attributes of modules, such as `settings.kl.beta`."""
    for name in attributes:
        if not isinstance(value, types.ModuleType) or name not in vars(value):
            return
        yield dict.get, vars(value), name
        value = vars(value)[name]


def reads_of_module(module: types.ModuleType, names: set[str]) -> Iterator[Read]:
    """Yield the reads of a user's Python module: the attributes that some function loads."""
    return ((dict.get, vars(module), name) for name in names if name in vars(module))


def own_bases(kind: type) -> list[type]:
    """Return the classes along the MRO of a class that no library has."""
    return [base for base in kind.__mro__ if not from_library(base, CODE_LIBRARIES)]


def reads_of_class(kind: type) -> Iterator[Read]:
    """Yield the reads of a class: the entries of the classes along the MRO."""
    for base in own_bases(kind):
        yield operator.length_hint, vars(base), 0
        for name in vars(base):
            if name not in DUNDER_DATA:
                yield PROXY_GET, vars(base), name


# -- objects ---------------------------------------------------------------------------------------


def reads_of(value: object, *, named: bool = False) -> Iterator[Read]:
    """Yield the reads of the values that an object other than a class or module gives access to.

    Args:
        value: The object.
        named: Whether `NamedReads` has the attributes of the object.
    """
    if isinstance(value, types.MethodType):
        yield getattr, value, "__self__"
        yield getattr, value, "__func__"
    elif isinstance(value, types.FunctionType):
        yield from reads_of_function(value)
    elif isinstance(value, functools.partial):
        for name in ("func", "args", "keywords"):
            yield getattr, value, name
    elif isinstance(value, property):
        yield getattr, value, "fget"
    elif isinstance(value, staticmethod | classmethod):
        yield getattr, value, "__func__"
    elif isinstance(value, functools.cached_property):
        yield getattr, value, "func"
    elif isinstance(value, nn.Module):
        yield from _reads_of_network(value, named)
    elif isinstance(value, dict | list | tuple | collections.deque | set | frozenset):
        yield from _reads_of_container(value)
    elif isinstance(value, np.ndarray):
        yield from _reads_of_array(value)
    elif isinstance(value, BUFFERS):
        if memoryview(value).nbytes <= LARGE_CONTENT:
            yield content_of, value, f"a {type(value).__name__}"
    elif isinstance(value, weakref.ref):
        yield target_of, value, "a weak reference"
    elif isinstance(value, types.BuiltinMethodType):
        yield getattr, value, "__self__"
    elif isinstance(value, RandomSource):
        yield state_of, value, "the state of a random generator"
    elif isinstance(value, contextvars.ContextVar):
        yield context_of, value, value.name
    elif not isinstance(value, OPAQUE):
        yield from _reads_of_object(value, named)
    elif not from_library(value, CODE_LIBRARIES):
        yield referents_of, value, f"a {type(value).__name__}"


def objects_in(value: object) -> Iterable[object]:
    """Return the objects in a value that have no read of their own, such as keys and members."""
    if isinstance(value, dict | set | frozenset):
        return [key for key in value if type(key) not in ATOMS] if len(value) <= LARGE else []
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, OPAQUE) and not from_library(value, CODE_LIBRARIES):
        return gc.get_referents(value)
    return []


def _reads_of_array(value: np.ndarray) -> Iterator[Read]:
    if type(value) is not np.ndarray:  # such as the mask of a masked array
        yield from ((dict.get, vars(value), name) for name in getattr(value, "__dict__", ()))
    if value.dtype.hasobject:
        yield from ((np.ndarray.item, value, i) for i in range(value.size) if value.size <= LARGE)
    elif value.nbytes <= LARGE_CONTENT:
        yield content_of, value, "an array"


def _reads_of_container(value: Container) -> Iterator[Read]:
    yield operator.length_hint, value, 0
    if isinstance(value, set | frozenset):
        if len(value) <= LARGE:
            yield members_of, value, "a set"
    elif len(value) > LIMIT and is_plain(value):
        if len(value) <= LARGE:
            reader = items_of if isinstance(value, dict) else entries_of
            yield reader, value, f"a {type(value).__name__}"
    elif len(value) > LARGE:
        return
    elif isinstance(value, dict):
        yield from ((dict.get, value, key) for key in value)
    else:
        kind = GETTERS[next(base for base in GETTERS if isinstance(value, base))]
        yield from ((kind, value, i) for i in range(len(value)))


def is_plain(value: Container) -> bool:
    """Return whether a container has numbers and strings only."""
    entries = value.values() if isinstance(value, dict) else value
    return all(type(entry) in ATOMS for entry in entries)


def _reads_of_network(value: nn.Module, named: bool) -> Iterator[Read]:
    attributes = vars(value)
    hooked = any(attributes.get(name) for name in HOOKS)  # hooks can leave results behind
    own = hooked or not from_library(type(value))  # modules of libraries rebuild caches
    caches = _caches_of(value)
    yield from (
        (dict.get, attributes, name)
        for name, child in attributes.items()
        if name not in caches
        and (
            name in STRUCTURE
            or (not named and (type(child) in ATOMS or (own and name not in PLUMBING)))
        )
    )
    yield dict.get, attributes, "forward"  # of the object, if somebody replaced it
    for name in HOOKS:
        hooks = attributes.get(name)
        if hooks is not None:
            yield operator.length_hint, hooks, 0
            yield from ((dict.get, hooks, key) for key in hooks)
    if own:
        if not named:
            yield operator.length_hint, attributes, 0
        yield from _reads_of_slots(value)


def _reads_of_object(value: object, named: bool) -> Iterator[Read]:
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not named:  # a type alias has another mapping
        own, caches = is_own(type(value)), _caches_of(value)
        if own:
            yield operator.length_hint, attributes, 0
        yield from (
            (dict.get, attributes, name)
            for name, child in attributes.items()
            # Of Pyro's objects, such as an ELBO, the settings.
            if name not in caches and (own or type(child) in ATOMS or _is_parameter(value, child))
        )
    if not from_library(type(value)):
        yield from _reads_of_slots(value)


def reads_of_tensor(value: Tensor) -> Iterator[Read]:
    """Yield the reads of the attributes that somebody has set on a tensor."""
    # Pyro stores a reference to the unconstrained tensor of a parameter.
    return ((dict.get, vars(value), name) for name in vars(value) if name != "unconstrained")


def _is_parameter(value: object, child: object) -> bool:
    """Return whether a value is a parameter of a distribution."""
    return isinstance(value, Distribution) and isinstance(child, Tensor | Distribution | list)


def _caches_of(value: object) -> set[str]:
    """Return the attributes that an object changes in every run without another result."""
    return CACHES if isinstance(value, Transform) else set()


def _reads_of_slots(value: object) -> Iterator[Read]:
    for kind in type(value).__mro__:
        for member in vars(kind).values():
            if isinstance(member, types.MemberDescriptorType):
                yield slot_of, value, member.__name__


def slot_of(owner: object, name: str) -> object:
    """Return the value of a slot, None if it is not set."""
    return getattr(owner, name, None)
