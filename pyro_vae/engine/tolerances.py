"""Numeric tolerances of the engine, and the comparison that uses them."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.engine.step import Precision
from pyro_vae.engine.value_reader import NotCompilable

# Relative difference allowed between an eager and a compiled step, by the parameters' dtype. Both
# compute the same terms, but compiled code adds them in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
LOW_PRECISION_TOLERANCE = 1e-2  # parameters of any other dtype
BF16_TOLERANCE = 0.05  # layers in bfloat16, which has 8 significant bits
# Differences are relative to the largest entry of a tensor. Entries that are zero but for rounding
# are compared with this share of the largest entry of all tensors of the list.
FLOOR = 1e-2


class Pair(NamedTuple):
    """Two computations of a step.

    Attributes:
        finding: What a difference of the two means, for the message.
        share: Rounding errors explain differences up to this share of the largest entry; None for
            any, and 0 if they are not measured.
    """

    finding: str
    share: float | None


# Both differences below at once: if it is small, nothing is measured.
DIRECT = Pair("of the compiled and of the eager step differ by {:.3g}", 0)
# The graph has the operations of the program, so that even rounding is nearly the same.
PROGRAM = Pair(
    "of the graph and of the program differ by {:.3g}: the program depends on something that the "
    "graph does not see",
    FLOOR,
)
# Compiled code adds in another order. A ReLU whose input is almost zero then changes sides for a
# datum, which can open or close a unit: there is no largest share.
COMPILED = Pair(
    "of the compiled code and of its graph differ by {:.3g}: the compiler gives other numbers", None
)


def tolerance_of(parameters: Iterable[Tensor], precision: Precision) -> float:
    """Return the tolerance for comparing steps of these parameters."""
    if precision == "bf16":
        return BF16_TOLERANCE
    tolerances = (TOLERANCE.get(p.dtype, LOW_PRECISION_TOLERANCE) for p in parameters)
    return max(tolerances, default=TOLERANCE[torch.float32])


def rounding_unit(tolerance: float) -> float:
    """Return the relative error of a few roundings in a step compared with this tolerance."""
    return 2.0**-8 if tolerance >= LOW_PRECISION_TOLERANCE else 2.0**-20


def largest(tensors: Iterable[Tensor]) -> float:
    """Return the largest absolute entry of all tensors, zero if there is none."""
    return max(map(_largest, tensors), default=0.0)


def _largest(tensor: Tensor) -> float:
    """Return the largest absolute entry, in one pass without a copy; NaN if an entry is NaN."""
    if not tensor.numel():
        return 0.0
    tensor = tensor.detach()
    low, high = torch.aminmax(tensor.abs() if tensor.is_complex() else tensor)
    return max(-float(low), float(high))


def check_close(
    what: str,
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    tolerance: float,
    scale: float | None = None,
    rounding: Callable[[], Sequence[Tensor]] | None = None,
    pair: Pair = PROGRAM,
) -> None:
    """Compare two lists of tensors, each pair relative to its largest expected entry.

    Entries that are NaN in both, such as missing values of x, are equal. An entry that is a sum of
    large terms, such as the gradient of a bias before batch normalization, which is zero, can
    differ by more than the tolerance. The difference is then compared with measured rounding
    errors, up to a share of the largest entry of all tensors.

    Args:
        what: Name of the values, for the message.
        actual: Values of the first computation of the pair.
        expected: Values of the other.
        tolerance: Relative tolerance.
        scale: Size of values that rounding errors are relative to, if it is larger than a tensor's
            largest entry; by default `FLOOR` times the largest entry of all tensors.
        rounding: Function that measures the rounding errors of each value, or returns an empty
            list. It is called only if a difference is larger than the tolerance.
        pair: The two computations.

    Raises:
        NotCompilable: If a pair differs by more than `tolerance`.
    """
    sizes = [_largest(b) for b in expected]
    missing = [math.isnan(size) for size in sizes]
    for i, b in enumerate(expected):
        sizes[i] = _largest(b.masked_fill(b.isnan(), 0)) if missing[i] else sizes[i]
    size_of_all = max(sizes, default=0.0)
    scale = FLOOR * size_of_all if scale is None else scale
    measured: Sequence[Tensor] | None = None
    for i, (a, given, size, has_nan) in enumerate(
        zip(actual, expected, sizes, missing, strict=True)
    ):
        b = given.to(a.device)  # losses that were read are on the CPU
        if torch.equal(a, b):
            continue
        if has_nan:
            both = a.isnan() & b.isnan()
            a, b = a.masked_fill(both, 0), b.masked_fill(both, 0)
        same = a.dtype == b.dtype and b.is_floating_point()
        error = _largest(a - b if same else a.double() - b.double())
        limit = tolerance * max(scale, size)
        if not error <= limit and rounding is not None and pair.share != 0:
            measured = rounding() if measured is None else measured
            if measured:
                explained = _largest(measured[i])
                if pair.share is not None:
                    explained = min(explained, max(tolerance, pair.share) * size_of_all)
                limit = max(limit, explained)
        if not error <= limit:
            raise NotCompilable(f"{what} {pair.finding.format(error)}")
