"""Saves and loads parts: what was built as data (JSON), what was learned as tensors (safetensors).

A saved part is a folder of two files and their checksums (`folders`). `architecture.json` holds
class names and arguments, no code; `weights.safetensors` holds parameters and buffers. Loading
looks the names up among the `Part` classes that are already imported and runs nothing that the
folder says. Format 3 stores the name by which a class is imported (`pyro_vae.priors.Flow`), so that
files of this package can move. Format 2 stored the file's name; format 1 had no checksums. Both are
still read.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_vae.part import Part
from pyro_vae.runtime.files import (
    NEW,
    SUMS,
    CheckpointError,
    check_folder,
    foreign,
    is_folder,
    json_bytes,
    read_file,
    read_files,
    remove_folder,
    sync,
    writable_folder,
    write_files,
)

FORMAT = 3
# Where a part of this package is imported from; a user's part is stored by its module.
NAMESPACES = tuple(
    f"pyro_vae{name}" for name in ("", ".guides", ".likelihoods", ".networks", ".priors")
)
# Class names of formats 1 and 2 that are not public names.
OLD_NAMES = {
    "pyro_vae.counts.NegativeBinomial": "pyro_vae.likelihoods.NegativeBinomial",
    "pyro_vae.counts.Poisson": "pyro_vae.likelihoods.Poisson",
    "pyro_vae.counts.ZeroInflatedNegativeBinomial": (
        "pyro_vae.likelihoods.ZeroInflatedNegativeBinomial"
    ),
    "pyro_vae.flexible_priors.Flow": "pyro_vae.priors.Flow",
    "pyro_vae.flexible_priors.MixtureOfGaussians": "pyro_vae.priors.MixtureOfGaussians",
    "pyro_vae.flexible_priors.VampPrior": "pyro_vae.priors.VampPrior",
    "pyro_vae.ladder.LadderVAE": "pyro_vae.LadderVAE",
    "pyro_vae.missing.Missing": "pyro_vae.likelihoods.Missing",
    "pyro_vae.mixed.MixedVAE": "pyro_vae.MixedVAE",
    "pyro_vae.tables.Columns": "pyro_vae.likelihoods.Columns",
    "pyro_vae.vae.VAE": "pyro_vae.VAE",
}
ARCHITECTURE, WEIGHTS = "architecture.json", "weights.safetensors"
MODEL = "model"  # the folder of the model within a run's folder
FILES = (ARCHITECTURE, WEIGHTS, SUMS)
MAX_ARCHITECTURE_BYTES = 2**20  # some ten thousand parts


def save(part: Part, path: str | os.PathLike[str]) -> None:
    """Save a part, such as a `VAE`, into the folder `path`.

    A model that is there already is replaced; killed at any instant, the old one or the new one is
    there whole for `load`.

    Raises:
        CheckpointError: when an argument of a part cannot be written as data, when `path` is a
            link, or when it has other files than a saved part's, which would be lost.
        OSError: when the folder cannot be written; what was there stays.
    """
    path = Path(path)
    described = {"format": FORMAT, "part": describe(part)}
    tensors = {names[0]: tensor for tensor, names in _tensors(part).items()}
    files = {
        ARCHITECTURE: json_bytes(described),
        # Cloned, since safetensors takes no two tensors that share memory.
        WEIGHTS: safetensors.torch.save(
            {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        ),
    }
    _check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=NEW))
    old = _old(path)
    try:
        write_files(aside, files)
        aside.chmod(0o755)
        if path.exists():
            remove_folder(old, FILES)
            path.rename(old)  # found by `load` until the new one is in its place
        aside.rename(path)
        sync(path.parent)
        remove_folder(old, FILES)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """Build the part saved in the folder `path` and give it its weights, of the type they had.

    Raises:
        CheckpointError: when a file is missing or damaged, or when a class is not imported.
    """
    path = Path(path)
    if not path.exists() and is_folder(_old(path)):
        path = _old(path)  # a save was killed between its two renames
    limits = {ARCHITECTURE: MAX_ARCHITECTURE_BYTES, WEIGHTS: None}
    if (path / SUMS).exists():
        files = read_files(path, limits)
    else:
        files = {name: read_file(path, name, limit) for name, limit in limits.items()}
    try:
        described = json.loads(files[ARCHITECTURE])
        version = int(described["format"])
        if version > FORMAT:
            raise CheckpointError(
                f"{path} has format {version}, this version of pyro_vae reads up to {FORMAT}: "
                "upgrade pyro_vae"
            )
        if version > 1 and not (path / SUMS).exists():
            raise CheckpointError(f"{path} is damaged: {SUMS} is missing")
        part = _Builder().build(described["part"])
    except CheckpointError:
        raise
    except Exception as error:  # whatever a constructor says to damaged arguments
        raise CheckpointError(f"{path / ARCHITECTURE} is damaged: {error!r}") from error
    if not isinstance(part, Part):
        raise CheckpointError(f"{path / ARCHITECTURE} is damaged: it describes no part")
    try:
        _fill(part, safetensors.torch.load(files[WEIGHTS]))
    except (SafetensorError, CheckpointError) as error:
        raise CheckpointError(
            f"{path / WEIGHTS} is damaged or of another model: {error}"
        ) from error
    return part.to(device)


def describe(part: Part) -> Any:
    """Return a part as data for JSON: class names and arguments.

    Raises:
        CheckpointError: when an argument of a part cannot be written as data.
    """
    return _Describer().describe(part)


def _check_replaceable(path: Path) -> None:
    """Check that `save` can write to `path` without loss of what is not its own.

    Raises:
        CheckpointError: when `path`, or the name that a replaced part has for a moment, is a link,
            or has other files than a saved part's.
    """
    for folder in (path, _old(path)):
        check_folder(folder)
        if folder.exists() and (others := foreign(folder, FILES)):
            raise CheckpointError(
                f"{folder} is there and no saved part ({others[0]!r}): choose another folder, "
                "since saving replaces all that is in it"
            )


def results_folder(
    path: str | os.PathLike[str], files: Iterable[str], *, model: bool = True
) -> Path:
    """Make a run's folder where it is missing, and check that it can take a model and `files`.

    Raises:
        CheckpointError: when it is not writable, or when something else has the place of the model
            or of a file.
    """
    folder = writable_folder(path, files)
    if model:
        _check_replaceable(folder / MODEL)
    return folder


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _tensors(part: Part) -> dict[Tensor, list[str]]:
    """Return parameters and buffers, each with its names: a shared one has several."""
    named: dict[Tensor, list[str]] = {}
    for name, tensor in part.state_dict(keep_vars=True).items():
        named.setdefault(tensor, []).append(name)
    return named


def _fill(part: Part, saved: dict[str, Tensor]) -> None:
    """Give a part its tensors, in the type that they were saved in."""
    unused = set(saved)
    for tensor, names in _tensors(part).items():
        found = [name for name in names if name in saved]
        if not found:
            raise CheckpointError(f"the tensor {names[0]!r} is missing")
        value = saved[found[0]]
        unused -= {*found}
        kinds = tensor.is_floating_point(), value.is_floating_point()
        if value.shape != tensor.shape or kinds[0] != kinds[1]:
            raise CheckpointError(
                f"{found[0]!r} is {value.dtype} of shape {tuple(value.shape)}, the model has "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        tensor.data = value
    if unused:
        raise CheckpointError(f"the model has no tensor {min(unused)!r}")


def _public_name(kind: type[Part]) -> str:
    """Return the name by which a class of parts is imported."""
    for namespace in NAMESPACES:
        if getattr(sys.modules.get(namespace), kind.__name__, None) is kind:
            return f"{namespace}.{kind.__name__}"
    return kind.class_name


class _Describer:
    """Turns a part into data. A part that appears twice is written once and referred to."""

    def __init__(self) -> None:
        self.indices: dict[int, int] = {}

    def describe(self, value: Any, where: str = "part") -> Any:
        if isinstance(value, Part):
            if id(value) in self.indices:
                return {"shared": self.indices[id(value)]}
            arguments = {
                name: self.describe(argument, f"{where}.{name}")
                for name, argument in value.build_arguments.items()
            }
            self.indices[id(value)] = len(self.indices)
            return {"class": _public_name(type(value)), "arguments": arguments}
        if isinstance(value, list | tuple):
            return [self.describe(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which cannot be saved as data: make it a "
            "subclass of pyro_vae.Part, or a number, string or list"
        )


class _Builder:
    """Builds what `_Describer` described, in the same order."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.classes = {_public_name(kind): kind for kind in Part.classes.values()}

    def build(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.build(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "shared" in value:
            return self.parts[value["shared"]]
        name = OLD_NAMES.get(value["class"], value["class"])
        if name not in self.classes:
            raise CheckpointError(
                f"the saved model has a part of class {value['class']!r}, which is not imported: "
                "import the module that defines it, then load again"
            )
        arguments = {name: self.build(item) for name, item in value["arguments"].items()}
        part = self.classes[name](**arguments)
        self.parts.append(part)
        return part
