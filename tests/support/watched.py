"""Watch a call: the files and programs that it touches, its processor time and its memory.

Files are watched by Python's audit events, in the thread of the call and in those that it starts.
Files that C code opens by itself are not seen.
"""

import contextlib
import os
import re
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]  # with the package and the tests
# Python, its libraries, and files of the system that libraries read when they are imported.
READABLE = tuple(
    f"{Path(path).resolve()}{os.sep}"
    for path in (sys.prefix, sys.base_prefix, ROOT, "/proc", "/sys", "/usr", "/etc", "/dev/null")
)
CHANGES = {
    f"os.{name}"
    for name in ("chmod", "chown", "link", "mkdir", "remove", "rename", "rmdir", "symlink",
                 "truncate", "utime")
}  # fmt: skip
NEVER = {
    "os.exec", "os.fork", "os.posix_spawn", "os.system", "pickle.find_class", "socket.connect",
    "socket.getaddrinfo", "subprocess.Popen",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STATUS = Path("/proc/self/status")


@dataclass
class Use:
    """What a call used.

    Attributes:
        touched: Audit events of files outside of the folder, of programs and of pickles.
        seconds: Processor time.
        peak: Most bytes that were used at a time, above those before the call.
    """

    touched: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0


@dataclass
class _Watch:
    folder: str
    use: Use
    others: frozenset[int]  # threads that ran before, such as the compiler's of an earlier test

    def event(self, name: str, args: tuple) -> None:
        if name in NEVER:
            self.use.touched.append(f"{name} {args!r:.200}")
        elif name in CHANGES:
            given = args[:2] if name in ("os.rename", "os.link", "os.symlink") else args[:1]
            handles = [arg for arg in args[len(given) :] if isinstance(arg, int) and arg > 0]
            for path in given:
                self.add(name, path, handles[0] if name in ("os.remove", "os.rmdir") and handles
                         else None, ())  # fmt: skip
        elif name == "open":
            writes = isinstance(args[2], int) and args[2] & WRITING
            self.add(name, args[0], None, () if writes else READABLE)

    def add(self, name: str, path: object, handle: int | None, allowed: tuple[str, ...]) -> None:
        """Record the path, unless it is in the folder or in an allowed one."""
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open
        base = os.getcwd() if handle is None else os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH109, PTH115
        found = os.path.normpath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH118
        if not f"{found}{os.sep}".startswith((self.folder, *allowed)):
            self.use.touched.append(f"{name} {found}")


_WATCHES: list[_Watch] = []


def _hook(name: str, args: tuple) -> None:
    if _WATCHES and threading.get_ident() not in _WATCHES[0].others:
        watch = _WATCHES.pop()  # the work of the hook has events of its own
        try:
            watch.event(name, args)
        finally:
            _WATCHES.append(watch)


_HOOKS: list[object] = []  # a hook cannot be removed: it is added once


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Use]:
    """Record what is used until the end of the context. Relative paths are those of `folder`."""
    if not _HOOKS:
        _HOOKS.append(_hook)
        sys.addaudithook(_hook)
    use = Use()
    before = _start_peak()
    started = time.process_time()
    with contextlib.chdir(folder):
        others = frozenset(sys._current_frames()) - {threading.get_ident()}
        _WATCHES.append(_Watch(f"{Path(folder).resolve()}{os.sep}", use, others))
        try:
            yield use
        finally:
            _WATCHES.clear()
            use.seconds, use.peak = time.process_time() - started, _peak() - before


def _start_peak() -> int:
    """Forget the largest size of the process so far; return its present size."""
    if _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
        return _size("VmRSS")
    tracemalloc.start()
    return 0


def _peak() -> int:
    if _STATUS.exists():
        return _size("VmHWM")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def _size(name: str) -> int:
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    return 1024 * int(kilobytes)
