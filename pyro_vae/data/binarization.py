"""Binarization of 8-bit pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

BINARIZATIONS = ("dynamic", "static", "threshold", "none")


def bernoulli(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw 0 or 1 with P(1) = pixel/255, as float32, for 8-bit pixels of any shape.

    Four pixels share one random word: its 16-bit quarters are compared with 257 * pixel, which
    gives P(1) = pixel/255 * (1 - 2^-16) at a fraction of the time of `torch.bernoulli`.
    """
    count = pixels.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=pixels.device)
    # Without bounds, random_ leaves the sign bit of an int64 alone.
    words.random_(-(2**63), None, generator=generator)
    quarters = words.view(torch.int16)[:count].view(pixels.shape)
    # 257 * pixel - 2^15 fits into 16 bits, and its wrapped product is the right one.
    return _where(torch.lt, quarters, pixels.to(torch.int16).mul_(257).add_(-(2**15)))


def _where(compare: Callable[..., Tensor], one: Tensor, other: Tensor | int) -> Tensor:
    """Return 1.0 where a comparison holds and 0.0 elsewhere, without a slow way over bools."""
    return compare(one, other, out=torch.empty(one.shape, device=one.device))
