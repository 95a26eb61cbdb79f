"""Collective operations over the processes of one `torchrun` group.

    torchrun --nproc-per-node 2 examples/mnist_svi.py

A process started by `torchrun` joins its group on the first call of any function here. In any other
process the world size is 1 and nothing is communicated. Collective operations (those that gather,
broadcast or average, and therefore `fit`, `evaluate` and `from_pyro_svi`) must be called by every
process of the group.
"""

import atexit
import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "DistributedError",
    "average",
    "check_same",
    "copy_from_first",
    "distribute",
    "from_first",
    "gather",
    "is_first",
    "own_device",
    "own_rows",
    "rank",
    "was_restarted",
    "world_size",
]

T = TypeVar("T")
R = TypeVar("R")


class DistributedError(RuntimeError):
    """The processes of a group differ in their arguments or data. The message names the difference.

    Example:
        >>> import pyro_vae as pv
        >>> issubclass(pv.DistributedError, RuntimeError)
        True

    See also: `check_same`, which raises it; `fit`.
    """


def world_size() -> int:
    """Return the number of processes in the group, 1 without `torchrun`.

    Example:
        >>> import pyro_vae as pv
        >>> pv.distributed.world_size()
        1

    See also: `rank`, `is_first`.
    """
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Return the rank of this process, from 0 to `world_size() - 1`.

    Example:
        >>> import pyro_vae as pv
        >>> pv.distributed.rank()
        0

    See also: `world_size`, `is_first`.
    """
    return dist.get_rank() if _joined() else 0


def is_first() -> bool:
    """Return whether this process has rank 0. This process writes files and shows progress.

    Example:
        >>> import pyro_vae as pv
        >>> pv.distributed.is_first()
        True

    See also: `rank`, `from_first`.
    """
    return rank() == 0


def was_restarted() -> bool:
    """Return whether `torchrun` has restarted the group after losing a process.

    Example:
        >>> import pyro_vae as pv
        >>> pv.distributed.was_restarted()
        False

    See also: `world_size`.
    """
    return world_size() > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process.

    Args:
        device: Requested device. For `"cuda"` without an index, each process of a machine gets
            another GPU. Other devices are returned unchanged.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> pv.distributed.own_device(torch.device("cpu"))
        device(type='cpu')

    See also: `resolve_device`.
    """
    if world_size() == 1 or device.type != "cuda" or device.index is not None:
        return device
    local = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(local)  # collective operations on objects use the current device
    return local


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks.

    Args:
        value: Object that can be pickled.

    Example:
        >>> import pyro_vae as pv
        >>> pv.distributed.gather({"loss": 1.0})
        [{'loss': 1.0}]

    See also: `from_first`, `distribute`.
    """
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return cast(list[T], values)


def from_first(make: Callable[[], T]) -> T:
    """Call a function in the process of rank 0, and return its result in every process.

    Args:
        make: Function without arguments. Its result must be picklable.

    Returns:
        The result of the function, the same in every process.

    Raises:
        Exception: The exception of the function, in every process.

    Example:
        >>> import pyro_vae as pv
        >>> pv.distributed.from_first(lambda: "run-1")
        'run-1'

    See also: `is_first`, `copy_from_first`.
    """
    if world_size() == 1:
        return make()
    outcome: list[object] = [None, None]
    if is_first():
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return cast(T, outcome[0])


def distribute(items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
    """Apply a function to items, with the work divided among the processes.

    Args:
        items: Items to work on, the same in every process. Each is given to one process in turn.
        work: Function of one item. Its results must be picklable.

    Yields:
        The results for all items, in order, in every process.

    Example:
        >>> import pyro_vae as pv
        >>> list(pv.distributed.distribute([1, 2, 3], lambda item: item**2))
        [1, 4, 9]

    See also: `gather`, `own_rows`.
    """
    remaining = iter(items)
    while group := list(itertools.islice(remaining, world_size())):
        result = work(group[rank()]) if rank() < len(group) else None
        yield from cast(list[R], gather(result)[: len(group)])


def check_same(what: str, value: Mapping[str, object]) -> None:
    """Check that all processes have the same value.

    Args:
        what: Noun for the value, in the error message.
        value: Settings by name.

    Raises:
        DistributedError: If an entry differs between two processes.

    Example:
        >>> import pyro_vae as pv
        >>> pv.distributed.check_same("settings", {"epochs": 3})

    See also: `DistributedError`.
    """
    for number, other in enumerate(gather(value)):
        for key in value.keys() | other.keys():
            if value.get(key) != other.get(key):
                raise DistributedError(
                    f"the processes have different {what}: {key} is {value.get(key)!r} in process "
                    f"{rank()} and {other.get(key)!r} in process {number}. Start all of them with "
                    "the same command"
                )


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy tensors from the process of rank 0 into those of every process, in-place.

    Args:
        tensors: Tensors with the same shapes, in the same order in every process.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> pv.distributed.copy_from_first([torch.zeros(2)])

    See also: `from_first`, for objects; `average`, for gradients.
    """
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def own_rows(batch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], float]:
    """Return this process's rows of a minibatch, and their share of it.

    Args:
        batch: Tensors with one row per datum, the same in every process.

    Returns:
        The rows, and their number divided by the size of the minibatch. If there are fewer rows
        than processes, some processes get the first row with a share of 0.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> (x,), share = pv.distributed.own_rows((torch.zeros(8, 2),))
        >>> x.shape, share
        (torch.Size([8, 2]), 1.0)

    See also: `average`, which takes the share.
    """
    if world_size() == 1:
        return batch, 1.0
    rows = torch.arange(len(batch[0]), device=batch[0].device).tensor_split(world_size())[rank()]
    share = len(rows) / len(batch[0])
    if not len(rows):
        rows = rows.new_zeros(1)
    return tuple(part.index_select(0, rows) for part in batch), share


def average(
    values: tuple[float, ...], parameters: Iterable[Tensor], share: float
) -> tuple[float, ...]:
    """Average numbers and gradients over the processes, weighted by shares, in one all-reduce.

    With shares of a minibatch as weights, means over each process's rows become the mean over the
    minibatch. A parameter without a gradient in a process counts with a gradient of zero there.
    This is the only function here that needs a process group.

    Args:
        values: Losses of this process.
        parameters: Parameters in the same order in every process. Their `grad` is replaced.
        share: Weight of this process. The weights sum to 1.

    Returns:
        The averaged values.

    Example:
        >>> import torch
        >>> import torch.distributed as dist
        >>> import pyro_vae as pv
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> pv.distributed.average((2.0,), [torch.zeros(3)], share=1.0)
        (2.0,)
        >>> dist.destroy_process_group()

    See also: `own_rows`, which returns the share.
    """
    parameters = list(parameters)
    kind = torch.float32
    for parameter in parameters:
        kind = torch.promote_types(kind, parameter.dtype)
    device = parameters[0].device if parameters else torch.device("cpu")
    head = torch.tensor([*values], dtype=kind)
    has = torch.tensor([float(p.grad is not None) for p in parameters], dtype=kind)
    gradients = [
        p.new_zeros(p.numel(), dtype=kind) if p.grad is None else p.grad.reshape(-1).to(kind)
        for p in parameters
    ]
    flat = torch.cat([head.to(device), has.to(device), *gradients]).mul_(share)
    dist.all_reduce(flat)
    head, has, body = flat.split([len(values), len(parameters), len(flat) - len(values) - len(has)])
    pieces = body.split([p.numel() for p in parameters])
    for parameter, there, piece in zip(parameters, has.tolist(), pieces, strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype) if there else None
    return tuple(head.tolist())


def _joined() -> bool:
    """Return whether this process is in a group. Join the group of `torchrun` on the first call."""
    if not dist.is_available():
        return False
    if not dist.is_initialized() and dist.is_torchelastic_launched():
        # The functions of this module take the current group as the value of a default argument.
        # torch's compiler imports the module, and so does any optimizer. Import it before there is
        # a group: it would keep a reference to the group and its threads.
        importlib.import_module("torch.distributed.nn.functional")
        # torchrun gives every group that it starts the same store, with the addresses of lost
        # processes. A prefix per group separates them.
        store, number, size = next(dist.rendezvous("env://"))
        group = f"{os.environ['TORCHELASTIC_RESTART_COUNT']}/{size}"
        dist.init_process_group(store=dist.PrefixStore(group, store), rank=number, world_size=size)
        # gloo's threads may hold the last reference to a tensor. If a thread releases it while the
        # interpreter shuts down, the process aborts. End the threads before that.
        atexit.register(dist.destroy_process_group)
    return dist.is_initialized()
