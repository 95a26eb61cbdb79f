"""How much of a difference between two computations of a step is due to rounding."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pyro_vae.engine.capture import first_line, same_strides
from pyro_vae.runtime.random_state import random_state, set_random_state

log = logging.getLogger("pyro_vae")
LOW = (torch.float32, torch.bfloat16, torch.float16)
# Runs with parameters that are moved by a unit of rounding and, in turn, by this share of their
# size: a ReLU whose input is almost zero then changes sides. Each move has an opposite one.
NUM_RUNS = 8
WIDE = 2.0**-14
WIDE_ERRORS = 2
# Kernels that compute the same sum differ in their rounding by up to an order of magnitude.
ROUNDING_ERRORS = 32


class InDouble(TorchDispatchMode):
    """Computes in double precision whatever the program computes in lower precision.

    Random numbers are drawn in single precision first, so that they are those of the program.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        given: Any = (args, kwargs or {})
        in_place = func._schema.is_mutable
        if torch.Tag.nondeterministic_seeded in func.tags:
            narrow, options = tree_map(_single, given)
            drawn = func(*narrow, **options)
            return given[0][0].copy_(drawn) if in_place else tree_map(_double, drawn)
        # An operation in place keeps the dtype of its tensor.
        wide, options = given if in_place else tree_map(_double, given)
        return func(*wide, **options)


def _double(value: object) -> object:
    if isinstance(value, Tensor):
        return value.double() if value.dtype in LOW else value
    return torch.float64 if value in LOW else value


def _single(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype == torch.float64:
        return value.float()
    return value


def rounding_errors(
    step: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor],
    parameters: Collection[int],
    unit: float,
) -> list[Tensor]:
    """Return how far rounding can move each result of a step, and each tensor after it.

    The step runs once in double precision and several times in its own, with parameters that are
    moved a little: a single run can be right by chance. Two programs that are right can still have
    errors of different size, so errors are multiplied by `ROUNDING_ERRORS` or `WIDE_ERRORS`.

    Args:
        step: Function of the tensors, which it may change in place, that returns its results.
        tensors: Tensors before the step; not changed. The random state is not changed either.
        parameters: Positions of the tensors to move. For these, the error is that of the change.
        unit: Relative error of one rounding.

    Returns:
        The largest error of each entry, first of the results; zero if it is not finite. The list
        is empty if they cannot be measured, as those of parameters in double precision.
    """
    places = frozenset(parameters)
    if any(tensors[i].dtype not in LOW for i in places):
        return []
    random = random_state()
    try:
        with InDouble():
            exact = _run(step, [_double(same_strides(tensor)) for tensor in tensors], places)
        errors = [torch.zeros_like(tensor, dtype=torch.double) for tensor in exact]
        for run in range(NUM_RUNS):
            set_random_state(random)
            wide = run % 2 == 1 and unit < WIDE  # a unit of bfloat16 is wide enough
            moved = [same_strides(tensor) for tensor in tensors]
            for i in places:
                moved[i] *= 1 + (WIDE if wide else unit) * _signs(moved[i], run)
            factor = WIDE_ERRORS if wide else ROUNDING_ERRORS
            for largest, a, b in zip(errors, _run(step, moved, places), exact, strict=True):
                error = factor * (a.double() - b.double()).abs()
                torch.fmax(largest, error, out=largest)  # NaN is no error
        return errors
    except Exception as error:  # an operation that has no double precision
        log.debug("rounding errors are not known: %s", first_line(error))
        return []
    finally:
        set_random_state(random)


def _run(
    step: Callable[..., Sequence[Tensor]], tensors: list[Any], places: Collection[int]
) -> list[Tensor]:
    """Return the results of a step, and the tensors after it or, at some places, their changes."""
    before = {i: tensors[i].clone() for i in places}
    with torch.no_grad():
        results = step(*tensors)
        after = [t - before[i] if i in before else t for i, t in enumerate(tensors)]
    return [*results, *after]


def _signs(tensor: Tensor, run: int) -> Tensor:
    """Return +1 or -1 for each entry, in a fixed order that looks random.

    The signs of runs 2 and 3 of each four are the opposite of those of runs 0 and 1.
    """
    generator = torch.Generator(tensor.device).manual_seed(run // 4)
    signs = torch.randint(2, tensor.shape, generator=generator, device=tensor.device)
    return (2 * signs - 1).to(tensor.dtype) * (1 if run % 4 < 2 else -1)
