"""Folders of a few files that are whole, or known not to be: what checkpoints and models lie in.

Beside the files stands `SHA256SUMS` with their checksums, as `sha256sum --check` reads them. A
link is never followed, and no name that a file says is ever used as a path. A file is created under
a new name and renamed, so a link or a file at its path is replaced and never written through. A
folder is removed only if it holds nothing but files of the package.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

SUMS = "SHA256SUMS"
NEW, OLD = ".new-", ".old-"  # prefixes of what is being written, and of what is being removed


class CheckpointError(ValueError):
    """A saved part or run that cannot be written, read or built; the message says why."""


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files and their checksums into a folder, and have them reach the disk.

    Raises:
        OSError: when the disk is full, or the folder gone or read-only.
    """
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    for name, data in {**files, SUMS: "".join(sums).encode()}.items():
        _replace(folder / name, data)
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
        CheckpointError: when it is missing, too long, a link or no regular file.
    """
    path = folder / name
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise CheckpointError(f"{folder} is damaged: {name} leads out of the folder by a link")
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{folder} is damaged: {name} is not a regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise CheckpointError(
                f"{folder} is damaged: {name} has {status.st_size:,} bytes, at most "
                f"{max_bytes:,} are expected"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is damaged: {name} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def write_file(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file that is there whole, the old one or the new one, at any instant.

    A link at `path` is replaced; its target stays as it was.

    Raises:
        OSError: when it cannot be written.
    """
    path = Path(path)
    _replace(path, data)
    sync(path.parent)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write what JSON can hold to a file, as `write_file` does."""
    write_file(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """Return what JSON can hold as the text of a file."""
    return (json.dumps(content, indent=1) + "\n").encode()


def writable_folder(path: str | os.PathLike[str], files: Iterable[str] = ()) -> Path:
    """Make the folder `path` where it is missing, and check that it can take `files`.

    Raises:
        CheckpointError: when it is not writable, or has a folder in the place of a file.
    """
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
    for name in files:
        if is_folder(folder / name):
            raise CheckpointError(
                f"{folder / name} is a folder, but a file is to be written there: move the folder "
                "away, or choose another output folder"
            )
    return folder


def is_folder(path: Path) -> bool:
    """Tell whether `path` is a folder and no link to one."""
    return path.is_dir() and not path.is_symlink()


def check_folder(path: Path) -> None:
    """Check that `path` is a folder or nothing; links are not followed.

    Raises:
        CheckpointError: when it is a link or a file.
    """
    if os.path.lexists(path) and not is_folder(path):
        kind = "a link, and links are not followed" if path.is_symlink() else "not a folder"
        raise CheckpointError(f"{path} is {kind}: remove it, or choose another path")


def open_lock(path: Path) -> BinaryIO:
    """Open a lock file to read and write it, and make it where it is missing.

    Raises:
        CheckpointError: when it is a link or no regular file, or cannot be opened.
    """
    try:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            kind = "a link" if path.is_symlink() else "not a regular file"
            raise CheckpointError(
                f"the lock file {path} is {kind}: remove it, or choose another output folder"
            )
        # The flag is for a link that is made after the check; not every system has it.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        return os.fdopen(os.open(path, flags, 0o666), "r+b")
    except OSError as error:
        raise CheckpointError(
            f"the lock file {path} cannot be opened ({error.strerror}): choose another output "
            "folder"
        ) from error


def foreign(path: Path, names: Collection[str]) -> list[str]:
    """Return what does not belong to a folder of files with these names, sorted.

    These are entries with other names, links and folders. If `path` itself is no folder, or a link,
    it is the name of `path`.
    """
    if not is_folder(path):
        return [path.name]
    with os.scandir(path) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.is_file(follow_symlinks=False)
            or not (entry.name in names or _is_new(entry.name))
        )


def remove_folder(path: Path, names: Collection[str]) -> None:
    """Remove a folder that holds only files with these names; leave everything else as it is."""
    if not foreign(path, names):
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove what a killed process has left in a folder: new files, and folders of such files."""
    for path in list(folder.iterdir()):
        if is_folder(path):
            if path.name.startswith((NEW, OLD)):
                remove_folder(path, names)
        elif _is_new(path.name) and not path.is_symlink():
            path.unlink(missing_ok=True)


def unused(folder: Path, prefix: str) -> Path:
    """Return a path in the folder that does not exist: the prefix and 16 random digits."""
    return folder / f"{prefix}{secrets.token_hex(8)}"


def sync(folder: Path) -> None:
    """Flush the folder's own entries, without which a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_new(name: str) -> bool:
    """Tell whether `_replace` gives a new file such a name."""
    return re.fullmatch(re.escape(NEW) + "[0-9a-f]{16}", name) is not None


def _replace(path: Path, data: bytes | memoryview) -> None:
    """Write a new file beside `path` and rename it."""
    aside = unused(path.parent, NEW)
    try:
        _write(aside, data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
