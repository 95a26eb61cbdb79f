"""Convert the state of an optimizer to named tensors and JSON, and restore it."""

from torch import Tensor
from torch.optim import Optimizer

from pyro_vae.checkpointing.fingerprint import check_tensor, plain, refuse_other
from pyro_vae.runtime.files import JSONObject

PREFIX = "optimizer"


def saved(
    optimizer: Optimizer | None, names: dict[Tensor, str]
) -> tuple[dict[str, Tensor], JSONObject]:
    """Return the tensors of an optimizer's state, and its other values as JSON data.

    Args:
        optimizer: Optimizer, or None if it has no parameters yet.
        names: Names of its parameters.

    Returns:
        The tensors, named `optimizer/KEY/PARAMETER`, and a dict of the settings of the parameter
        groups and of the numbers of each parameter.
    """
    tensors: dict[str, Tensor] = {}
    state: JSONObject = {"groups": [], "numbers": {}}
    if optimizer is None:
        return tensors, state
    state["groups"] = [
        {"parameters": [names[p] for p in group["params"]], "settings": plain(group)}
        for group in optimizer.param_groups
    ]
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{PREFIX}/{key}/{names[parameter]}"] = value
            else:
                state["numbers"].setdefault(names[parameter], {})[key] = value
    return tensors, state


def restore(
    optimizer: Optimizer, names: dict[Tensor, str], tensors: dict[str, Tensor], state: JSONObject
) -> None:
    """Restore the values of `saved`, in-place if the optimizer has a state.

    Raises:
        CheckpointError: If the settings of the groups differ, or the shape of a tensor differs.
    """
    if state["groups"]:
        now = [plain(group) for group in optimizer.param_groups]
        for then, group in zip(state["groups"], now, strict=True):
            refuse_other("optimizer or schedule", then["settings"], group)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = _entries(parameters, names, tensors, state["numbers"])
    live = [optimizer.state.get(parameter, {}) for parameter in parameters]
    if all(mine.keys() == entry.keys() for mine, entry in zip(live, entries, strict=True)):
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
        entries[index[name]].update(values)
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == PREFIX:
            key, _, parameter_name = rest.partition("/")
            parameter = parameters[index[parameter_name]]
            if tensor.shape not in ((), parameter.shape):
                check_tensor(name, parameter, tensor)
            entries[index[parameter_name]][key] = tensor
    return entries
