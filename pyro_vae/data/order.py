"""Random order of the batches of an epoch."""

from collections.abc import Iterator

import torch
from torch import Tensor


def shuffled(
    num_data: int, generator: torch.Generator, batch_size: int, skip: int
) -> Iterator[Tensor]:
    """Return the indices of batches of all data in random order, without the first `skip`."""
    order = torch.randperm(num_data, generator=generator, device=generator.device)
    return iter(order.split(batch_size)[skip:])


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
