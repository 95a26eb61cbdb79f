"""Folders of a few files that are whole, or known not to be: what checkpoints and models lie in.

Beside the files stands `SHA256SUMS` with their checksums, as `sha256sum --check` reads them. A
link is never followed, and no name that a file says is ever used as a path.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"


class CheckpointError(ValueError):
    """A saved part or run that cannot be written, read or built; the message says why."""


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files and their checksums into a folder, and have them reach the disk.

    Raises:
        OSError: when the disk is full, or the folder gone or read-only.
    """
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    for name, data in {**files, SUMS: "".join(sums).encode()}.items():
        _write(folder / name, data)
    sync(folder)


def read_files(folder: Path, max_bytes: Mapping[str, int | None]) -> dict[str, bytes]:
    """Read files that `write_files` wrote.

    Args:
        folder: where they are.
        max_bytes: the names of the files, and how long each may be.

    Raises:
        CheckpointError: when a file is missing, too long, a link, or not what was written.
    """
    expected = read_file(folder, SUMS, 4096)
    files = {name: read_file(folder, name, limit) for name, limit in max_bytes.items()}
    for name, data in files.items():
        if f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode() not in expected:
            raise CheckpointError(f"{folder} is damaged: {name} is not what {SUMS} says")
    return files


def read_file(folder: Path, name: str, max_bytes: int | None = None) -> bytes:
    """Read one file of a folder, whatever its checksum.

    Raises:
        CheckpointError: when it is missing, too long or a link.
    """
    path = folder / name
    try:
        if path.is_symlink():
            raise CheckpointError(f"{folder} is damaged: {name} leads out of the folder by a link")
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise CheckpointError(
                f"{folder} is damaged: {name} has {size:,} bytes, at most {max_bytes:,} are "
                "expected"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is damaged: {name} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that is there whole, the old one or the new one, at any instant.

    Raises:
        OSError: when it cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.new")
    try:
        _write(aside, data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write what JSON can hold to a file, as `write_file` does."""
    write_file(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """Return what JSON can hold as the text of a file."""
    return (json.dumps(content, indent=1) + "\n").encode()


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


def sync(folder: Path) -> None:
    """Flush the folder's own entries, without which a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
