"""Run the programs of a pair without changing the pair."""

import contextlib
from collections.abc import Iterator

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.engine.guards import guarded_state, modules_of
from pyro_vae.pairs.pair import Program
from pyro_vae.runtime.devices import evaluating
from pyro_vae.runtime.random_state import preserved_state

# Elements of the largest tensor, other than a parameter, that is restored. Larger ones are data.
LARGEST = 10**6


@contextlib.contextmanager
def restored(*programs: object, seed: int | None = None) -> Iterator[list[nn.Module]]:
    """Restore the state of programs on exit; yield their modules.

    The first call of an `AutoGuide` creates its parameters. A call may also update buffers and
    other tensors, attributes of modules and other objects, variables of closures, Pyro's parameter
    store and random states. All of these are restored. Parameters and iterators are not, nor what
    hooks change, which may be there to record the calls.

    Args:
        programs: Models and guides: modules, functions or methods.
        seed: Random seed within the context; by default the random state is not changed.
    """
    state = guarded_state(*programs, hooks=False)
    parameters = {id(p) for module in state.modules for p in module.parameters(recurse=False)}
    tensors = [t for t in state.tensors if id(t) not in parameters and t.numel() <= LARGEST]
    with preserved_state(seed), state.restored(tensors):
        yield modules_of(*programs)


@contextlib.contextmanager
def unchanged(*programs: object, seed: int | None = None) -> Iterator[None]:
    """Run programs in evaluation mode; restore their state on exit, as `restored` does."""
    with restored(*programs, seed=seed) as modules, evaluating(*modules):
        yield


def create_parameters(model: Program, guide: Program, batch: tuple[Tensor, ...]) -> None:
    """Run guide and model once if they create parameters in their first call.

    The random state is restored; all other state is, too, if there are no new parameters.
    """

    def parameters() -> set[int]:
        found = [p for module in modules_of(model, guide) for p in module.parameters(recurse=False)]
        stored = [p for _, p in pyro.get_param_store().named_parameters()]
        return set(map(id, [*found, *stored]))

    def run() -> None:
        with torch.no_grad(), torch.random.fork_rng(), pyro.validation_enabled(False):
            guide(*batch)
            model(*batch)

    with unchanged(model, guide):
        before = parameters()
        run()
        creates = parameters() != before
    if creates:
        with evaluating(*modules_of(model, guide)):
            run()
