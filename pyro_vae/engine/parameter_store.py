"""The entries of Pyro's parameter store that programs read."""

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import cast

import pyro
from torch import Tensor


class StoreReads:
    """What compiled programs depend on in Pyro's parameter store.

    These are the entries that they look up by name; those of other programs may come and go. A
    program that lists or counts the entries, for example for a penalty on all parameters, depends
    on all of them.
    """

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._all = False
        self._held: list[Tensor] = []  # so that no new tensor has the identity of one that was read

    def key(self) -> tuple[object, ...]:
        """Return the identities of the entries that the programs read."""
        table = pyro.get_param_store()._params
        if self._all:
            return tuple([(name, id(entry)) for name, entry in table.items()])
        return tuple([id(table.get(name)) for name in self._names])

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what programs read from the store in this context."""
        store = pyro.get_param_store()
        table = store._params
        recorder = _Recorder(table)
        store._params = cast("dict[str, Tensor]", recorder)
        try:
            yield
        finally:
            if store._params is recorder:
                store._params = table
            self._names |= dict.fromkeys(recorder.names)
            self._all |= recorder.all
            read = table if recorder.all else recorder.names
            self._held += [table[name] for name in read if name in table]


class _Recorder(MutableMapping[str, Tensor]):
    """The table of the store, which notes how it is read."""

    def __init__(self, table: dict[str, Tensor]) -> None:
        self._table = table
        self.names: set[str] = set()
        self.all = False

    def __getitem__(self, name: str) -> Tensor:
        self.names.add(name)
        return self._table[name]

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        self.all = True
        return iter(self._table)

    def __len__(self) -> int:
        self.all = True
        return len(self._table)

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._table[name] = value

    def __delitem__(self, name: str) -> None:
        self.names.add(name)
        del self._table[name]

    def copy(self) -> dict[str, Tensor]:
        return dict(self)
