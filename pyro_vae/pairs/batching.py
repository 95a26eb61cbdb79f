"""Split the arguments of a Pyro program into batches of its data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

# Data, and other tensors with one row per datum.
Data: TypeAlias = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Batch:
    """A part of the data, as arguments of the programs.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        indices: Positions of the batch's data in all data.
        subsample: Indices of a subsampled plate by its name.
        repeated: Number of data at the start that the previous batch has too. The last batch of a
            subsampled plate is as large as the others.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    indices: Tensor
    subsample: Mapping[str, Tensor] = field(default_factory=dict)
    repeated: int = 0


def batch_of(data: Data) -> Batch:
    """Return data as the arguments of a program."""
    args = as_arguments(data)
    return Batch(args, {}, torch.arange(len(args[0])))


def as_arguments(data: Data) -> tuple[Tensor, ...]:
    """Return data as positional arguments."""
    return data if isinstance(data, tuple) else (data,)


class Arguments:
    """Arguments of a program. Tensors with as many rows as the first tensor hold its data."""

    def __init__(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        self.args, self.kwargs = args, kwargs
        rows = [len(value) for value in args if isinstance(value, Tensor) and value.dim() > 0]
        self.num_rows = rows[0] if rows else 0
        self._data = {
            key
            for key, value in [*enumerate(args), *kwargs.items()]
            if isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.num_rows
        }

    def all_rows(self) -> bool:
        """Return whether all tensors of the data are positional, and nothing else is."""
        positional = all(i in self._data for i in range(len(self.args)))
        return positional and not self._data & self.kwargs.keys()

    def whole(self) -> Batch:
        """Return all of the data."""
        return Batch(self.args, self.kwargs, torch.arange(self.num_rows))

    def rows(self, start: int, stop: int) -> Batch:
        """Return the rows `start:stop` of the data."""
        rows = self._map(self.whole(), lambda value: value[start:stop])
        return replace(rows, indices=torch.arange(start, stop))

    def repeat(self, batch: Batch, times: int) -> Batch:
        """Return a batch with its data repeated `times` times, in order."""
        return self._map(batch, lambda value: value.repeat(times, *(1,) * (value.dim() - 1)))

    def _map(self, batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
        def apply(key: int | str, value: object) -> object:
            return change(value) if key in self._data and isinstance(value, Tensor) else value

        args = tuple(apply(i, value) for i, value in enumerate(batch.args))
        kwargs = {name: apply(name, value) for name, value in batch.kwargs.items()}
        return replace(batch, args=args, kwargs=kwargs)
