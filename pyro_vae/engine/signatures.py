"""The arguments and settings of a step that select a compiled program."""

import operator
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.engine.guards import GuardKey
from pyro_vae.engine.step import Arguments, Keywords, StepProtocol

# Properties of a tensor that is not an argument, on which a compiled program depends.
_kind = operator.attrgetter("requires_grad", "dtype")


class Signature(NamedTuple):
    """Everything that selects a compiled program; hashable.

    Attributes:
        fixed: Arguments that are not tensors, from `split`.
        shapes: Shape, dtype, device, strides and `requires_grad` of each tensor argument.
        watched: Dtype and `requires_grad` of each tensor that a graph uses.
        stored: Identities of the parameters in Pyro's parameter store.
        settings: Global settings, and whether several processes take the step together.
        guards: Python values that the programs can read.
    """

    fixed: object
    shapes: tuple[object, ...]
    watched: tuple[object, ...]
    stored: tuple[int, ...]
    settings: tuple[object, ...]
    guards: GuardKey


class Call(NamedTuple):
    """The arguments of one step.

    Attributes:
        args: Positional arguments of model and guide.
        kwargs: Keyword arguments of model and guide.
        share: This process's share of the minibatch; None for a single process.
        inputs: Tensors among the arguments.
        fixed: The other arguments, hashable.
    """

    args: Arguments
    kwargs: Keywords
    share: float | None
    inputs: list[Tensor]
    fixed: object


def signature_of(
    call: Call, watched: list[Tensor], svi: StepProtocol, guards: GuardKey
) -> Signature:
    """Return everything that selects the compiled program of a call."""
    return Signature(
        call.fixed,
        tuple([(x.shape, x.dtype, x.device, x.stride(), x.requires_grad) for x in call.inputs]),
        tuple(map(_kind, watched)),
        tuple([id(p) for _, p in pyro.get_param_store().named_parameters()]),
        (
            len(svi.trained),
            torch.get_default_dtype(),
            dist.is_validation_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_enabled("cuda"),
            call.share is None,
        ),
        guards,
    )
