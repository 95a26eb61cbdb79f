"""Save and load parts: constructor arguments as JSON, weights as safetensors.

A saved part is a folder of two files and their checksums (`runtime.files`). `architecture.json`
contains class names and constructor arguments, and no code. `weights.safetensors` contains
parameters and buffers. Loading looks class names up among the imported `Part` classes and executes
nothing from the folder. Format 3 stores the public name of a class (`pyro_vae.priors.Flow`), so
that files of this package can move. Format 2 stored the name of the file, and format 1 had no
checksums. Both can still be read, format 1 with `load(old_format=True)`.
"""

import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pyro_vae.arguments import FilePath, checked
from pyro_vae.checkpointing.dry_build import (
    Header,
    check_builds,
    names_of_tensors,
    read_header,
)
from pyro_vae.part import Part
from pyro_vae.runtime.devices import Device
from pyro_vae.runtime.files import (
    SUMS,
    CheckpointError,
    check_replaceable,
    json_bytes,
    or_replaced,
    read_file,
    read_files,
    replace_folder,
    writable_folder,
)
from pyro_vae.runtime.json_schema import MAX_BYTES, Number, Plain, Record, parse
from pyro_vae.runtime.random_state import preserved_state

FORMAT = 3
# Public modules of the parts of this package. A part of a user is stored by its module.
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
MODEL = "model"  # name of the model folder in the folder of a run
FILES = (ARCHITECTURE, WEIGHTS, SUMS)
# The schema of counts has about 120 bytes for each gene, so this is a million genes.
MAX_ARCHITECTURE_BYTES = MAX_BYTES
_SCHEMA = Record({"format": Number(1, 2**31, integer=True), "part": Plain()})


def save(part: Part, path: str | os.PathLike[str]) -> None:
    """Save a part, such as a `VAE`, into the folder `path`.

    A model in `path` is replaced. If the process is killed at any time, `load` finds either the old
    or the new model intact.

    Args:
        part: Part to save.
        path: Folder to write.

    Raises:
        CheckpointError: If an argument of a part is not serializable, if `path` is a link, or if
            `path` contains other files than a saved part, which would be lost.
        OSError: If the folder cannot be written. Its old content is kept.
    """
    path = Path(path)
    tensors = {names[0]: tensor for tensor, names in names_of_tensors(part).items()}
    files = {
        ARCHITECTURE: architecture_of(part),
        # Cloned, since safetensors refuses tensors that share memory.
        WEIGHTS: safetensors.torch.save(
            {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        ),
    }
    replace_folder(path, files, "saved part")


@checked
def load(path: FilePath, device: Device = "cpu", *, old_format: bool = False) -> Any:
    """Load the part, such as a `VAE`, that was saved in the folder `path`.

    Nothing is unpickled. The classes of all parts must be imported before.

    Args:
        path: Folder of the saved part.
        device: Device of the loaded tensors. Their dtypes are the saved ones.
        old_format: Whether to load a part of format 1, which has no checksums.

    Returns:
        The part with its weights.

    Raises:
        CheckpointError: If a file is missing or damaged, or if a class is not imported.

    Example:
        >>> import tempfile
        >>> import pyro_vae as pv
        >>> prior = pv.priors.StandardNormal(2)
        >>> decoder = pv.networks.MLP(2, [8], (1, 4, 4))
        >>> encoder = pv.networks.MLP((1, 4, 4), [8], 4)
        >>> likelihood = pv.likelihoods.Bernoulli(decoder)
        >>> vae = pv.VAE(prior, likelihood, pv.guides.DiagonalNormal(encoder))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vae.save(folder + "/model")
        ...     type(pv.load(folder + "/model")).__name__
        'VAE'

    See also: `VAE.save`, `pyro_vae.fit`, `pyro_vae.CheckpointError`.
    """
    path = or_replaced(Path(path))
    _check_exists(path)
    described = _architecture(path, old_format)
    sizes = read_header(path, WEIGHTS)
    try:
        check_builds(lambda: _build(described), sizes)
        part = _build(described)
    except CheckpointError as error:
        raise CheckpointError(f"{path / ARCHITECTURE} is damaged: {error}") from error
    except Exception as error:  # constructors raise various errors for damaged arguments
        raise CheckpointError(f"{path / ARCHITECTURE} is damaged: {error!r}") from error
    limit = sizes.file_size
    if old_format:
        weights = read_file(path, WEIGHTS, limit)
    else:
        weights = read_files(path, {WEIGHTS: limit})[WEIGHTS]
    try:
        _fill(part, safetensors.torch.load(weights))
    except (SafetensorError, CheckpointError) as error:
        raise CheckpointError(
            f"{path / WEIGHTS} is damaged or of another model: {error}"
        ) from error
    return part.to(device)


def _architecture(path: Path, old_format: bool) -> object:
    """Return the description of the part in a folder."""
    if old_format:
        data = read_file(path, ARCHITECTURE, MAX_ARCHITECTURE_BYTES)
    elif not os.path.lexists(path / SUMS):
        raise CheckpointError(
            f"{path} is damaged: {SUMS} is missing. Models of format 1 have no checksums: pass "
            "old_format=True to load one that you trust"
        )
    else:
        data = read_files(path, {ARCHITECTURE: MAX_ARCHITECTURE_BYTES})[ARCHITECTURE]
    described = parse(data, path / ARCHITECTURE, _SCHEMA)
    version = described["format"]
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}; this version of pyro_vae reads formats up to "
            f"{FORMAT}: upgrade pyro_vae"
        )
    if version > 1 and old_format:
        raise CheckpointError(
            f"{path} has format {version}, which has checksums: load it without old_format=True"
        )
    return described["part"]


def _build(described: object) -> Part:
    part = _Builder().build(described)
    if not isinstance(part, Part):
        raise CheckpointError("it does not describe a part")
    return part


def _check_exists(path: Path) -> None:
    """Raise `CheckpointError` if `path` is no folder, or has no file of a saved part."""
    if not path.is_dir():
        what = "it is a file" if path.exists() else "no such directory"
        raise CheckpointError(f"{path} is not the folder of a saved model: {what}")
    if not any((path / name).exists() for name in FILES):
        hint = f"; load {path / MODEL}" if (path / MODEL).is_dir() else ""
        raise CheckpointError(
            f"{path} is not the folder of a saved model: {ARCHITECTURE} is missing{hint}"
        )


def architecture_of(part: Part) -> bytes:
    """Return the description of a part as `save` writes it.

    Raises:
        CheckpointError: If an argument of a part is not serializable, or if `load` would refuse the
            file, because it is too large or builds a part with other tensors.

    Warns:
        UserWarning: If `load` builds a part with other layers.
    """
    described = describe(part)
    data = json_bytes({"format": FORMAT, "part": described})
    if len(data) > MAX_ARCHITECTURE_BYTES:
        raise CheckpointError(
            f"the constructor arguments of a {type(part).__name__} have {len(data):,} bytes as "
            f"JSON; expected at most {MAX_ARCHITECTURE_BYTES:,}: pass long arguments as tensors"
        )
    _check_rebuilds(part, described)
    return data


def _check_rebuilds(part: Part, described: object) -> None:
    """Compare a part with the one that `load` builds: it may have changed since it was made."""
    name, tensors = type(part).__name__, names_of_tensors(part)
    header = Header(
        {names[0]: tuple(tensor.shape) for tensor, names in tensors.items()},
        sum(tensor.nbytes for tensor in tensors),
    )
    try:
        with preserved_state():
            built = check_builds(lambda: _build(described), header)
    except Exception as error:  # constructors raise various errors
        raise CheckpointError(
            f"a saved {name} could not be loaded, because load builds its parts from their "
            f"constructor arguments (None for a tensor): {error}. Make layers, and change them as "
            "by prune or weight_norm, in the constructor of a pyro_vae.Part"
        ) from error
    theirs = {where: _layer(module) for where, module in built.named_modules()}
    for where, module in part.named_modules():
        if _layer(module) != theirs.get(where):
            warnings.warn(
                f"a {name} that is loaded has {theirs.get(where, 'nothing')} in the place of "
                f"{_layer(module)} ({where}), because load builds parts from their constructor "
                "arguments. Make the layer in the constructor of a pyro_vae.Part",
                stacklevel=3,
            )


def _layer(module: nn.Module) -> str:
    """Return the class of a module, and the settings of a layer of torch."""
    kind = type(module)
    settings = module.extra_repr() if kind.__module__.startswith("torch.nn.") else ""
    return f"{kind.__module__}.{kind.__qualname__}({settings})"


def describe(part: Part) -> object:
    """Return the class name and the constructor arguments of a part, to be stored as JSON.

    Raises:
        CheckpointError: If an argument of a part is not serializable.
    """
    return _Describer().describe(part)


def results_folder(
    path: str | os.PathLike[str], files: Iterable[str], *, model: bool = True
) -> Path:
    """Create the folder of a run if it is missing; check that the results can be written into it.

    Args:
        path: Folder of the run.
        files: Names of the files to be written.
        model: Whether a model is to be written, too.

    Raises:
        CheckpointError: If the folder is not writable, or if the name of the model or of a file is
            used by something else.
    """
    folder = writable_folder(path, files)
    if model:
        check_replaceable(folder / MODEL, FILES, "saved part")
    return folder


def _fill(part: Part, saved: dict[str, Tensor]) -> None:
    """Set the tensors of a part to the saved ones, with the saved dtypes."""
    unused = set(saved)
    for tensor, names in names_of_tensors(part).items():
        found = [name for name in names if name in saved]
        value = saved[found[0]]
        unused -= {*found}
        kinds = tensor.is_floating_point(), value.is_floating_point()
        if value.shape != tensor.shape or kinds[0] != kinds[1]:
            raise CheckpointError(
                f"expected {found[0]!r} as {tensor.dtype} of shape {tuple(tensor.shape)}, got "
                f"{value.dtype} of shape {tuple(value.shape)}"
            )
        tensor.data = value
    if unused:
        raise CheckpointError(f"the model has no tensor {min(unused)!r}")


def _public_name(kind: type[Part]) -> str:
    """Return the public name of a class of parts, or the name of its module."""
    for namespace in NAMESPACES:
        if getattr(sys.modules.get(namespace), kind.__name__, None) is kind:
            return f"{namespace}.{kind.__name__}"
    return kind.class_name


class _Describer:
    """Converts a part to JSON data. A shared part is written once and referred to by number."""

    def __init__(self) -> None:
        self.indices: dict[int, int] = {}

    def describe(self, value: object, where: str = "part") -> object:
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
        if isinstance(value, np.bool_ | np.integer | np.floating):
            return value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which is not serializable: use a subclass of "
            "pyro_vae.Part, a number, a string or a list"
        )


class _Builder:
    """Builds a part from the data of `_Describer`, in the same order."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.classes = {_public_name(kind): kind for kind in Part.classes.values()}

    def build(self, value: object) -> object:
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
                "import the module that defines it and load again"
            )
        arguments = {name: self.build(item) for name, item in value["arguments"].items()}
        part = self.classes[name](**arguments)
        self.parts.append(part)
        return part
