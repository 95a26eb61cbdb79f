"""What identifies a training run, so that another one is not taken for it when it is resumed."""

import functools
import hashlib
import importlib.metadata
import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.data.dataset import Dataset
from pyro_vae.objectives.nats_per_datum import objectives_of
from pyro_vae.runtime.files import CheckpointError

OBJECTIVE_STATE = ("num_steps", "max_plate_nesting")  # what Beta counts, and what Pyro guesses


def describe(
    svi: Any,
    programs: tuple[Any, ...],
    total_steps: int,
    data: Dataset,
    validation: Dataset | None,
) -> dict[str, Any]:
    """Return what besides the plain settings makes a run this run: data, programs, objective."""
    model, guide = map(_describe_program, programs)
    return {
        "train_sha256": _fingerprint(data),
        "validation_sha256": None if validation is None else _fingerprint(validation),
        "model": model,
        "guide": guide,
        "objectives": [_describe_objective(item, total_steps) for item in objectives_of(svi)],
    }


def _fingerprint(data: Dataset) -> str:
    """Return the SHA-256 of data and context, and of how they are fed.

    Of arrays on disk a sample of the rows counts, of a `DataLoader` the shape alone.
    """
    kind = [(str(rows.dtype), tuple(rows.shape)) for rows in (data.values, *data.context)]
    digest = hashlib.sha256(repr((kind, data.binarization, data.seed)).encode())
    for rows in data.fingerprint_rows():
        digest.update(rows.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _describe_program(program: Any) -> list[str]:
    if isinstance(program, nn.Module):
        return repr(program).splitlines()
    return [getattr(program, "__qualname__", type(program).__qualname__)]


def _describe_objective(objective: Any, total_steps: int) -> dict[str, Any]:
    public = {key: value for key, value in vars(objective).items() if not key.startswith("_")}
    entry = {k: v for k, v in plain(public).items() if k not in (*OBJECTIVE_STATE, "beta")}
    entry["class"] = getattr(objective, "__name__", type(objective).__name__)
    if callable(schedule := getattr(objective, "schedule", None)):
        steps = range(0, total_steps + 1, max(total_steps // 16, 1))
        entry["beta"] = [schedule(step) for step in steps]
    return entry


def plain(entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are numbers, strings or lists of them, as JSON gives them back."""
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


@functools.cache  # it reads files for 15 ms, and each checkpoint asks
def versions() -> dict[str, str]:
    """Return the versions on which the numbers of a run depend."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python} | {
        name: importlib.metadata.version(name) for name in ("pyro-vae", "pyro-ppl", "torch")
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Say in which entries two descriptions differ; nothing where they are equal."""
    told = []
    for key in {**then, **now}:
        old, new = then.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            old, new = next((a, b) for a, b in zip(old, new, strict=True) if a != b)
        if isinstance(old, dict) and isinstance(new, dict):
            told.append(f"{key}: {differences(old, new)}")
        else:
            told.append(f"{key} was {old!r} and is {new!r}")
    return "; ".join(told)


def refuse_other(what: str, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `CheckpointError`, with the differences, unless two descriptions are equal."""
    if told := differences(then, now):
        raise CheckpointError(
            f"the run cannot be resumed with other {what}: {told}. Resume it as it was, "
            "or start another run in another folder (out=)"
        )


def check_tensor(name: str, expected: Tensor, saved: Tensor | None) -> None:
    """Raise `CheckpointError` unless a checkpoint's tensor can take the place of the run's."""
    if saved is None:
        raise CheckpointError(f"the checkpoint lacks the tensor {name!r}")
    if saved.shape != expected.shape or saved.dtype != expected.dtype:
        raise CheckpointError(
            f"the checkpoint has {name!r} as {saved.dtype} of shape {tuple(saved.shape)}, this "
            f"run as {expected.dtype} of shape {tuple(expected.shape)}"
        )
