"""Several processes that work as one: torch's own engine, launched by `torchrun`.

    torchrun --nproc-per-node 2 examples/mnist_svi.py

A process that torchrun started joins its group when it is first asked about it; any other is alone,
and nothing here does anything. All functions that a group calls together (those that gather or
average, and with them `fit`, `evaluate` and `from_pyro_svi`) have to be called by every process.
"""

import atexit
import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


class DistributedError(RuntimeError):
    """Processes that are to work as one do not do the same; the message names the difference."""


def world_size() -> int:
    """Return the number of processes: 1 for one that is alone."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """Return this process's number, from 0 on."""
    return dist.get_rank() if _joined() else 0


def is_first() -> bool:
    """Tell whether this is the process that writes, prints and shows progress."""
    return rank() == 0


def was_restarted() -> bool:
    """Tell whether torchrun has started the group again, after a process was lost."""
    return world_size() > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def own_device(device: torch.device) -> torch.device:
    """Return this process's device of a kind: of `"cuda"` each process of a machine has its own."""
    if world_size() == 1 or device.type != "cuda" or device.index is not None:
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(own)  # where what is gathered passes through
    return own


def gather(value: T) -> list[T]:
    """Return every process's value, which may be any object, in the order of the processes."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process, and return its result, or raise its error, in each."""
    if world_size() == 1:
        return make()
    result: list[Any] = [None, None]
    if is_first():
        try:
            result[0] = make()
        except Exception as error:
            result[1] = error
    dist.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1]
    return result[0]


def distribute(items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
    """Deal items out to the processes in turn; yield the results of all, in order, in each."""
    remaining = iter(items)
    while hand := list(itertools.islice(remaining, world_size())):
        own = work(hand[rank()]) if rank() < len(hand) else None
        yield from gather(own)[: len(hand)]  # type: ignore[misc]


def check_same(what: str, value: dict[str, Any]) -> None:
    """Raise `DistributedError`, with the difference, unless every process has the same."""
    for number, other in enumerate(gather(value)):
        for key in value.keys() | other.keys():
            if value.get(key) != other.get(key):
                raise DistributedError(
                    f"the processes have different {what}: {key} is {value.get(key)!r} in process "
                    f"{rank()} and {other.get(key)!r} in process {number}. Start all of them with "
                    "the same command"
                )


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors, in place, the values that they have in the first process."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def own_rows(batch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], float]:
    """Return this process's rows of a minibatch, and their share of it.

    Where there are fewer rows than processes, some get the first row, at a share of 0.
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
    """Average numbers and the parameters' gradients over the processes, weighted by their shares.

    With shares of a minibatch as weights, a mean over each process's rows becomes the mean over the
    minibatch. A gradient that one process alone has counts as zero in the others.

    Args:
        values: losses of this process.
        parameters: in the same order in every process; their `grad` is replaced.
        share: this process's weight; the weights sum to 1.

    Returns:
        The averaged values.
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
    """Tell whether this process is one of a group; join torchrun's on the first occasion."""
    if not dist.is_available():
        return False
    if not dist.is_initialized() and dist.is_torchelastic_launched():
        # Its functions have for a default the group that there is when torch's compiler, and with
        # it any optimizer, imports them. They would keep the group, and its threads, for ever.
        importlib.import_module("torch.distributed.nn.functional")
        # torchrun hands the same store to every group that it starts, with the addresses of the
        # processes that were lost: each group keeps its own under another prefix.
        store, number, size = next(dist.rendezvous("env://"))
        group = f"{os.environ['TORCHELASTIC_RESTART_COUNT']}/{size}"
        dist.init_process_group(store=dist.PrefixStore(group, store), rank=number, world_size=size)
        # While Python can still be entered: gloo's threads may hold the last reference to a tensor,
        # and one that lets go of it later, while Python ends, aborts the process. They end with it.
        atexit.register(dist.destroy_process_group)
    return dist.is_initialized()
