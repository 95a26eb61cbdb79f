"""A training run's folder: one run at a time, and checkpoints that are whole or not there.

A checkpoint is a folder of two files and their checksums (`folders`). `tensors.safetensors` holds
the tensors and `state.json` all the rest. Nothing is unpickled.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_vae.checkpointing.model_folder import FILES as MODEL_FILES
from pyro_vae.runtime.files import (
    NEW,
    OLD,
    SUMS,
    CheckpointError,
    check_folder,
    foreign,
    is_folder,
    open_lock,
    read_files,
    remove_folder,
    remove_leftovers,
    sync,
    unused,
    write_files,
)

FORMAT = 1
STATE, TENSORS = "state.json", "tensors.safetensors"
FILES = (STATE, TENSORS, SUMS)
MAX_STATE_BYTES = 16 * 2**20  # the history of 100,000 epochs; more is no state of a run
KEEP_LAST = 2

State = dict[str, Any]
Checkpoint = tuple[dict[str, Tensor], State]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator["CheckpointStore"]:
    """Hold the folder for this run and give its checkpoints; the lock ends with the process.

    Raises:
        CheckpointError: while another run holds it, or when a link or a file of something else has
            the place of the lock or of the checkpoints.
    """
    import fcntl  # not on Windows

    path = folder / ".lock"
    with open_lock(path) as file:
        owner = file.read(21)
        if not re.fullmatch(rb"\d{0,20}", owner):
            raise CheckpointError(
                f"{path} holds no process number, so it is not a lock of pyro_vae: move it away, "
                "or choose another folder (out=)"
            )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another run writes into {str(folder)!r} (process {owner.decode()}): wait "
                "for its end, or choose another folder (out=)"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()).encode())
        file.flush()
        remove_leftovers(folder, MODEL_FILES)  # of a run that was killed while it saved its model
        yield CheckpointStore(folder)


class CheckpointStore:
    """The checkpoints of a run: the last `KEEP_LAST` and the best, in `folder/checkpoints`.

    `opened` makes it: only the run that holds the folder's lock may write.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.before = folder / "checkpoints", folder / "checkpoints-before"
        for path in (self.path, self.before):
            check_folder(path)
        self.path.mkdir(exist_ok=True)
        sync(folder)
        remove_leftovers(self.path, FILES)  # of a run that was killed at a checkpoint

    def names(self) -> list[str]:
        """Return the names of the checkpoints that are there, oldest first."""
        return [path.name for path in _numbered(self.path)]

    def next_name(self) -> str:
        """Return the name that the next checkpoint gets."""
        return _name(int(max(self.names(), default="0")) + 1)

    def write(self, tensors: dict[str, Tensor], state: State, best: str | None) -> None:
        """Write a checkpoint, then remove all but the last ones and the one called `best`.

        It is written aside, flushed to the disk, read back and renamed, so that a run killed at
        any instant leaves the old checkpoints or the new one too, each of them whole.

        Raises:
            OSError: when the disk is full or the folder gone; older checkpoints stay.
        """
        name = self.next_name()
        files = {
            STATE: json.dumps({"format": FORMAT, **state}, indent=1).encode(),
            TENSORS: safetensors.torch.save(tensors),
        }
        aside = Path(tempfile.mkdtemp(dir=self.path, prefix=NEW))
        try:
            write_files(aside, files)
            read(aside)
            aside.rename(self.path / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        sync(self.path)
        for old in self.names()[:-KEEP_LAST]:
            if old != best and not foreign(self.path / old, FILES):
                # Out of sight at once: a half-removed checkpoint is never taken for one.
                _remove((self.path / old).rename(unused(self.path, OLD)))

    def whole(self) -> Iterator[Checkpoint]:
        """Read the checkpoints that are whole, newest first, with a warning for each that is not.

        Yields:
            Its tensors and the rest.
        """
        for name in reversed(self.names()):
            try:
                yield read(self.path / name)
            except CheckpointError as error:
                warnings.warn(f"{error}; the checkpoint before it is tried", stacklevel=4)

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that is whole; None where no checkpoint was ever written.

        Raises:
            CheckpointError: when there are checkpoints and none is whole.
        """
        checkpoint = next(self.whole(), None)
        if checkpoint is None and (names := self.names()):
            raise CheckpointError(
                f"none of the {len(names)} checkpoints in {self.path} is whole: start again "
                "without resume"
            )
        return checkpoint

    def set_aside(self) -> None:
        """Move an earlier run's checkpoints to `checkpoints-before`, in place of those there.

        Links do not move. A folder in `checkpoints-before` that holds other files stays there.
        """
        earlier = [path for path in _numbered(self.path) if is_folder(path)]
        if not earlier:
            return
        self.before.mkdir(exist_ok=True)
        for path in _numbered(self.before):
            _remove(path)
        number = 0
        for path in earlier:  # the newest one last: until then `newest` finds it
            number = max(number + 1, int(path.name))
            while os.path.lexists(self.before / _name(number)):
                number += 1
            path.rename(self.before / _name(number))
        for folder in (self.before, self.path, self.path.parent):
            sync(folder)


def read(path: Path) -> Checkpoint:
    """Read the checkpoint in the folder `path`: its tensors, on the CPU, and the rest.

    Raises:
        CheckpointError: unless it is whole.
    """
    if path.is_symlink():
        raise CheckpointError(f"{path} is damaged: it leads out of its folder by a link")
    files = read_files(path, {STATE: MAX_STATE_BYTES, TENSORS: None})
    try:
        state = json.loads(files[STATE])
        if not isinstance(state, dict) or not isinstance(state.get("format"), int):
            raise CheckpointError(f"{path} is damaged: {STATE} is no state of a run")
        if state["format"] > FORMAT:
            raise CheckpointError(
                f"{path} has format {state['format']}, this version of pyro_vae reads up to "
                f"{FORMAT}: upgrade pyro_vae"
            )
        return safetensors.torch.load(files[TENSORS]), state
    except (SafetensorError, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _name(number: int) -> str:
    return f"{number:08d}"


def _numbered(folder: Path) -> list[Path]:
    """Return what has the name of a checkpoint, oldest first; nothing if the folder is gone."""
    return sorted(path for path in folder.glob("*") if re.fullmatch(r"\d{8}", path.name))


def _remove(path: Path) -> None:
    remove_folder(path, FILES)
