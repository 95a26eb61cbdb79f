"""A lock on a folder that ends with the process that holds it."""

import contextlib
import errno
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_vae.arguments import setting
from pyro_vae.runtime.files import CheckpointError, write_file

LOCK = ".lock"
# A second file for the process number: Windows does not let other processes read a locked file,
# and some versions of filelock truncate the lock file when they fail to lock it.
HOLDER = ".lock.pid"
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}  # some network file systems


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold the lock of a folder. The system releases it when the process ends, however it ends.

    Yields:
        A function to call before each write. It raises `CheckpointError` if the folder was removed
        and another run has locked a new one of its name.

    Raises:
        CheckpointError: If another run holds the lock. If a link, a folder or a file of another
            program has the name of a lock file. If the lock file cannot be opened.

    Warns:
        UserWarning: If the file system has no locks.
    """
    lock, holder = folder / LOCK, folder / HOLDER
    # Versions without HOLDER wrote the process number into the lock file.
    earlier, number = _process_number(lock), _process_number(holder)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise CheckpointError(
            f"another run writes into {str(folder)!r} (process {earlier or number or 'unknown'}): "
            f"wait until it ends, or choose another folder ({setting('out')})"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise CheckpointError(
                f"the lock file {lock} cannot be opened ({error.strerror}): choose another output "
                "folder"
            ) from error
        warnings.warn(
            f"the file system of {str(folder)!r} has no locks ({error.strerror}): do not start "
            "another run in this folder before this one ends",
            stacklevel=2,
        )
        lock.touch()
    try:
        if earlier:
            os.truncate(lock, 0)
        with contextlib.suppress(OSError):  # a full disk: the number is only for the message
            write_file(holder, str(os.getpid()).encode())
        mine = lock.stat()  # not reused while the file is open

        def check() -> None:
            # Without a lock file, no other run has the folder.
            with contextlib.suppress(FileNotFoundError):
                if not os.path.samestat(mine, lock.stat()):
                    raise CheckpointError(
                        f"{folder} was removed, and another run has locked it since"
                    )

        yield check
    finally:
        with contextlib.suppress(OSError, CheckpointError):  # a lost or read-only folder
            if _process_number(holder) == str(os.getpid()):
                holder.unlink(missing_ok=True)
        held.release()


def _process_number(path: Path) -> str:
    """Return the process number in a lock file; empty if the file is missing or empty."""
    try:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            kind = "a link" if path.is_symlink() else "not a regular file"
            raise CheckpointError(
                f"the lock file {path} is {kind}: remove it, or choose another output folder"
            )
        with path.open("rb") as file:
            number = file.read(21)
    except FileNotFoundError:
        return ""
    except PermissionError:
        return ""  # locked, on Windows; elsewhere `FileLock` raises
    if not re.fullmatch(rb"\d{0,20}", number):
        raise CheckpointError(
            f"{path} does not contain a process number, so it is not a lock file of pyro_vae: "
            f"move it away, or choose another folder ({setting('out')})"
        )
    return number.decode()
