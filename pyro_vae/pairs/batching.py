"""The arguments of a Pyro program, and parts of their data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A part of the data: arguments for the programs, and the places of its data in the whole.

    `subsample` fixes the indices of a subsampled plate. Its last batch is as large as the others
    and begins with `repeated` data of the one before it.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    indices: Tensor
    subsample: Mapping[str, Tensor] = field(default_factory=dict)
    repeated: int = 0


class Arguments:
    """Arguments of a program: its data are the tensors with as many rows as the first tensor."""

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        rows = [len(value) for value in args if isinstance(value, Tensor) and value.dim() > 0]
        self.num_rows = rows[0] if rows else 0
        self._data = {
            key
            for key, value in [*enumerate(args), *kwargs.items()]
            if isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.num_rows
        }

    def whole(self) -> Batch:
        """Return all of the data."""
        return Batch(self.args, self.kwargs, torch.arange(self.num_rows))

    def rows(self, start: int, stop: int) -> Batch:
        """Return the rows from `start` to `stop` of the data."""
        rows = self._map(self.whole(), lambda value: value[start:stop])
        return replace(rows, indices=torch.arange(start, stop))

    def repeat(self, batch: Batch, times: int) -> Batch:
        """Return a batch with its data `times` times, one after the other."""
        return self._map(batch, lambda value: value.repeat(times, *(1,) * (value.dim() - 1)))

    def _map(self, batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
        def apply(key: int | str, value: Any) -> Any:
            return change(value) if key in self._data else value

        args = tuple(apply(i, value) for i, value in enumerate(batch.args))
        kwargs = {name: apply(name, value) for name, value in batch.kwargs.items()}
        return replace(batch, args=args, kwargs=kwargs)
