"""Run the programs of a pair without changing the pair."""

import contextlib
import copy
from collections.abc import Iterator

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.engine.guards import modules_of
from pyro_vae.pairs.pair import Program
from pyro_vae.runtime.devices import evaluating
from pyro_vae.runtime.random_state import preserved_state


@contextlib.contextmanager
def restored(*programs: object, seed: int | None = None) -> Iterator[list[nn.Module]]:
    """Restore the state of programs on exit; yield their modules.

    The first call of an `AutoGuide` creates its parameters. A call may also update buffers,
    attributes of modules, Pyro's parameter store and random states. All of these are restored.

    Args:
        programs: Models and guides: modules, functions or methods.
        seed: Random seed within the context; by default the random state is not changed.
    """
    modules = modules_of(*programs)
    states = [_State(module) for module in modules]
    with preserved_state(seed):
        try:
            yield modules
        finally:
            for state in states:
                state.restore()


@contextlib.contextmanager
def unchanged(*programs: object, seed: int | None = None) -> Iterator[None]:
    """Run programs in evaluation mode; restore their state on exit, as `restored` does."""
    with restored(*programs, seed=seed) as modules, evaluating(*modules):
        yield


class _State:
    """Attributes and buffers of a module, without those of its children."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.containers = [
            (value, copy.copy(value))
            for value in self.attributes.values()
            if isinstance(value, dict | list | set)
        ]
        buffers = list(module.buffers(recurse=False))
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]

    def restore(self) -> None:
        """Set attributes and buffers to their former values."""
        attributes = vars(self.module)
        attributes.clear()
        attributes.update(self.attributes)
        for value, former in self.containers:
            if isinstance(value, list):
                value[:] = former
            else:
                value.clear()
                value.update(former)
        for buffer, values in self.buffers:
            _restore_buffer(buffer, values)


@torch.no_grad()
def _restore_buffer(buffer: Tensor, former: Tensor) -> None:
    if not buffer.equal(former):
        buffer.copy_(former)


def create_parameters(model: Program, guide: Program, batch: tuple[Tensor, ...]) -> None:
    """Run guide and model once, so that programs that create parameters in a call have them.

    The random state is restored.
    """
    with (
        torch.no_grad(),
        torch.random.fork_rng(),
        evaluating(*modules_of(model, guide)),
        pyro.validation_enabled(False),
    ):
        guide(*batch)
        model(*batch)
