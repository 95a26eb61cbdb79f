"""Binarization of 8-bit pixels."""

from collections.abc import Callable
from typing import Annotated, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import ArgumentError, Instance, checked
from pyro_vae.data.rows import Index

Pixels: TypeAlias = Annotated[Tensor, Instance((Tensor,), "a uint8 tensor")]
Generator: TypeAlias = Annotated[
    torch.Generator,
    Instance(
        (torch.Generator,),
        "a torch.Generator",
        hint="for example, torch.Generator().manual_seed(0)",
    ),
]
BINARIZATIONS = ("dynamic", "static", "threshold", "none")


@checked
def bernoulli(pixels: Pixels, generator: Generator) -> Tensor:
    """Draw 0 or 1 with P(1) = pixel/255 for 8-bit pixels of any shape.

    Four pixels share one random 64-bit word. Each 16-bit quarter of it is compared with
    257 * pixel. This gives P(1) = pixel/255 * (1 - 2^-16) and is several times faster than
    `torch.bernoulli`.

    Raises:
        ArgumentError: If the pixels are of another dtype.

    See also: `Dataset` with `binarization="dynamic"`.

    Args:
        pixels: Tensor of dtype uint8.
        generator: Random generator on the device of the pixels.

    Returns:
        A float32 tensor of zeros and ones, of the shape of `pixels`.

    Example:
        >>> import torch
        >>> import pyro_vae as pv
        >>> pixels = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
        >>> draw = pv.data.bernoulli(pixels, torch.Generator().manual_seed(0))
        >>> draw.shape, draw.dtype, draw[0, 0].item()
        (torch.Size([1, 3]), torch.float32, 0.0)
    """
    if pixels.dtype != torch.uint8:
        raise ArgumentError(f"pixels must be a uint8 tensor, got {pixels.dtype}")
    return drawn(pixels, generator)


def drawn(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the draws of `bernoulli`."""
    count = pixels.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=pixels.device)
    # Without bounds, random_ never sets the sign bit of an int64.
    words.random_(-(2**63), None, generator=generator)
    quarters = words.view(torch.int16)[:count].view(pixels.shape)
    # 257 * pixel - 2^15 fits into 16 bits. The product wraps around to the correct value.
    return _compare(torch.lt, quarters, pixels.to(torch.int16).mul_(257).add_(-(2**15)))


def threshold(pixels: Tensor) -> Tensor:
    """Return 1.0 for pixels from 128 on, and 0.0 for the others."""
    return _compare(torch.ge, pixels, 128)


def fixed_draw(pixels: Tensor, seed: int) -> Tensor:
    """Return one Bernoulli draw of all pixels, as bools, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    chunks = [drawn(chunk, generator).bool() for chunk in pixels.cpu().split(4096)]
    return torch.cat(chunks).to(pixels.device)


def fixed_draw_of_rows(pixels: Tensor, places: range, index: Index, seed: int) -> Tensor:
    """Return one Bernoulli draw of some rows, each with a seed of its place.

    Rows that are not in memory can then be drawn again instead of being stored.

    Args:
        pixels: Rows at the index.
        places: Places of all rows.
        index: Index into the places.
        seed: Random seed.
    """
    numbers = places[index] if isinstance(index, int | slice) else index.tolist()
    numbers, rows = ([numbers], [pixels]) if isinstance(numbers, int) else (numbers, pixels)
    generator = torch.Generator()
    draws = []
    for number, row in zip(numbers, rows, strict=False):
        row_seed = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
        draws.append(drawn(row.cpu(), generator.manual_seed(int(row_seed[0]))))
    return torch.stack(draws).view(pixels.shape).to(pixels.device)


def _compare(compare: Callable[..., Tensor], one: Tensor, other: Tensor | int) -> Tensor:
    """Return 1.0 if a comparison holds, else 0.0. Faster than a conversion of bools."""
    return compare(one, other, out=torch.empty(one.shape, device=one.device))
