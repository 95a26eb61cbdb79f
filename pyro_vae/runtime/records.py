"""The checksums of the results in the folder of a run, which tell them from files of the user."""

import contextlib
import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyro_vae.runtime.files import (
    CheckpointError,
    finite_or_none,
    json_bytes,
    read_file,
    sync,
    unused,
    write_file,
)

RECORD = "results.sha256"  # in the form of `sha256sum`
BEFORE = "results-before"
MAX_BYTES = 2**16


def write_result(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file atomically, as `write_file`; if its folder has a record, record it.

    A file of that name that is not recorded, or was changed since, is moved away first.

    Warns:
        UserWarning: If a file was moved. The message names the folder.
    """
    path = Path(path)
    set_aside_changed(path.parent, [path.name])
    write_file(path, data)
    if _is_file(path.parent / RECORD):
        record(path.parent, {path.name: hashlib.sha256(data).hexdigest()})


def write_json_result(path: str | os.PathLike[str], content: object) -> None:
    """Write a JSON file as `write_result` does; null for numbers that are not finite."""
    write_result(path, json_bytes(finite_or_none(content)))


def record(folder: Path, digests: Mapping[str, str]) -> None:
    """Add checksums of files by name to the record of a folder. A full disk is no error."""
    known = {**recorded(folder), **digests}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(known.items())]
    with contextlib.suppress(OSError, CheckpointError):
        write_file(folder / RECORD, "".join(lines).encode())


def recorded(folder: Path) -> dict[str, str]:
    """Return the checksums in the record of a folder by name; empty if it has none."""
    if not _is_file(folder / RECORD):
        return {}
    try:
        lines = read_file(folder, RECORD, MAX_BYTES).decode("utf-8", "replace").splitlines()
    except CheckpointError:
        return {}
    entries = (re.fullmatch(r"([0-9a-f]{64})  ([^/\\]+)", line) for line in lines)
    return {entry[2]: entry[1] for entry in entries if entry}


def changed(folder: Path, names: Iterable[str]) -> list[str]:
    """Return those files of a folder that are not in its record, or were changed since."""
    known = recorded(folder)
    return [name for name, found in digests(folder, names).items() if known.get(name) != found]


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the checksums of those files that are in a folder, without its record, by name."""
    found = [name for name in names if name != RECORD and _is_file(folder / name)]
    return {name: _digest(folder / name) for name in found}


def set_aside_changed(folder: Path, names: Iterable[str]) -> None:
    """Move those files that are to be written, and that no run recorded, to `results-before-...`.

    Folders without a record, among them those of runs of earlier versions, are left as they are.

    Warns:
        UserWarning: If files were moved. The message names the folder.
    """
    if not recorded(folder) or not (found := changed(folder, names)):
        return
    moved = moved_away([folder / name for name in found], folder)
    sync(folder)
    warnings.warn(
        f"{folder} has files with the names of results that the run did not write "
        f"({', '.join(found)}): they were moved to {moved}",
        stacklevel=2,
    )


def moved_away(paths: Iterable[Path], folder: Path) -> Path:
    """Move files and models to a new folder `results-before-...` in a folder; return it."""
    moved = unused(folder, f"{BEFORE}-")
    moved.mkdir()
    for path in paths:
        path.rename(moved / path.name)
    return moved


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
