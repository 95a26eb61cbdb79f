"""The fingerprint of a training run: a run is resumed only if its fingerprint is the same."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from pyro_vae.arguments import setting
from pyro_vae.data.dataset import Dataset
from pyro_vae.objectives.nats_per_datum import HasObjective, objectives_of
from pyro_vae.runtime.files import CheckpointError, JSONObject

OBJECTIVE_STATE = ("num_steps", "max_plate_nesting")  # attributes that change during training

Program = Callable[..., object]


def describe(
    svi: HasObjective,
    programs: tuple[Program, ...],
    total_steps: int,
    data: Dataset,
    validation: Dataset | None,
) -> JSONObject:
    """Return the fingerprint of the data, the programs and the objective of a run."""
    model, guide = map(_describe_program, programs)
    modes = _in_eval_mode(programs)
    return {
        "train_sha256": _checksum(data),
        "validation_sha256": None if validation is None else _checksum(validation),
        "model": model,
        "guide": guide,
        **({"in_eval_mode": modes} if modes else {}),
        "objectives": describe_objectives(svi, total_steps),
    }


def describe_objectives(svi: HasObjective, total_steps: int) -> list[JSONObject]:
    """Return the part of the fingerprint that depends on the number of steps of a run."""
    return [_describe_objective(item, total_steps) for item in objectives_of(svi)]


def _checksum(data: Dataset) -> str:
    """Return the SHA-256 of data and context, their binarization and its seed.

    It reads a sample of the rows of arrays on disk, and only the shape of a `DataLoader`.
    """
    kind = [(str(rows.dtype), tuple(rows.shape)) for rows in (data.values, *data.context)]
    digest = hashlib.sha256(repr((kind, data.binarization, data.seed)).encode())
    for rows in data.fingerprint_rows():
        digest.update(rows.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sample_sha256(data: Dataset) -> str | None:
    """Return the SHA-256 of samples of rows on disk or of a `DataLoader`; None without them.

    Data in memory are hashed completely by `describe`.
    """
    return _hash_of(data.content_samples())


def held_sha256(data: Dataset) -> str | None:
    """Return the SHA-256 of rows of the tensors behind a `DataLoader`; None without them."""
    return None if data.loader is None else _hash_of(data.loader.held_tensors())


def _hash_of(tensors: Iterable[Tensor]) -> str | None:
    digest = None
    for rows in tensors:
        digest = digest or hashlib.sha256()
        digest.update(repr((str(rows.dtype), tuple(rows.shape))).encode())
        digest.update(rows.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return None if digest is None else digest.hexdigest()


def _describe_program(program: Program) -> list[str]:
    if isinstance(program, nn.Module):
        return repr(program).splitlines()
    return [getattr(program, "__qualname__", type(program).__qualname__)]


def _in_eval_mode(programs: tuple[Program, ...]) -> list[str]:
    """Return the names of the layers that compute something else in training mode."""
    modules = [p.named_modules() for p in programs if isinstance(p, nn.Module)]
    layers = (_DropoutNd, _NormBase)
    return [n for found in modules for n, m in found if isinstance(m, layers) and not m.training]


def _describe_objective(objective: object, total_steps: int) -> JSONObject:
    public = {key: value for key, value in vars(objective).items() if not key.startswith("_")}
    entry = {k: v for k, v in plain(public).items() if k not in (*OBJECTIVE_STATE, "beta")}
    entry["class"] = getattr(objective, "__name__", type(objective).__name__)
    if callable(schedule := getattr(objective, "schedule", None)):
        steps = range(0, total_steps + 1, max(total_steps // 16, 1))
        entry["beta"] = [schedule(step) for step in steps]
    return entry


def plain(entries: Mapping[str, object]) -> JSONObject:
    """Return the entries that are numbers, strings or tuples of them, in their JSON form."""
    items = {
        key: value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        for key, value in entries.items()
    }
    kept = {
        key: value
        for key, value in items.items()
        if key != "params" and isinstance(value, bool | int | float | str | tuple | None)
    }
    return json.loads(json.dumps(kept))


def differences(then: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Return the differences between two descriptions as text; empty if they are equal."""
    found = []
    for key in {**then, **now}:
        old, new = then.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old, new = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(f"{key}: {differences(old, new)}")
        else:
            found.append(f"{key} was {old!r} and is {new!r}")
    return "; ".join(found)


def refuse_other(what: str, then: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raise `CheckpointError` with the differences if two descriptions are not equal."""
    if found := differences(then, now):
        raise CheckpointError(
            f"the run cannot be resumed with other {what}: {found}. Resume it with the same "
            f"arguments, or start another run in another folder ({setting('out')})"
        )


def check_tensor(name: str, expected: Tensor, saved: Tensor | None) -> None:
    """Raise `CheckpointError` if a saved tensor is missing, or has another shape or dtype."""
    if saved is None:
        raise CheckpointError(f"the checkpoint lacks the tensor {name!r}")
    if saved.shape != expected.shape or saved.dtype != expected.dtype:
        raise CheckpointError(
            f"expected the tensor {name!r} of the checkpoint as {expected.dtype} of shape "
            f"{tuple(expected.shape)}, got it as {saved.dtype} of shape {tuple(saved.shape)}"
        )
