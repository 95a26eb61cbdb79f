"""The identity of a run: the settings, constants and code that its programs can read.

A run is resumed only if its identity is the same. The walk starts at model, guide and objective. It
visits constructor arguments of parts, attributes of modules and objects, closures, and the globals
that a function names. Parameters and buffers are not visited, because checkpoints contain them.
"""

import argparse
import dataclasses
import types
import warnings
import weakref
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from pyro_vae.arguments import setting
from pyro_vae.checkpointing.descriptions import (
    ATOMS,
    SAMPLED,
    attributes_of,
    functions_of,
    hash_of_array,
    hash_of_code,
    is_from_library,
    is_known,
    is_library,
    names_in,
    sha256,
    text_of,
)
from pyro_vae.checkpointing.fingerprint import OBJECTIVE_STATE
from pyro_vae.data.callables import callable_parts, closure_of
from pyro_vae.part import PACKAGE, Part
from pyro_vae.runtime.files import CheckpointError, JSONObject
from pyro_vae.runtime.versions import versions

MAX_ENTRIES, MAX_OBJECTS = 5000, 20_000
SHOWN = 80  # characters of a value; longer ones are hashed
# An attribute or a key, and the keys next to it. It counts if the code of the programs names it.
Name: TypeAlias = tuple[str, frozenset[str]]
Names: TypeAlias = tuple[Name, ...]
CODE = " (code)"  # end of the path of a function's code

_SKIPPED = types.ModuleType | weakref.ref
_PLUMBING = set(vars(nn.Module())) | {"build_arguments", "_pyro_params", *OBJECTIVE_STATE}


@dataclasses.dataclass
class Identity:
    """What the programs of a run read, by path.

    Args:
        roots: Programs by name.
        data: Hashes of samples of the data by name.
    """

    roots: Mapping[str, object]
    data: Mapping[str, str | None]

    def __post_init__(self) -> None:
        self._start = _Walk(self.roots)
        self._start.entries |= {name: repr(value) for name, value in self.data.items()}
        self._is_compared = False

    def saved(self) -> JSONObject:
        """Return the identity at the start of the run, and the paths that changed since then."""
        self._is_compared = True  # its own checkpoints need no comparison
        start, now = self._start, _Walk(self.roots)
        data = {name: start.entries[name] for name in self.data}
        entries = _differing(start.entries, now.entries | data)
        return {
            "entries": start.entries,
            "library": start.library,
            "varying": {
                "entries": entries,
                "library": _differing(start.library, now.library),
            },
        }

    def compare(self, then: JSONObject | None, libraries: Mapping[str, str]) -> None:
        """Compare with the identity in a checkpoint; None in a checkpoint of an older version.

        Args:
            then: Result of `saved` of the earlier run.
            libraries: Versions of Python and the libraries in the earlier run.

        Raises:
            CheckpointError: If the identities differ. The message names the differences.

        Warns:
            UserWarning: If a part of the programs cannot be compared.
        """
        if self._is_compared:
            return
        self._is_compared = True
        if then is None:
            return
        is_same_version = dict(libraries) == versions()
        varying = {kind: set(paths) for kind, paths in then["varying"].items()}
        found = []
        for kind, is_strict in (("entries", is_same_version), ("library", False)):
            old, new = then[kind], getattr(self._start, kind)
            for path in _differing(old, new):
                both = path in old and path in new
                is_code = path.endswith(CODE)
                if (
                    path in varying[kind]
                    or not (both or (is_strict and path not in self.data))
                    or (is_code and not is_same_version)
                ):
                    continue
                found.append(_described(path, old.get(path), new.get(path)))
        found = list(dict.fromkeys(found))
        if found:
            more = f"; and {len(found) - 5} more differences" if len(found) > 5 else ""
            raise CheckpointError(
                f"the run cannot be resumed with other programs: {'; '.join(found[:5])}{more}. "
                "Resume it with the same programs, or start another run in another folder "
                f"({setting('out')})"
            )
        unknown = sorted({*self._start.unknown, *varying["entries"]})
        if unknown:
            more = ", ..." if len(unknown) > 5 else ""
            warnings.warn(
                "a resumed run cannot compare or restore all that its programs read: "
                f"{', '.join(unknown[:5])}{more}. If they differ, it is not equal bit for bit",
                stacklevel=8,  # the caller of `fit`
            )


def code_of(kind: type) -> str:
    """Return the name of a class, with a hash of its code unless a library defines it."""
    walk = _Walk({"": kind})
    code = [value for path, value in sorted(walk.entries.items()) if path.endswith(CODE)]
    return kind.__qualname__ + (f" {sha256(''.join(code).encode())}" if code else "")


class _Walk:
    """The values that some objects can read.

    Attributes:
        entries: Values by path.
        library: Values of objects that libraries define. Caches may be among them, so that only
            paths in both runs are compared.
        unknown: Paths of values without a description.
    """

    def __init__(self, roots: Mapping[str, object]) -> None:
        self.entries: dict[str, str] = {}
        self.library: dict[str, str] = {}
        self.unknown: set[str] = set()
        self._names: dict[str, Names] = {}
        self._used: set[str] = set()
        self._seen: set[int] = set()
        self._kept: list[object] = []  # an address is not reused while its object is held
        self._queue: deque[tuple[str, object, Names, bool]] = deque()
        self._queue.extend((name, root, (), False) for name, root in roots.items())
        while self._queue:
            if len(self._seen) > MAX_OBJECTS or len(self._names) > MAX_ENTRIES:
                self.unknown.add(f"{self._queue[0][0]}, ...")
                break
            self._visit(*self._queue.popleft())
        unread = {path for path, names in self._names.items() if not self._is_used(names)}
        for found in (self.entries, self.library):
            for path in unread & found.keys():
                del found[path]
        self.unknown -= unread

    def _is_used(self, names: Names) -> bool:
        """Return whether the code of the programs names these attributes and keys."""
        if "__dict__" in self._used or "vars" in self._used:
            return True
        return all(name in self._used or (near and not near & self._used) for name, near in names)

    def _put(self, path: str, value: str, names: Names, library: bool) -> None:
        target = self.library if library else self.entries
        target.setdefault(path, value if len(value) <= SHOWN else f"hash {sha256(value.encode())}")
        self._names.setdefault(path, names)

    def _put_unknown(self, path: str, names: Names) -> None:
        self.unknown.add(path)
        self._names.setdefault(path, names)

    def _visit(self, path: str, value: object, names: Names, library: bool) -> None:
        if isinstance(value, ATOMS):
            return self._put(path, text_of(value), names, library)
        if id(value) in self._seen or isinstance(value, _SKIPPED):
            return None
        self._seen.add(id(value))
        self._kept.append(value)
        if isinstance(value, Tensor | np.ndarray):
            if not (isinstance(value, Tensor) and value.requires_grad):
                self._put(path, hash_of_array(value), names, library)
            return None
        if isinstance(value, list | tuple | dict | set | frozenset):
            return self._container(path, value, names, library)
        if isinstance(value, type):
            return self._class(path, value, names)
        if (parts := callable_parts(value)) is not None:
            for name, part in parts:
                self._queue.append((f"{path}{name}", part, names, library))
            return None
        if isinstance(value, types.FunctionType):
            return self._function(path, value, names)
        if isinstance(value, types.BuiltinFunctionType | np.ufunc):
            name = getattr(value, "__qualname__", None) or value.__name__
            return self._put(path, name, names, library)
        return self._object(path, value, names, library)

    def _container(self, path: str, value: Any, names: Names, library: bool) -> None:
        entries = list(value.values() if isinstance(value, dict) else value)
        is_plain = all(isinstance(entry, ATOMS) for entry in entries)
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            near = frozenset(value)
            for key, entry in value.items():
                self._queue.append((f"{path}.{key}", entry, (*names, (key, near)), library))
        elif isinstance(value, dict):
            self._put(path, f"dict of {len(value)} entries", names, library)
            for key, entry in value.items():
                self._queue.append((f"{path}[{text_of(key)}]", entry, names, library))
        elif isinstance(value, set | frozenset):
            if is_plain:
                self._put(path, f"{{{', '.join(sorted(map(text_of, entries)))}}}", names, library)
            else:
                self._put_unknown(path, names)
        elif is_plain:
            sample = entries[:: max(1, len(entries) // SAMPLED)]
            self._put(path, f"[{', '.join(map(text_of, sample))}]", names, library)
        else:
            self._put(path, f"list of {len(value)} entries", names, library)
            for i, entry in enumerate(value):
                self._queue.append((f"{path}[{i}]", entry, names, library))

    def _function(self, path: str, function: types.FunctionType, names: Names) -> None:
        if is_known(function):
            self._put(path, f"{function.__module__}.{function.__qualname__}", names, True)
        else:
            self._put(
                f"{path}{CODE}", hash_of_code(function.__code__, function.__doc__), names, False
            )
            # What a constructor reads has its effect on attributes and shapes.
            is_constructor = function.__name__ == "__init__"
            used = set() if is_constructor else set(names_in(function.__code__))
            self._used |= used
            for name in sorted(used & function.__globals__.keys()):
                self._global(f"{function.__module__}.{name}", function.__globals__[name], used)
        for name, value in closure_of(function):
            self._queue.append((f"{path}.{name}", value, names, False))
        for name in ("__defaults__", "__kwdefaults__", "__wrapped__"):
            if (more := getattr(function, name, None)) is not None:
                self._queue.append((f"{path}.{name.strip('_')}", more, names, False))

    def _global(self, path: str, value: object, used: set[str]) -> None:
        if not isinstance(value, types.ModuleType):
            self._queue.append((path, value, (), False))
        elif not is_library(value.__name__) and value.__name__.partition(".")[0] != PACKAGE:
            for name in sorted(used & vars(value).keys()):  # such as settings.beta
                self._queue.append((f"{value.__name__}.{name}", getattr(value, name), (), False))

    def _class(
        self, path: str, kind: type, names: Names, hidden: Collection[str] = frozenset()
    ) -> None:
        """Visit the functions and settings of a class, except for settings that are hidden."""
        for parent in kind.__mro__:
            if is_known(parent):
                continue
            self._seen.add(id(parent))
            for name, value in list(vars(parent).items()):
                functions = functions_of(value)
                for function in functions:
                    self._queue.append((f"{path}.{name}", function, names, False))
                is_setting = not name.startswith("__") and name != "class_name" and not functions
                is_setting = is_setting and name not in hidden  # by attributes of the instance
                if is_setting and isinstance(value, ATOMS | list | tuple | Tensor):
                    near: Name = (name, frozenset())
                    self._queue.append((f"{path}.{name}", value, (*names, near), False))

    def _object(self, path: str, value: object, names: Names, library: bool) -> None:
        kind, held = type(value), attributes_of(value)
        is_users = not is_known(kind)
        if held is None:
            if is_users or not library:
                self._put_unknown(f"{path} ({kind.__name__})", names)
            return
        library = library and not is_users
        self._put(f"{path}.class", kind.__qualname__, names, library)
        if is_users and id(kind) not in self._seen:
            self._class(path, kind, names, held.keys())
        if isinstance(value, Part):
            for name, argument in value.build_arguments.items():
                self._queue.append((f"{path}.{name}", argument, names, False))
        # Attributes that the user's code reads. Others, such as a number of epochs, do not count.
        is_setting = is_users or isinstance(value, types.SimpleNamespace | argparse.Namespace)
        only_plain = is_from_library(kind) and isinstance(value, nn.Module)
        for name, child in held.items():
            if name in _PLUMBING or (only_plain and not isinstance(child, ATOMS)):
                continue
            more: Names = ((name, frozenset()),) if is_setting else ()
            inside = library or not is_setting
            self._queue.append((f"{path}.{name}", child, (*names, *more), inside))
        if isinstance(value, nn.Module):
            for name, child in vars(value)["_modules"].items():
                self._queue.append((f"{path}.{name}", child, names, library or not is_users))


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [path for path in {**old, **new} if old.get(path) != new.get(path)]


def _described(path: str, old: str | None, new: str | None) -> str:
    if path.endswith(CODE):
        return f"the code of {path.removesuffix(CODE)} differs"
    return f"{path} was {old or 'not set'} and is {new or 'not set'}"
