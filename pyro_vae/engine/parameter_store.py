"""The entries of Pyro's parameter store that programs read."""

import contextlib
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any

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
        recorder = store._params = _Recorder(table)
        try:
            yield
        finally:
            self._names |= dict.fromkeys(recorder.names)
            self._all |= recorder.all
            entries = recorder.copy()
            if store._params is recorder:
                table.clear()
                table.update(entries)
                store._params = table
            read = entries if recorder.all else recorder.names
            self._held += [entries[name] for name in read if name in entries]


class _Recorder(dict[str, Tensor]):
    """The table of the store, which notes how it is read."""

    def __init__(self, table: dict[str, Tensor]) -> None:
        super().__init__(table)
        self.names: set[Any] = set()
        self.all = False

    def __getitem__(self, name: str) -> Tensor:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.names.add(name)
        return super().pop(name, *default)

    def __iter__(self) -> Iterator[str]:
        self.all = True
        return super().__iter__()

    def __len__(self) -> int:
        self.all = True
        return super().__len__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        self.all = True
        return super().keys()

    def values(self) -> ValuesView[Tensor]:  # type: ignore[override]
        self.all = True
        return super().values()

    def items(self) -> ItemsView[str, Tensor]:  # type: ignore[override]
        self.all = True
        return super().items()

    def copy(self) -> dict[str, Tensor]:
        self.all = True
        return super().copy()
