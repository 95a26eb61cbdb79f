"""Model the loss of power: what has not been flushed to the disk is lost.

`recording` logs the operations of this process on the files of a folder: creating, renaming and
removing entries (by Python's audit events), and `os.fsync` with the content of the file at that
time. `after_power_loss` builds the folder that a disk may have if the power fails after some of
these operations. Files that were not flushed are empty. The entries of each folder are those of a
random time since it was last flushed.
"""

import contextlib
import os
import random
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


@dataclass
class Log:
    """The operations in a folder, in order: name of the event and its arguments."""

    root: str
    entries: list[tuple[str, Any]] = field(default_factory=list)

    def event(self, name: str, args: tuple[Any, ...]) -> None:
        """Add an audit event, if it is about a file in the folder."""
        if name not in EVENTS:
            return
        given = args[:2] if name == "os.rename" else args[:1]
        paths = [os.fspath(path) for path in given if isinstance(path, str | os.PathLike)]
        if not paths or not all(str(path).startswith(self.root) for path in paths):
            return
        if name == "open":
            if isinstance(args[2], int) and args[2] & os.O_CREAT and paths[0] != self.root:
                self.entries.append(("create", paths[0]))
        else:
            self.entries.append((name.removeprefix("os."), tuple(paths)))


@contextlib.contextmanager
def recording(folder: Path) -> Iterator[Log]:
    """Log the operations on the files of a folder until the end of the context."""
    log, real, is_on = Log(str(folder)), os.fsync, True

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if is_on:
            log.event(name, args)

    def fsync(descriptor: int) -> None:
        real(descriptor)
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if path.startswith(log.root):
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            content = None if is_folder else Path(f"/proc/self/fd/{descriptor}").read_bytes()
            log.entries.append(("sync", (path, content)))

    sys.addaudithook(hook)  # cannot be removed: `is_on` ends it
    os.fsync = fsync
    try:
        yield log
    finally:
        os.fsync, is_on = real, False


class _Folder:
    """Entries of a folder: at each operation since the last flush, oldest first."""

    def __init__(self) -> None:
        self.versions: list[dict[str, object]] = [{}]

    @property
    def now(self) -> dict[str, object]:
        return self.versions[-1]

    def change(self, name: str, entry: object | None) -> None:
        """Add, replace or remove an entry."""
        entries = {key: value for key, value in self.now.items() if key != name}
        self.versions.append(entries if entry is None else {**entries, name: entry})


class _File:
    """A file and its content at the last flush; None before."""

    def __init__(self) -> None:
        self.content: bytes | None = None


def after_power_loss(log: Log, count: int, target: Path, draw: random.Random) -> None:
    """Write the folder that a disk may have if the power fails after `count` operations.

    Args:
        log: Operations, from an empty folder on.
        count: Number of operations before the loss.
        target: Folder to write; it does not exist.
        draw: Source of the state of operations that were not flushed.
    """
    root = _Folder()

    def find(path: str) -> tuple[_Folder, str]:
        *parents, name = Path(path).relative_to(log.root).parts
        folder = root
        for parent in parents:
            found = folder.now[parent]
            assert isinstance(found, _Folder)
            folder = found
        return folder, name

    for kind, args in log.entries[:count]:
        if kind == "create":
            folder, name = find(args)
            folder.change(name, folder.now.get(name) or _File())
        elif kind == "rename":
            (one, name), (other, new) = find(args[0]), find(args[1])
            moved = one.now[name]
            one.change(name, None)
            other.change(new, moved)
            if one is other:  # a rename is atomic
                del one.versions[-2]
        elif kind == "mkdir":
            if args[0] != log.root:
                folder, name = find(args[0])
                folder.change(name, folder.now.get(name) or _Folder())
        elif kind in ("remove", "rmdir"):
            folder, name = find(args[0])
            folder.change(name, None)
        else:
            path, content = args
            if content is None:
                entry: object = root
                if path != log.root:
                    folder, name = find(path)
                    entry = folder.now[name]
                assert isinstance(entry, _Folder)
                entry.versions = [entry.now]
            else:
                folder, name = find(path)
                entry = folder.now[name]
                assert isinstance(entry, _File)
                entry.content = content
    _write(root, target, draw)


def _write(folder: _Folder, target: Path, draw: random.Random) -> None:
    target.mkdir()
    for name, entry in draw.choice(folder.versions).items():
        if isinstance(entry, _Folder):
            _write(entry, target / name, draw)
        else:
            assert isinstance(entry, _File)
            (target / name).write_bytes(entry.content or b"")
