"""Random order of the batches of an epoch."""

import numbers
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae.data.errors import DataError


def shuffled(
    num_data: int, generator: torch.Generator, batch_size: int, skip: int
) -> Iterator[Tensor]:
    """Return the indices of batches of all data in random order, without the first `skip`."""
    order = torch.randperm(num_data, generator=generator, device=generator.device)
    return iter(order.split(batch_size)[skip:])


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def held_out(num_data: int, count: float, seed: int | None) -> tuple[Tensor, Tensor]:
    """Return the numbers of the remaining rows and of those to hold out, in ascending order.

    Args:
        num_data: Number of rows.
        count: Number of rows to hold out, or a share of them between 0 and 1.
        seed: Random seed of the subset; None for the last rows.

    Raises:
        DataError: If a side would be empty.
    """
    size: float = count
    if isinstance(count, numbers.Real) and 0 < count < 1:
        size = min(max(1, round(float(count) * num_data)), num_data - 1)
    whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
    if not whole or not 1 <= size < num_data:
        raise DataError(
            f"cannot hold out {count!r} of {num_data} data: expected a whole number from 1 to "
            f"{num_data - 1}, or a share between 0 and 1, such as 0.1"
        )
    order = torch.arange(num_data)
    if seed is not None:
        order = torch.randperm(num_data, generator=torch.Generator().manual_seed(seed))
    cut = num_data - int(size)
    return order[:cut].sort().values, order[cut:].sort().values
