"""A refined posterior on disk: settings as JSON, arrays as safetensors, and their checksums."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_vae.runtime.files import (
    SUMS,
    CheckpointError,
    JSONObject,
    json_bytes,
    or_replaced,
    read_files,
    replace_folder,
)
from pyro_vae.runtime.json_schema import COUNT, PLACE, Number, Record, Text, parse

FORMAT = 1
SETTINGS, ARRAYS = "posterior.json", "posterior.safetensors"
FILES = (SETTINGS, ARRAYS, SUMS)
MAX_SETTINGS_BYTES = 2**20
SCORES = ("khat", "ess", "log_likelihood", "log_joint")  # one number for each datum
TOLERANCE = 1e-3  # of log p(x, z), relative to 1 + |log p(x, z)|
_SCHEMA = Record(
    {
        "format": Number(1, 2**31, integer=True),
        "num_rounds": COUNT,
        "seed": Number(0, 2**64, integer=True),
        "dataset": Text(),
        "binarization": Text(),
        "num_data": PLACE,
        "num_samples": PLACE,
        "num_components": PLACE,
        "dim": PLACE,
    }
)


def write(path: Path, settings: JSONObject, tensors: Mapping[str, Tensor]) -> None:
    """Write the folder of a refined posterior.

    Raises:
        CheckpointError: If `path` is a link or has other files.
        OSError: If the folder cannot be written. Its old content is kept.
    """
    num_data, components, dim = tensors["loc"].shape
    sizes = {"num_data": num_data, "num_components": components, "dim": dim}
    sizes["num_samples"] = len(tensors["log_weights"])

    files = {
        SETTINGS: json_bytes({"format": FORMAT, **settings, **sizes}),
        ARRAYS: safetensors.torch.save(
            {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
        ),
    }
    replace_folder(path, files, "saved posterior")


def read(path: Path) -> tuple[JSONObject, dict[str, Tensor]]:
    """Read the folder of a refined posterior; return its settings and tensors.

    Raises:
        CheckpointError: If a file is missing or damaged, or of a later format.
    """
    path = or_replaced(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not the folder of a saved posterior: no such folder")
    files = read_files(path, {SETTINGS: MAX_SETTINGS_BYTES, ARRAYS: None})
    settings = parse(files[SETTINGS], path / SETTINGS, _SCHEMA)
    if settings["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {settings['format']}; this version of pyro_vae reads formats up to "
            f"{FORMAT}: upgrade pyro_vae"
        )
    try:
        tensors = safetensors.torch.load(files[ARRAYS])
    except SafetensorError as error:
        raise CheckpointError(f"{path / ARRAYS} is damaged: {error}") from error
    for name, shape in _shapes(settings).items():
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape or not found.is_floating_point():
            raise CheckpointError(
                f"{path / ARRAYS} is damaged: expected floats of shape {shape} for {name!r}, got "
                f"{None if found is None else f'{found.dtype} of shape {tuple(found.shape)}'}"
            )
    return settings, tensors


def _shapes(settings: JSONObject) -> dict[str, tuple[int, ...]]:
    data, components, dim = (settings[key] for key in ("num_data", "num_components", "dim"))
    return {
        "log_weights": (settings["num_samples"], data),
        **dict.fromkeys(SCORES, (data,)),
        "logits": (data, components),
        "loc": (data, components, dim),
        "scale_tril": (data, components, dim, dim),
    }


def changed(expected: Tensor, found: Tensor, start: int) -> str:
    """Compare log p(x, z) of the model and data at hand with those that were kept.

    Args:
        expected: Kept values, shape `(num_data,)`.
        found: Values now.
        start: Position of the first datum.

    Returns:
        The first difference, which shows that model or data are others; "" if there is none.
    """
    error = (found.double() - expected.double()).abs() / (1 + expected.double().abs())
    bad = ~(error < TOLERANCE)
    if not bad.any():
        return ""
    place = int(torch.argmax(bad.to(torch.int8)))
    return (
        f"log p(x, z) of datum {start + place} was {float(expected[place]):.6g} and is "
        f"{float(found[place]):.6g}"
    )
