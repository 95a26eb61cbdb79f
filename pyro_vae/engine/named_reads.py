"""Reads of the attributes that the code of a program names, out of those that its objects have.

An object that runs a training loop keeps counters and histories, which change in each step. If the
code that a program can reach names none of them, and reads no attribute by a computed name, the
program does not depend on them. This holds for objects of the user's own classes; code of libraries
can read any attribute of an object of theirs.
"""

import abc
import operator
import types
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol

from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.engine.compared_values import Reader, present_of
from pyro_vae.engine.guarded_reads import (
    CODE_LIBRARIES,
    DUNDER_DATA,
    MATCH_CLASS,
    OF_EACH_MODULE,
    PROXY_GET,
    Read,
    from_library,
    loads_of,
    own_bases,
)

BASES = {object, nn.Module, abc.ABC, Generic, Protocol}
METACLASSES = {type, abc.ABCMeta}
CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}
# Names that libraries read of an object that is used as a distribution or a mapping.
PROTOCOL = {*dir(TorchDistribution), "forward", "keys", "values", "items", "get"}
MODULE_PROTOCOL = PROTOCOL | set(dir(nn.Module))
# With these attributes and functions, code can read attributes that it does not name.
COMPUTED_ATTRIBUTES = {"__dict__", "__getattribute__", MATCH_CLASS}
COMPUTED = COMPUTED_ATTRIBUTES | {
    "getattr", "hasattr", "setattr", "delattr", "vars", "dir", "eval", "exec", "locals", "globals",
    "attrgetter", "methodcaller", "getmembers", "asdict", "astuple", "fields", "dumps",
}  # fmt: skip


def is_closed(kind: type) -> bool:
    """Return whether only code of the user reads the attributes of the objects of a class."""
    return type(kind) in METACLASSES and all(
        base in BASES or not from_library(base, CODE_LIBRARIES) for base in kind.__mro__
    )


def _protocol(kind: type) -> set[str]:
    """Return the names that libraries read of the objects of a closed class."""
    return MODULE_PROTOCOL if issubclass(kind, nn.Module) else PROTOCOL


class NamedReads:
    """The attributes of closed classes and of their objects.

    Attributes:
        names: Names that the code of a program loads or stores.
        all: Whether all attributes are read.
    """

    def __init__(self, *, read_all: bool) -> None:
        self.names: set[str] = set()
        self.all = read_all
        self._mappings: list[tuple[Reader, Mapping[str, object], type]] = []
        self._known: set[type] = set()
        self._constructed: set[type] = set()
        self._done: set[tuple[int, str]] = set()

    def add_code(self, value: object) -> None:
        """Add the names that a value reads if it is code; all, if it reads by computed names."""
        if isinstance(value, types.FunctionType) and not from_library(value, CODE_LIBRARIES):
            paths, attributes = loads_of(value.__code__)
            self.names |= attributes
            computed = bool(attributes & COMPUTED_ATTRIBUTES) or any(
                not COMPUTED.isdisjoint(path[1:]) for path in paths
            )
        elif isinstance(value, types.BuiltinFunctionType) and not from_library(value):
            computed = True  # compiled code of the user
        elif isinstance(value, types.BuiltinFunctionType | types.FunctionType | type):
            computed = value.__name__ in COMPUTED
        else:
            computed = isinstance(value, operator.attrgetter | operator.methodcaller)
        self.all = self.all or computed

    def add_object(self, attributes: dict[str, object], kind: type) -> None:
        """Add the attributes of an object of a closed class, without those of each module."""
        self._mappings.append((dict.get, attributes, kind))

    def add_class(self, kind: type, *, constructed: bool) -> None:
        """Add a closed class and its bases.

        Args:
            kind: The class.
            constructed: Whether the program can construct objects of it.
        """
        if constructed:
            self._constructed.update(kind.__mro__)
        for base in own_bases(kind):
            if base not in self._known:
                self._known.add(base)
                self._mappings.append((PROXY_GET, vars(base), base))

    def reads(self) -> Iterator[Read]:
        """Yield the reads of the attributes that are named and have no read yet."""
        for place, (reader, mapping, kind) in enumerate(self._mappings):
            for name in [*mapping]:
                if (place, name) not in self._done and self._is_read(name, kind, reader):
                    self._done.add((place, name))
                    yield reader, mapping, name

    def numbers(self) -> Iterator[Read]:
        """Yield the reads of the numbers of attributes that are named, at the end of a walk."""
        for _, mapping, kind in self._mappings:
            if self.all:
                yield operator.length_hint, mapping, 0
            else:
                yield present_of, (mapping, self.names | _protocol(kind)), "the attributes"

    def _is_read(self, name: str, kind: type, reader: Reader) -> bool:
        if reader is dict.get:
            is_own = not (issubclass(kind, nn.Module) and name in OF_EACH_MODULE)
            return is_own and (self.all or name in self.names or name in _protocol(kind))
        if name in DUNDER_DATA:
            return False
        if name in CONSTRUCTORS:
            return self.all or kind in self._constructed
        is_special = name.startswith("__") and name.endswith("__")
        return self.all or is_special or name in self.names or name in _protocol(kind)
