"""Atomic writes and checksums for small groups of files.

Models and checkpoints are folders of a few files and their checksums in `SHA256SUMS`, which
`sha256sum --check` can read. Links are never followed, and no file content is used as a path. A
file is written under a temporary name and renamed, so a link at its path is replaced and its
target is not changed. A folder is removed only if all of its files have names of this package, or
names that a desktop or a file system gives to files that it makes in any folder.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pyro_vae.arguments.kinds import MAX_NAME

JSONObject: TypeAlias = dict[str, Any]  # as `json.loads` returns it

SUMS = "SHA256SUMS"
NEW, OLD = ".new-", ".old-"  # prefixes of files that are being written, and being removed
# Files that desktops, and NFS and FUSE for open files, make without being asked.
DESKTOP = re.compile(r"\.DS_Store|\._.+|\.directory|Thumbs\.db|desktop\.ini|\.(nfs|fuse_hidden)\w+")


class CheckpointError(ValueError):
    """A saved model or training run cannot be written or read. The message gives the reason.

    Example:
        >>> import tempfile
        >>> import pyro_vae as pv
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pv.load(folder)
        Traceback (most recent call last):
        pyro_vae.runtime.files.CheckpointError: ... is not the folder of a saved model: ...

    See also: `pyro_vae.load`, `pyro_vae.fit`.
    """


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files and their checksums into a folder and flush them to the disk.

    Raises:
        OSError: If the disk is full, or the folder is missing or read-only.
    """
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    for name, data in {**files, SUMS: "".join(sums).encode()}.items():
        _replace(folder / name, data)
    sync(folder)


@contextlib.contextmanager
def staged_folder(parent: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Write files into a temporary folder of `parent`, for the caller to rename when complete.

    The temporary folder is removed on exit unless it was renamed.

    Raises:
        OSError: If the disk is full, or `parent` is missing or read-only.
    """
    staged = unused(parent, NEW)
    staged.mkdir()  # with the permissions of the umask
    try:
        write_files(staged, files)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def replaced(path: Path) -> Path:
    """Return the temporary path of a folder while a new one replaces it."""
    name = path.name
    if len(os.fsencode(f".{name}.old")) > MAX_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}.old")


def or_replaced(path: Path) -> Path:
    """Return the folder to read: the replaced one if a process was killed in `replace_folder`."""
    old = replaced(path)
    return old if not path.exists() and is_folder(old) else path


def check_replaceable(path: Path, names: Collection[str], kind: str) -> None:
    """Check that `path`, and the temporary name of a replaced folder, can be replaced without loss.

    Args:
        path: Folder to write.
        names: Names of the files that it may have.
        kind: What the files are, for the error.

    Raises:
        CheckpointError: If one of them is a link or a mount point, or contains other files.
    """
    for folder in (path, replaced(path)):
        check_folder(folder)
        if folder.is_mount():
            raise CheckpointError(
                f"{folder} is a mount point, which cannot be replaced: choose another folder, such "
                f"as {folder / path.name}"
            )
        if folder.exists() and (others := foreign(folder, names)):
            raise CheckpointError(
                f"{folder} exists and is no {kind} ({others[0]!r}): choose another folder, "
                "because saving replaces its content"
            )


def replace_folder(path: Path, files: Mapping[str, bytes], kind: str) -> None:
    """Write files and their checksums to a folder, in the place of an earlier one with these files.

    If the process is killed at any time, `or_replaced` finds either the old or the new folder.

    Args:
        path: Folder to write.
        files: Content of the files by name.
        kind: What the files are, for the error.

    Raises:
        CheckpointError: If `path` is a link or a mount point, or contains other files, which would
            be lost.
        OSError: If the folder cannot be written. Its old content is kept.
    """
    names = (*files, SUMS)
    check_replaceable(path, names, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    old = replaced(path)
    with staged_folder(path.parent, files) as staged:
        if path.exists():
            remove_folder(old, names)
            if old.exists():  # a file in it is open, on NFS
                old.rename(unused(path.parent, OLD))
            path.rename(old)  # it is read until the new folder is renamed
        staged.rename(path)
        sync(path.parent)
        remove_folder(old, names)


def read_files(folder: Path, max_bytes: Mapping[str, int | None]) -> dict[str, bytes]:
    """Read files that `write_files` wrote.

    Args:
        folder: Folder of the files.
        max_bytes: Maximum length of each file by name; None for no limit.

    Raises:
        CheckpointError: If a file is missing, too long, a link, or does not match its checksum.
    """
    expected = read_file(folder, SUMS, 4096)
    files = {name: read_file(folder, name, limit) for name, limit in max_bytes.items()}
    for name, data in files.items():
        if f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode() not in expected:
            raise CheckpointError(
                f"{folder} is damaged: {name} does not match its checksum in {SUMS}"
            )
    return files


def read_file(
    folder: Path, name: str, max_bytes: int | None = None, *, first: int | None = None
) -> bytes:
    """Read one file of a folder, or its first bytes, without comparing its checksum.

    Raises:
        CheckpointError: If the file is missing, too long, a link or not a regular file.
    """
    try:
        with os.fdopen(_open_regular(folder / name), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{folder} is damaged: {name} is not a regular file")
            if max_bytes is not None and status.st_size > max_bytes:
                raise CheckpointError(
                    f"{folder} is damaged: expected at most {max_bytes:,} bytes in {name}, got "
                    f"{status.st_size:,}"
                )
            return file.read(status.st_size if first is None else first)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is damaged: {name} is missing") from error
    except OSError as error:
        if error.errno == errno.ELOOP or (folder / name).is_symlink():
            raise CheckpointError(f"{folder} is damaged: {name} is a link") from error
        if (folder / name).is_dir():
            raise CheckpointError(f"{folder} is damaged: {name} is not a regular file") from error
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def _open_regular(path: Path) -> int:
    """Open a file for reading, without following a link or waiting for a pipe."""
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():  # Windows
        raise OSError(errno.ELOOP, "it is a link", str(path))
    more = ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
    return os.open(path, os.O_RDONLY | sum(getattr(os, name, 0) for name in more))


def write_file(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write a file atomically: at any time, either the old or the new content is complete.

    A link at `path` is replaced, and its target is not changed.

    Raises:
        OSError: If the file cannot be written.
        CheckpointError: If `path` is a pipe, a socket or a device.
    """
    path = Path(path)
    _replace(path, data)
    sync(path.parent)


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write a JSON file atomically, as `write_file` does; null for numbers that are not finite."""
    write_file(path, json_bytes(finite_or_none(content)))


def finite_or_none(content: object) -> object:
    """Return JSON content with None in the place of NaN and infinities, which JSON lacks."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite_or_none(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_none(value) for value in content]
    return content


def json_bytes(content: object) -> bytes:
    """Return the bytes of a JSON file."""
    return (json.dumps(content, indent=1) + "\n").encode()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise `CheckpointError` if an output folder cannot be written, before any work is lost."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the output folder {str(folder)!r} cannot be written ({error.strerror or error}): "
            "choose another folder"
        ) from error


def writable_folder(path: str | os.PathLike[str], files: Iterable[str] = ()) -> Path:
    """Create the folder `path` if it is missing, and check that `files` can be written into it.

    Raises:
        CheckpointError: If the folder is not writable, or if one of `files` is a folder.
    """
    folder = Path(path)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    for name in files:
        _check_file(folder / name)
        if is_folder(folder / name):
            raise CheckpointError(
                f"{folder / name} is a folder; expected a file or nothing: move the folder away, "
                "or choose another output folder"
            )
    return folder


def _check_file(path: Path) -> None:
    """Check that `path` is not a pipe, a socket or a device, which a file would replace.

    Raises:
        CheckpointError: If it is one of these.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise CheckpointError(
                f"{path} is a pipe, a socket or a device; expected a file or nothing: choose "
                "another path"
            )


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder and not a link to a folder."""
    return path.is_dir() and not path.is_symlink()


def check_folder(path: Path) -> None:
    """Check that `path` is a folder or does not exist. Links are not followed.

    Raises:
        CheckpointError: If `path` is a link or a file, or cannot be a path, such as a name of more
            than 255 bytes.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be used ({error.strerror}): choose another path"
        ) from error
    if not is_folder(path):
        kind = "a link, and links are not followed" if path.is_symlink() else "not a folder"
        raise CheckpointError(f"{path} is {kind}: remove it, or choose another path")


def foreign(path: Path, names: Collection[str]) -> list[str]:
    """Return the entries of a folder that are not regular files with one of these names, sorted.

    Temporary files of this package and files of `DESKTOP` are not included. If `path` is not a
    folder, or is a link, the result is the name of `path`.
    """
    if not is_folder(path):
        return [path.name]
    with os.scandir(path) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.is_file(follow_symlinks=False)
            or not (entry.name in names or _is_new(entry.name) or DESKTOP.fullmatch(entry.name))
        )


def remove_folder(path: Path, names: Collection[str]) -> None:
    """Remove a folder if `foreign` finds nothing else in it; otherwise change nothing."""
    if not foreign(path, names):
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove the temporary files and folders that a killed process left in a folder."""
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
    """Flush the entries of a folder to the disk, so that a rename survives a loss of power.

    Does nothing on systems that cannot open folders, such as Windows.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_new(name: str) -> bool:
    """Return whether `name` is a temporary name of `_replace`."""
    return re.fullmatch(re.escape(NEW) + "[0-9a-f]{16}", name) is not None


def _replace(path: Path, data: bytes | memoryview) -> None:
    """Write a temporary file in the folder of `path`, then rename it to `path`."""
    _check_file(path)
    if is_folder(path):
        raise IsADirectoryError(
            errno.EISDIR, "expected the path of a file, got a folder", str(path)
        )
    temporary = unused(path.parent, NEW)
    try:
        _write(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, data: bytes | memoryview) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
