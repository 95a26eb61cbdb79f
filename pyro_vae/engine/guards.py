"""Compilation guards: a comparable snapshot of the globals, closures and attributes of a program.

A traced program keeps the Python values that it was traced with. The values that a model or guide
can reach are read before every step. If one has changed, the step needs another trace. The module
`guarded_reads` finds these values. Changes that it does not see are detected by verified steps.
"""

import collections
import contextlib
import copy
import operator
import queue
import sys
import types
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vae.engine.compared_values import ATOMS, VALUE_READERS, VALUE_WRITERS, Reader
from pyro_vae.engine.guarded_reads import (
    CODE_LIBRARIES,
    HOOKS,
    LARGE,
    PROXY_GET,
    Read,
    from_library,
    is_library,
    is_plain,
    objects_in,
    own_bases,
    reads_of,
    reads_of_class,
    reads_of_module,
    reads_of_tensor,
)
from pyro_vae.engine.named_reads import NamedReads, is_closed

GuardKey: TypeAlias = tuple[tuple[str, Hashable], ...]

# Total number of values. Comparing this many before a step takes about half a millisecond.
MAX_VALUES = 10_000
# Objects that run the training step. An object that holds its SVI would otherwise lead the walk
# into the compiler, which keeps the result of each walk. Optimizers are compared elsewhere.
ENGINE = (SVI, PyroOptim, Optimizer)
CONTAINERS = {dict, list, tuple}
MUTABLE = (dict, list, set, collections.deque)
SOURCES = (Iterator, queue.Queue, queue.SimpleQueue)  # a program takes their entries out


class GuardedState:
    """The Python values that functions and objects can read.

    Args:
        roots: Reads of model, guide and loss.
        hooks: Whether to follow the hooks of modules, too.
        named: Whether to leave out attributes that the code of the programs does not name.

    Attributes:
        modules: Modules found.
        tensors: Tensors found.
        iterators: Iterators and queues found, which cannot be set back.
        complete: False if there are more than `MAX_VALUES` values, or `LARGE` objects in a
            container; the others are not read.
    """

    def __init__(self, roots: Sequence[Read], hooks: bool = True, named: bool = False) -> None:
        self._roots, self.hooks, self.named = roots, hooks, named
        self.complete = True
        self._reads: list[Read] = []
        self._held: list[object] = []
        self._last: list[Hashable] | None = None
        self._key: GuardKey = ()
        # The reads by function: owners, names, and the objects that the last reads gave.
        self._groups: list[tuple[Any, Reader, list[object], list[object], list[object]]] = []
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        self.iterators: list[object] = []
        self._containers: list[Any] = []
        self._classes: list[type] = []

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
                all(map(equal, map(read, owners, names), held))
                for equal, read, owners, names, held in self._groups
            )
        except (LookupError, AttributeError, ValueError):  # a value no longer exists
            return False

    def difference(self, old: GuardKey, new: GuardKey) -> str:
        """Return the name of the first value that differs between two keys."""
        names = (name for (name, a), (other, b) in zip(old, new, strict=False)
                 if (name, a) != (other, b))  # fmt: skip
        return str(next(names, "the number of objects that it reads"))

    def _read(self) -> list[Hashable]:
        return [_reduced(read[0], _get(*read)) for read in self._reads]

    def _collect(self) -> None:
        self._reads, self._held, self.modules, self.tensors = [], [], [], []
        self._containers, self._classes, self.iterators = [], [], []
        key: list[tuple[str, Hashable]] = []
        walk = _Walk(self)
        for read in walk.reads(self._roots):
            child = _get(*read)
            self._reads.append(read)
            # Objects compared by address must stay alive; otherwise the address is reused.
            self._held.append(child)
            kind = type(child)
            if read[0] in VALUE_READERS:
                value: Any = child
            else:
                walk.queue.append(child)
                value = child if kind in ATOMS else kind if kind in CONTAINERS else id(child)
            key.append((str(read[2]), value))
            if len(key) == MAX_VALUES:
                break
        self._key = tuple(key)
        self.complete = len(key) < MAX_VALUES and not walk.skips
        groups: dict[Reader, tuple[list[object], list[object], list[object]]] = {}
        for (function, owner, name), held in zip(self._reads, self._held, strict=True):
            entries = groups.setdefault(function, ([], [], []))
            for entry, value in zip(entries, (owner, name, held), strict=True):
                entry.append(value)
        self._groups = [
            (operator.eq if read in VALUE_READERS else operator.is_, read, *entries)
            for read, entries in groups.items()
        ]

    @contextlib.contextmanager
    def restored(self, tensors: Iterable[Tensor]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Restore the values found, the entries of containers, and tensors on exit.

        Iterators keep their position.

        Args:
            tensors: Tensors to restore.

        Yields:
            The tensors with copies of their values. Values are compared, because batch
            normalization and `Tensor.data` change a tensor and not its version.
        """
        reads, held = list(self._reads), list(self._held)
        containers = [(value, copy.copy(value)) for value in self._containers]
        classes = [(kind, dict(vars(kind))) for kind in dict.fromkeys(self._classes)]
        copies = [(t, t.detach().clone()) for t in {id(t): t for t in tensors}.values()]
        try:
            yield copies
        finally:
            for value, former in containers:
                _restore_container(value, former)
            for kind, entries in classes:
                _restore_class(kind, entries)
            for read, former in zip(reads, held, strict=True):
                _restore(read, former)
            with torch.no_grad():
                for tensor, values in copies:
                    if not same_values(tensor, values):
                        tensor.copy_(values)


class _Walk:
    """The order in which values are found: classes and Python modules follow their objects."""

    def __init__(self, state: GuardedState) -> None:
        self.state = state
        self.queue: list[object] = []
        self.skips = False  # whether a container has too many objects
        self._seen: set[int] = set()
        self._held: list[object] = []  # objects whose address is in `_seen`
        self._named = NamedReads(read_all=not state.named)
        self._python_modules: dict[int, types.ModuleType] = {}
        self._module_reads: set[tuple[int, str]] = set()
        self._classes: set[type] = set()

    def reads(self, roots: Sequence[Read]) -> Iterator[Read]:
        """Yield all reads; the caller appends their results to `queue`."""
        yield from roots
        while True:
            while self.queue:
                yield from self._visit(self.queue.pop())
            new = [*self._reads_of_modules(), *self._named.reads()]
            if not new:
                yield from self._named.numbers()
                return
            yield from new

    def _visit(self, value: object) -> Iterator[Read]:
        if type(value) in ATOMS or id(value) in self._seen:
            return
        # Torch imports modules while it compiles: the table of modules is no setting.
        if isinstance(value, ENGINE) or value is sys.modules:
            return
        self._seen.add(id(value))
        self._held.append(value)
        state = self.state
        if isinstance(value, Tensor):
            if value.layout is torch.strided:
                state.tensors.append(value)
            if attributes := vars(value):
                state._containers.append(attributes)
                yield from reads_of_tensor(value)
            return
        if isinstance(value, types.ModuleType):
            if not is_library(value.__name__, CODE_LIBRARIES):
                self._python_modules[id(value)] = value
            return
        self._named.add_code(value)
        if isinstance(value, type):
            yield from self._visit_class(value, constructed=True)
            return
        if isinstance(value, nn.Module):
            state.modules.append(value)
            # The containers of library modules, such as those of an AutoGuide, are not compared.
            state._containers += [v for v in vars(value).values() if isinstance(v, MUTABLE)]
            if not state.hooks:
                self._seen.update(id(h) for name in HOOKS for h in vars(value)[name].values())
        if isinstance(value, SOURCES):
            state.iterators.append(value)
        if isinstance(value, (tuple, *MUTABLE)) and len(value) > LARGE:
            self.skips |= not is_plain(value)
        if isinstance(value, MUTABLE):
            state._containers.append(value)
        elif isinstance(getattr(value, "__dict__", None), dict):
            state._containers.append(vars(value))
        self.queue += objects_in(value)
        kind = type(value)
        yield from self._visit_class(kind, constructed=False)
        closed = is_closed(kind) and isinstance(getattr(value, "__dict__", None), dict)
        if closed:
            self._named.add_object(vars(value), kind)
        yield from reads_of(value, named=closed)

    def _visit_class(self, kind: type, *, constructed: bool) -> Iterator[Read]:
        """Yield the reads of a class once, and those of its constructors if they can run."""
        if from_library(kind, CODE_LIBRARIES):
            return
        is_new = kind not in self._classes
        if is_closed(kind) and (is_new or constructed):
            self._named.add_class(kind, constructed=constructed)
        if not is_new:
            return
        self._classes.add(kind)
        self.state._classes += own_bases(kind)
        if not is_closed(kind):
            yield from reads_of_class(kind)

    def _reads_of_modules(self) -> Iterator[Read]:
        for key, module in self._python_modules.items():
            for read in reads_of_module(module, self._named.names):
                entry = (key, str(read[2]))
                if entry not in self._module_reads:
                    self._module_reads.add(entry)
                    yield read


def same_values(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape have equal entries; NaN is equal to NaN."""
    return torch.equal(tensor, other) or bool(((tensor == other) | (tensor != tensor)).all())


def modules_of(*programs: object) -> list[nn.Module]:
    """Return the modules that programs consist of or refer to, each once."""
    own = [m for program in programs if isinstance(program, nn.Module) for m in program.modules()]
    if all(isinstance(program, nn.Module) for program in programs) and all(map(_is_plain, own)):
        return list(dict.fromkeys(own))  # the walk would find no others, and takes milliseconds
    return list(dict.fromkeys([*own, *guarded_state(*programs).modules]))


def guarded_state(*programs: object, hooks: bool = True) -> GuardedState:
    """Return the values that programs can read, or those found before an attribute raises."""
    state = GuardedState([(tuple.__getitem__, programs, i) for i in range(len(programs))], hooks)
    with contextlib.suppress(Exception):  # raised by an attribute of a foreign object
        state.key()
    return state


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module of this package or of torch refers to nothing but its children."""
    return type(module).__module__.startswith(("pyro_vae.", "torch.nn.")) and all(
        name.startswith("_") or name == "build_arguments" or _is_constant(value)
        for name, value in vars(module).items()
    )


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_constant, value))
    if isinstance(value, dict):
        return all(map(_is_constant, value.values()))
    return value is None or isinstance(value, str | int | float | bool)


def _get(read: Reader, owner: object, name: object) -> object:
    try:
        return read(owner, name)
    except (LookupError, AttributeError, ValueError):  # the value no longer exists
        return None


def _reduced(read: Reader, value: Any) -> Hashable:
    return value if type(value) in ATOMS or read in VALUE_READERS else id(value)


def _restore(read: Read, former: object) -> None:
    function, owner, name = read
    target: Any = owner
    if function in VALUE_READERS:
        if function in VALUE_WRITERS and function(owner, name) != former:
            VALUE_WRITERS[function](target, former)
        return
    if _get(*read) is former:
        return
    if function in (dict.get, list.__getitem__, collections.deque.__getitem__):
        target[name] = former
    elif function is np.ndarray.item:
        target.flat[name] = former
    elif function is getattr and isinstance(owner, types.CellType):
        target.cell_contents = former
    elif function is not operator.length_hint and function is not PROXY_GET:
        with contextlib.suppress(AttributeError, TypeError):
            setattr(target, str(name), former)


def _restore_class(kind: type, former: dict[str, object]) -> None:
    """Set the attributes of a class to their former values."""
    for name in set(vars(kind)) - set(former):
        delattr(kind, name)
    for name, value in former.items():
        if vars(kind).get(name) is not value:
            setattr(kind, name, value)


def _restore_container(value: Any, former: Any) -> None:
    same = len(value) == len(former) and all(map(operator.is_, value, former))
    if isinstance(value, dict):
        same = same and all(map(operator.is_, value.values(), former.values()))
    if same:
        return
    value.clear()
    (value.extend if isinstance(value, list | collections.deque) else value.update)(former)
