"""The arguments and settings of a step that select a compiled program."""

from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.modules import module
from torch.overrides import _get_current_function_mode_stack

from pyro_vae.engine.compiled_step import CompiledStep
from pyro_vae.engine.guards import GuardKey
from pyro_vae.engine.step import Arguments, Keywords, StepProtocol

# Hooks that torch calls for every module. They are registered at any time.
HOOKS_OF_ALL_MODULES = (
    module._global_forward_hooks,
    module._global_forward_pre_hooks,
    module._global_backward_hooks,
    module._global_backward_pre_hooks,
)


class Signature(NamedTuple):
    """Everything that selects a compiled program; hashable.

    Attributes:
        fixed: Arguments that are not tensors, from `split`.
        shapes: Shape, dtype, device, strides and `requires_grad` of each tensor argument.
        watched: Dtype, `requires_grad` and gradient hooks of each tensor that a graph uses.
        stored: Identities of the entries of Pyro's parameter store that the programs read.
        settings: Global settings, and whether several processes take the step together.
        guards: Python values that the programs can read.
    """

    fixed: object
    shapes: tuple[object, ...]
    watched: tuple[object, ...]
    stored: tuple[object, ...]
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

    @property
    def kinds(self) -> tuple[object, tuple[object, ...]]:
        """The other arguments, and what a program depends on in the tensors; hashable."""
        return self.fixed, tuple(
            [(x.shape, x.dtype, x.device, x.stride(), x.requires_grad) for x in self.inputs]
        )


class LastStep(NamedTuple):
    """A compiled step that was not compared. The next one can repeat it if nothing else has run.

    Attributes:
        program: Program that took it.
        inputs: What the program depends on in the arguments, from `Call.kinds`.
        remaining: Number of further steps before everything is read again.
    """

    program: CompiledStep
    inputs: object
    remaining: int


def signature_of(
    call: Call,
    watched: list[Tensor],
    stored: tuple[object, ...],
    svi: StepProtocol,
    guards: GuardKey,
) -> Signature:
    """Return everything that selects the compiled program of a call."""
    return Signature(
        *call.kinds,
        tuple([(x.requires_grad, x.dtype, gradient_hooks(x)) for x in watched]),
        stored,
        (
            len(svi.trained),
            torch.get_default_dtype(),
            dist.is_validation_enabled(),
            *map(_autocast, ("cpu", "cuda")),
            *map(tuple, HOOKS_OF_ALL_MODULES),
            tuple(map(_mode, _get_current_function_mode_stack())),
            call.share is None,
        ),
        guards,
    )


def gradient_hooks(tensor: Tensor) -> tuple[int, ...] | None:
    """Return the identities of the hooks on the gradient of a tensor; None if there are none."""
    hooks, later = tensor._backward_hooks, tensor._post_accumulate_grad_hooks
    if not hooks and not later:
        return None
    return (*map(id, (hooks or {}).values()), *map(id, (later or {}).values()))


def _autocast(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _mode(mode: object) -> tuple[object, ...]:
    """Return what distinguishes a function mode, such as a default device."""
    return type(mode), getattr(mode, "device", None)
