"""Convert the state of an optimizer to named tensors and JSON, and restore it."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.checkpointing.fingerprint import plain, refuse_other
from pyro_vae.checkpointing.identity import code_of
from pyro_vae.runtime.files import CheckpointError, JSONObject

PREFIX = "optimizer"
NESTED = "optimizer/in"  # tensors in lists and dicts of a state
# Entries that kernels of torch read without a check of their shape.
CHECKED = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum"}
CONTAINERS = {"list": list, "tuple": tuple}


def saved(
    optimizer: Optimizer | None, names: dict[Tensor, str]
) -> tuple[dict[str, Tensor], JSONObject]:
    """Return the tensors of an optimizer's state, and its other values as JSON data.

    Args:
        optimizer: Optimizer, or None if it has no parameters yet.
        names: Names of its parameters.

    Returns:
        The tensors, named `optimizer/KEY/PARAMETER`, and a dict of the settings of the parameter
        groups and of the other values of each parameter.

    Raises:
        CheckpointError: If the state has other values than tensors, numbers, strings, and lists
            and dicts of them, or values of other objects than its parameters.
    """
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
    state["groups"] = [
        {"parameters": [names[p] for p in group["params"]], "settings": plain(group)}
        for group in optimizer.param_groups
    ]
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and "/" not in str(key):
                tensors[f"{PREFIX}/{key}/{names[parameter]}"] = value
            else:
                where = f"the state {key!r} of {type(optimizer).__name__}"
                encoded = _encoded(value, tensors, where)
                state["numbers"].setdefault(names[parameter], {})[key] = encoded
    return tensors, state


def restore(
    optimizer: Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor], state: JSONObject
) -> None:
    """Restore the values of `saved`, in-place if the optimizer has a state of the same shapes.

    Raises:
        CheckpointError: If the class or the settings of the groups differ.
    """
    if state["groups"]:
        settings = [plain(group) for group in optimizer.param_groups]
        for then, group in zip(state["groups"], settings, strict=True):
            refuse_other("optimizer or schedule", then["settings"], group)
    now = code_of(type(optimizer))
    refuse_other("optimizer", {"optimizer": state.get("class", now)}, {"optimizer": now})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = _entries(parameters, names, tensors, state["numbers"])
    is_torchs = type(optimizer).__module__.startswith("torch.optim")
    for parameter, entry in zip(parameters, entries, strict=True):
        for key, value in entry.items():
            if isinstance(value, Tensor) and (is_torchs or key in CHECKED):
                _check_shape(f"{PREFIX}/{key}/{names[parameter]}", parameter, value)
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
        optimizer.load_state_dict({"state": filled, "param_groups": groups})


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


def _encoded(value: object, tensors: dict[str, Tensor], where: str) -> object:
    """Return a value as JSON data; its tensors are added to `tensors`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = f"{NESTED}/{len(tensors)}"
        tensors[name] = value
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
