"""Saves and loads parts: what was built as data (JSON), what was learned as tensors (safetensors).

A saved part is a folder of two files. `architecture.json` holds class names and arguments, no code;
`weights.safetensors` holds parameters and buffers. Loading looks the names up among the `Part`
classes that are already imported and runs nothing that the folder says.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from pyro_vae.parts import Part

FORMAT = 1
ARCHITECTURE, WEIGHTS = "architecture.json", "weights.safetensors"


class CheckpointError(ValueError):
    """A saved part that cannot be written, read or built; the message says why."""


def save(part: Part, path: str | os.PathLike[str]) -> None:
    """Save a part, such as a `VAE`, into the folder `path`, which appears whole or not at all.

    Raises:
        CheckpointError: when an argument of a part cannot be written as data.
        OSError: when the folder cannot be written.
    """
    path = Path(path)
    described = {"format": FORMAT, "part": _Describer().describe(part)}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        (aside / ARCHITECTURE).write_text(json.dumps(described, indent=1) + "\n")
        save_model(part, str(aside / WEIGHTS))
        aside.chmod(0o755)
        if path.exists():
            old = aside.with_name(aside.name + "-old")
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """Build the part saved in the folder `path` and give it its weights.

    Raises:
        CheckpointError: when a file is missing or damaged, or when a class is not imported.
    """
    path = Path(path)
    try:
        described = json.loads((path / ARCHITECTURE).read_text())
        if described["format"] > FORMAT:
            raise CheckpointError(
                f"{path} has format {described['format']}, this version of pyro_vae reads up to "
                f"{FORMAT}: upgrade pyro_vae"
            )
        part = _Builder().build(described["part"])
        load_model(part, path / WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is no saved part: {error.filename} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / ARCHITECTURE} is damaged: {error!r}") from error
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path / WEIGHTS} is damaged or of another model: {error}"
        ) from error
    return part.to(device)


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` where it is missing; raise `CheckpointError` if it is not writable."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(
            f"the output folder {str(folder)!r} cannot be written ({error.strerror}): choose "
            "another one"
        ) from error
    return folder


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file aside, then rename it: it appears whole, in the old one's place, or not at all.

    Raises:
        OSError: when it cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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
            return {"class": type(value).class_name, "arguments": arguments}
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

    def build(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.build(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "shared" in value:
            return self.parts[value["shared"]]
        if value["class"] not in Part.classes:
            raise CheckpointError(
                f"the saved model has a part of class {value['class']!r}, which is not imported: "
                "import the module that defines it, then load again"
            )
        arguments = {name: self.build(item) for name, item in value["arguments"].items()}
        part = Part.classes[value["class"]](**arguments)
        self.parts.append(part)
        return part
