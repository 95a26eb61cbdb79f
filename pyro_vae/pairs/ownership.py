"""Detect programs that share parameters because Pyro's parameter store has them by the same names.

A `PyroModule`, such as an AutoGuide, takes its parameters from the global store whenever it runs.
Two `AutoNormal` guides have the same names there, so training one changes the other.

Other modules compute with their own parameters. If the store has other parameters under their names
in `pyro.module`, an optimizer moves these, and training has no effect on the modules.
"""

import gc
import weakref
from collections.abc import Iterator, Sequence

import pyro
from pyro import poutine
from pyro.nn import PyroModule
from pyro.nn.module import _make_name
from pyro.params.param_store import _MODULE_NAMESPACE_DIVIDER
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from pyro_vae.engine.guards import modules_of
from pyro_vae.pairs.pair import PairError, Program

# The module that each parameter was trained in.
_OWNERS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def claim_parameters(*programs: Program) -> None:
    """Record that the parameters of programs are trained in their modules.

    Args:
        programs: Model and guide. They have been called.

    Raises:
        PairError: As `check_own_parameters`.
    """
    modules = modules_of(*programs)
    check_own_parameters(modules)
    for module, _, parameter in _parameters(modules):
        _OWNERS.setdefault(parameter, weakref.ref(module))


def check_registered(trace: poutine.Trace, *programs: Program) -> None:
    """Check that `pyro.module` registered the parameters with which the modules compute.

    Args:
        trace: The parameter sites of model and guide in a run.
        *programs: Model and guide.

    Raises:
        PairError: If the parameter store has another parameter under the name of one of them.
    """
    stored = pyro.get_param_store()._params
    others = {
        name: node["args"][1]
        for name, node in trace.nodes.items()
        if _MODULE_NAMESPACE_DIVIDER in name and node["value"] is stored.get(name)
        if node["args"][1] is not node["value"]
    }
    if not others:
        return
    # With update_module_params=True, the module has the stored parameters after `pyro.module`.
    own = {id(p) for module in modules_of(*programs) for p in module.parameters(recurse=False)}
    if names := [name for name, p in others.items() if id(p) in own]:
        raise PairError(
            f"pyro.module finds another parameter {names[0]!r} in Pyro's parameter store, so "
            "training would change that one, and not the module's. It belongs to another module "
            "that was registered by the same name, or is a copy. Call pyro.clear_param_store() "
            "before training, give each module another name, or pass update_module_params=True to "
            "pyro.module to continue with the stored parameters"
        )


def check_own_parameters(modules: Sequence[nn.Module]) -> None:
    """Check that no program uses parameters that another module was trained with.

    Args:
        modules: All modules of the programs.

    Raises:
        PairError: If Pyro's parameter store gives a module the parameters of another one.
    """
    if _foreign(modules):
        gc.collect()  # modules of earlier runs may be in cycles
    foreign = _foreign(modules)
    if foreign:
        raise PairError(
            f"the parameter {min(foreign)!r} belongs to another guide or model that was trained in "
            "this process: Pyro's parameter store has one parameter of each name, so that both "
            "programs would use it. Call pyro.settings.set(module_local_params=True) before the "
            "first of them is trained; or delete the other program, and call "
            "pyro.clear_param_store() before this one is created"
        )


def _foreign(modules: Sequence[nn.Module]) -> list[str]:
    present = set(map(id, modules))
    found = []
    for _, name, parameter in _parameters(modules):
        owner = _OWNERS[parameter]() if parameter in _OWNERS else None
        if owner is not None and id(owner) not in present:
            found.append(name)
    return found


def _parameters(modules: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield the parameters that `PyroModule`s use in their next call, with their store names."""
    local = pyro.settings.get("module_local_params")
    store = {} if local else pyro.get_param_store()._params
    for module in modules:
        if isinstance(module, PyroModule):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    full = _make_name(module._pyro_name, name.removesuffix("_unconstrained"))
                    yield module, full, store.get(full, parameter)
