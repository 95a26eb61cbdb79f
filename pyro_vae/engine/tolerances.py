"""Numeric tolerances of the engine, and the comparison that uses them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pyro_vae.engine.capture import NotCompilable
from pyro_vae.engine.step import Precision

# Relative difference allowed between an eager and a compiled step, by the parameters' dtype. Both
# compute the same terms, but compiled code adds them in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
LOW_PRECISION_TOLERANCE = 1e-2  # parameters of any other dtype
BF16_TOLERANCE = 0.05  # layers in bfloat16, which has 8 significant bits
# Differences are relative to the largest entry, and absolute if this is below the floor.
SCALE_FLOOR = 1.0


def tolerance_of(parameters: Iterable[Tensor], precision: Precision) -> float:
    """Return the tolerance for comparing steps of these parameters."""
    if precision == "bf16":
        return BF16_TOLERANCE
    tolerances = (TOLERANCE.get(p.dtype, LOW_PRECISION_TOLERANCE) for p in parameters)
    return max(tolerances, default=TOLERANCE[torch.float32])


def check_close(
    what: str, actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float
) -> None:
    """Compare two lists of tensors, each pair relative to its largest expected entry.

    Entries that are NaN in both, such as missing values of x, are equal.

    Raises:
        NotCompilable: If a pair differs by more than `tolerance`.
    """
    for a, given in zip(actual, expected, strict=True):
        b = given.to(a.device)  # losses that were read are on the CPU
        both = a.isnan() & b.isnan()
        a, b = a.masked_fill(both, 0), b.masked_fill(both, 0)
        if b.numel() == 0 or torch.equal(a, b):
            continue
        scale = max(SCALE_FLOOR, float(b.abs().max()))
        error = float((a.double() - b.double()).abs().max())
        if not error <= tolerance * scale:
            raise NotCompilable(
                f"{what} of the graph and of the program differ by {error:.3g}: the program "
                "depends on something that the graph does not see"
            )
