"""Convert the state of an optimizer to named tensors and JSON, and restore it."""

import warnings
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.arguments import setting
from pyro_vae.checkpointing.fingerprint import plain, refuse_other
from pyro_vae.checkpointing.identity import code_of
from pyro_vae.engine.optimizer_values import Settings, attributes_of, set_values, settings_of
from pyro_vae.engine.torch_optim import TorchOptim
from pyro_vae.runtime.files import CheckpointError, JSONObject

PREFIX = "optimizer"
NESTED = "optimizer/in"  # tensors in lists and dicts of a state
KERNELS = "torch.optim."  # modules of classes with kernels
# Entries that these kernels read without a check of their shape.
CHECKED = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum"}
CONTAINERS = {"list": list, "tuple": tuple}


def saved(
    optim: TorchOptim, names: dict[Tensor, str], unscheduled: Sequence[Settings]
) -> tuple[dict[str, Tensor], JSONObject]:
    """Return the tensors of an optimizer's state, and its other values as JSON data.

    Args:
        optim: Optimizer.
        names: Names of its parameters.
        unscheduled: Settings of each parameter group before its first step.

    Returns:
        The tensors, named `optimizer/KEY/PARAMETER`, and a dict of the settings of the parameter
        groups, of the settings and attributes that the optimizer changes itself, and of the other
        values of each parameter.

    Raises:
        CheckpointError: If the state has other values than tensors, numbers, strings, and lists
            and dicts of them, or values of other objects than its parameters, or if the optimizer
            wraps another one.
    """
    optimizer, own = optim.optimizer, optim.changes
    tensors: dict[str, Tensor] = {}
    state: JSONObject = {"groups": [], "numbers": {}}
    if optimizer is None:
        return tensors, state
    state["class"] = code_of(type(optimizer))
    unknown = [p for p in optimizer.state if p not in names]
    if unknown:
        raise CheckpointError(
            f"{type(optimizer).__name__} keeps a state of {type(unknown[0]).__name__} objects that "
            "are not parameters of the run"
        )
    kind = type(optimizer).__name__
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer) and inner.state is not optimizer.state:
            raise CheckpointError(
                f"{kind} steps {type(inner).__name__}, and the state of this inner optimizer is "
                "not part of its own"
            )
    # A callback may have added a group, which has taken no step.
    first = [*unscheduled, *map(settings_of, optimizer.param_groups[len(unscheduled) :])]
    state["additions"] = [[names[p] for p in added] for added in optim.additions]
    state["groups"] = [
        {
            "parameters": [names[p] for p in group["params"]],
            "settings": plain(_without(group, own.settings)),
            "start": plain(_only(start, own.settings)),
            "changed": _encoded_entries(
                _only(group, own.settings), tensors, f"of a parameter group of {kind}"
            ),
        }
        for group, start in zip(optimizer.param_groups, first, strict=True)
    ]
    attributes = _only(attributes_of(optimizer), own.attributes)
    state["attributes"] = _encoded_entries(attributes, tensors, f"of {kind}")
    for parameter, entries in optimizer.state.items():
        others = {}
        for key, value in entries.items():
            if type(key) is str and isinstance(value, Tensor) and "/" not in key:
                name = f"{PREFIX}/{key}/{names[parameter]}"
                tensors[name] = _dense(value, f"the state {key!r} of {kind}")
            else:
                others[key] = value
        if others:
            state["numbers"][names[parameter]] = _encoded_entries(others, tensors, f"of {kind}")
    return tensors, state


def additions(optim: TorchOptim, names: dict[Tensor, str], state: JSONObject) -> list[list[str]]:
    """Return the names of the parameters that an optimizer was made of, and of later ones.

    An optimizer that the caller has made has no additions, nor has one of an older version.

    Raises:
        CheckpointError: If the optimizer of this run was made of other parameters.
    """
    then = state.get("additions")
    if not then:
        return [group["parameters"] for group in state["groups"]]
    now = [names[parameter] for parameter in optim.additions[0]] if optim.additions else then[0]
    known = {name for added in then for name in added}
    differing = [f"{name!r} was trained and is not" for name in then[0] if name not in now]
    differing += [f"{name!r} was not trained and is" for name in now if name not in known]
    if differing:
        raise CheckpointError(
            f"the run cannot be resumed with other trained parameters: {differing[0]}. Resume it "
            f"with the same programs, or start another run in another folder ({setting('out')})"
        )
    return then


def restore(
    optim: TorchOptim,
    names: dict[Tensor, str],
    tensors: dict[str, Tensor],
    state: JSONObject,
    unscheduled: Sequence[Settings],
) -> None:
    """Restore the values of `saved`, in-place if the optimizer has a state of the same shapes.

    Raises:
        CheckpointError: If the class or the settings of the groups differ.
    """
    optimizer = optim.optimizer
    assert optimizer is not None
    if state["groups"]:
        _check_groups(optimizer, state["groups"], unscheduled)
    now = code_of(type(optimizer))
    refuse_other("optimizer", {"optimizer": state.get("class", now)}, {"optimizer": now})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = _entries(parameters, names, tensors, state["numbers"])
    is_torchs = type(optimizer).__module__.startswith("torch.optim")
    kinds = set(type(optimizer).__mro__) - {Optimizer}
    has_kernels = any(kind.__module__.startswith(KERNELS) for kind in kinds)
    for parameter, entry in zip(parameters, entries, strict=True):
        for key, value in entry.items():
            if isinstance(value, Tensor) and (is_torchs or (has_kernels and key in CHECKED)):
                _check_shape(f"{PREFIX}/{key}/{names[parameter]}", parameter, value)
    set_changed(optimizer, tensors, state)
    for group in state["groups"]:
        optim.changes.settings |= group.get("changed", {}).keys()
    optim.changes.attributes |= state.get("attributes", {}).keys()
    live = [optimizer.state.get(parameter, {}) for parameter in parameters]
    if all(map(_fits, live, entries)):
        # In-place, because a compiled step refers to these tensors.
        for mine, entry in zip(live, entries, strict=True):
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    mine[key].copy_(value)
                else:
                    mine[key] = value
    else:
        groups = optimizer.state_dict()["param_groups"]
        filled = {i: entry for i, entry in enumerate(entries) if entry}
        defaults = dict(optimizer.defaults)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Casting complex values to real")
            optimizer.load_state_dict({"state": filled, "param_groups": groups})
        optimizer.defaults = defaults  # torch adds one, which later groups would have
        _keep_dtypes(optimizer, parameters, entries)


def _keep_dtypes(
    optimizer: Optimizer, parameters: list[Tensor], entries: list[dict[str, object]]
) -> None:
    """Give tensors their saved dtypes: torch loads them in the dtype of the parameter."""
    for parameter, entry in zip(parameters, entries, strict=True):
        live = optimizer.state.get(parameter, {})
        for key, value in entry.items():
            loaded = live.get(key)
            if not (isinstance(loaded, Tensor) and isinstance(value, Tensor)):
                continue
            if loaded.dtype != value.dtype:
                live[key] = value.to(loaded.device)


def set_changed(optimizer: Optimizer, tensors: dict[str, Tensor], state: JSONObject) -> None:
    """Restore the settings and attributes that the optimizer changes itself."""
    attributes = (vars(optimizer), state.get("attributes", {}))
    groups = [group.get("changed", {}) for group in state["groups"]]
    for target, values in (attributes, *zip(optimizer.param_groups, groups, strict=False)):
        set_values(target, {key: _decoded(value, tensors) for key, value in values.items()})


def _check_groups(
    optimizer: Optimizer, groups: Sequence[JSONObject], unscheduled: Sequence[Settings]
) -> None:
    """Compare settings; those that the optimizer changes, as they were before the first step.

    Raises:
        CheckpointError: If they differ.
    """
    if len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"the run cannot be resumed with {len(optimizer.param_groups)} parameter groups of the "
            f"optimizer, it had {len(groups)}: resume it with the same optimizer"
        )
    for then, group, start in zip(groups, optimizer.param_groups, unscheduled, strict=True):
        changed = then.get("changed", {}).keys()
        refuse_other("optimizer or schedule", then["settings"], plain(_without(group, changed)))
        refuse_other("optimizer", then.get("start", {}), plain(_only(start, changed)))


def _only(values: Mapping[str, object], names: Container[str]) -> Settings:
    return {key: value for key, value in values.items() if key in names}


def _without(values: Mapping[str, object], names: Container[str]) -> Settings:
    return {key: value for key, value in values.items() if key not in names}


def _check_shape(name: str, parameter: Tensor, value: Tensor) -> None:
    """Raise `CheckpointError` if no optimizer of torch has a state of this shape."""
    *leading, rows, columns = (1, 1, *parameter.shape)
    leading = leading[2:] if parameter.ndim > 1 else []
    factored = ((*leading, rows, 1), (*leading, 1, columns)) if parameter.ndim > 1 else ()
    if value.shape not in ((), parameter.shape, *factored):
        raise CheckpointError(
            f"expected the tensor {name!r} of the checkpoint to have the shape "
            f"{tuple(parameter.shape)}, got {tuple(value.shape)}"
        )


def _fits(live: dict[str, object], entry: dict[str, object]) -> bool:
    """Return whether a live state has the same tensors as a saved one."""
    return live.keys() == entry.keys() and all(
        _shape_of(live[key]) == _shape_of(value) for key, value in entry.items()
    )


def _shape_of(value: object) -> tuple[int, ...] | None:
    return value.shape if isinstance(value, Tensor) else None


def _entries(
    parameters: list[Tensor],
    names: dict[Tensor, str],
    tensors: dict[str, Tensor],
    numbers: dict[str, JSONObject],
) -> list[dict[str, object]]:
    """Return the saved state of each parameter."""
    index = {names[parameter]: i for i, parameter in enumerate(parameters)}
    entries: list[dict[str, object]] = [{} for _ in parameters]
    for name, values in numbers.items():
        entries[index[name]].update({k: _decoded(v, tensors) for k, v in values.items()})
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == PREFIX and not name.startswith(f"{NESTED}/"):
            key, _, parameter_name = rest.partition("/")
            entries[index[parameter_name]][key] = tensor
    return entries


def _encoded_entries(
    entries: Mapping[Any, object], tensors: dict[str, Tensor], where: str
) -> JSONObject:
    """Return the entries of a state as JSON data; their tensors are added to `tensors`."""
    for key in entries:
        if type(key) is not str:
            raise CheckpointError(
                f"the state {key!r} {where} has a {type(key).__name__} as its name, expected a "
                "string"
            )
    return {
        key: _encoded(value, tensors, f"the state {key!r} {where}")
        for key, value in entries.items()
    }


def _dense(value: Tensor, where: str) -> Tensor:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise CheckpointError(
            f"{where} has a tensor that is not dense: expected dense tensors, numbers, strings, "
            "and lists and dicts of them"
        )
    return value


def _encoded(value: object, tensors: dict[str, Tensor], where: str) -> object:
    """Return a value as JSON data; its tensors are added to `tensors`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = f"{NESTED}/{len(tensors)}"
        tensors[name] = _dense(value, where)
        return {"tensor": name}
    for kind, container in CONTAINERS.items():
        if type(value) is container:
            return {kind: [_encoded(item, tensors, where) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encoded(item, tensors, where) for key, item in value.items()}}
    raise CheckpointError(
        f"{where} has a {type(value).__name__}, which is not serializable: expected tensors, "
        "numbers, strings, and lists and dicts of them"
    )


def _decoded(value: Any, tensors: dict[str, Tensor]) -> object:
    """Return the value that `_encoded` converted. Older versions wrote lists as they are."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decoded(item, tensors) for key, item in content.items()}
    return CONTAINERS[kind](_decoded(item, tensors) for item in content)
