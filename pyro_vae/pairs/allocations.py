"""Memory that a computation allocates, measured on a few data.

The allocator of the CPU does not count. A dispatch mode of torch sees every tensor that is created,
in forward and backward passes. Scratch memory within an operation is not included.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.runtime.random_state import preserved_state

# The two numbers of data of a measurement. A single datum may broadcast, and is avoided.
FEW, MORE = 2, 4


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors created in its context.

    Attributes:
        live: Bytes of the tensors that still exist, after each allocation.
        total: Bytes of all tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: list[int] = []
        self.total = self._now = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run an operation and count the memory of its results."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.layout is torch.strided:
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return

        def release(_: object) -> None:
            del self._storages[key]
            self._now -= size

        self._storages[key] = weakref.ref(storage, release)
        self._now += size
        self.total += size
        self.live.append(self._now)


def allocations(work: Callable[[int], object], num_data: int) -> Allocations:
    """Run `work` on a number of data and count what it allocates. Random states are restored."""
    with preserved_state(), Allocations() as counted:
        work(num_data)
    return counted


def extrapolated_peak(few: Allocations, more: Allocations, num_data: int) -> float:
    """Return the largest memory in use, in bytes, for a number of data.

    Args:
        few: Allocations for `FEW` data.
        more: Allocations for `MORE` data.
        num_data: Number of data.
    """
    if len(few.live) != len(more.live):  # the operations depend on the data
        return max(more.live, default=0) * num_data / MORE
    times = (num_data - FEW) / (MORE - FEW)
    return max((a + (b - a) * times for a, b in zip(few.live, more.live, strict=True)), default=0)


def bytes_per_datum(work: Callable[[int], object]) -> float:
    """Return the bytes that a further datum adds to the memory in use.

    Both runs perform the same operations, so they are compared allocation by allocation. The
    result is the largest difference.

    Args:
        work: Function of a number of data, 2 or 4.
    """
    few, more = (allocations(work, number).live for number in (FEW, MORE))
    if len(few) != len(more):  # the operations depend on the data
        return max(more, default=0) / MORE
    return max((b - a for a, b in zip(few, more, strict=True)), default=0) / (MORE - FEW)
