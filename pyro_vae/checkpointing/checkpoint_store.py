"""Atomically written checkpoints of one training run at a time.

A checkpoint is a folder of two files and their checksums (`runtime.files`): `tensors.safetensors`
and `state.json`. Reading a checkpoint unpickles nothing.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pyro_vae.arguments import setting
from pyro_vae.checkpointing.model_folder import FILES as MODEL_FILES
from pyro_vae.runtime.files import (
    OLD,
    SUMS,
    CheckpointError,
    JSONObject,
    check_folder,
    foreign,
    is_folder,
    read_files,
    remove_folder,
    remove_leftovers,
    staged_folder,
    sync,
    unused,
    writing,
)
from pyro_vae.runtime.folder_lock import locked
from pyro_vae.runtime.json_schema import (
    COUNT,
    HISTORY,
    MAX_BYTES,
    PLACE,
    TEXTS,
    Flag,
    ListOf,
    Maybe,
    Number,
    Record,
    Text,
    parse,
)

FORMAT = 1
STATE, TENSORS = "state.json", "tensors.safetensors"
FILES = (STATE, TENSORS, SUMS)
KEEP_LAST = 2

_PROGRESS = Record(
    {
        "epoch": PLACE,
        "batch": COUNT,
        "step": COUNT,
        "first": Maybe(Number()),
        "total": Number(),
        "num_seen": COUNT,
        "history": HISTORY,
        "best": Record(others=Number()),
        "best_checkpoint": Maybe(Text()),
        "stopped": Maybe(Text()),
        "seconds": Number(0, 1e12),
        "epoch_seconds": Number(0, 1e12),
    },
    {"rate_factor": Number(2**-1000, 1), "num_averaged": COUNT},
)
_GROUP = Record(
    {"parameters": ListOf(Text()), "settings": Record()}, {"start": Record(), "changed": Record()}
)
_OPTIMIZER = Record(
    {"groups": ListOf(_GROUP), "numbers": Record(others=Record())},
    {"additions": ListOf(ListOf(Text())), "attributes": Record()},
)
_PATHS = ListOf(Text())
_SIZE = Record({"rows": PLACE, "steps": COUNT, "compiled": Flag()})
_COMPILATION = Record({"enabled": Flag(), "started": Flag(), "sizes": ListOf(_SIZE)})
SCHEMA = Record(
    {
        "progress": _PROGRESS,
        "settings": Record({"epochs": PLACE}),
        "versions": TEXTS,
        "objective": ListOf(Record()),
        "trained": ListOf(Text()),
        "update_outside": Flag(),
        "optimizer": _OPTIMIZER,
    },
    {
        "loader": Record(),
        "identity": Record(
            {
                "entries": TEXTS,
                "library": TEXTS,
                "varying": Record({"entries": _PATHS, "library": _PATHS}),
            }
        ),
        "rates": ListOf(ListOf(Number())),
        "compilation": _COMPILATION,
    },
)

Checkpoint = tuple[dict[str, Tensor], JSONObject]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator["CheckpointStore"]:
    """Lock the folder of a run and yield its checkpoints.

    Raises:
        CheckpointError: If another run holds the lock, if a link or a file of another program has
            the name of a lock file or of a folder of checkpoints, or if the disk is full.
    """
    with locked(folder) as check:
        with writing(folder):
            remove_leftovers(folder, MODEL_FILES)  # of a run that was killed while saving its model
            store = CheckpointStore(folder)
        store.check_lock = check
        yield store


class CheckpointStore:
    """The checkpoints of a run in `folder/checkpoints`: the last `KEEP_LAST` and the best one.

    Use `opened` to create it: only the run that holds the lock of the folder may write.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.check_lock: Callable[[], None] | None = None  # called before each write
        self.path, self.before = folder / "checkpoints", folder / "checkpoints-before"
        for path in (self.path, self.before):
            check_folder(path)
        self.path.mkdir(exist_ok=True)
        sync(folder)
        remove_leftovers(self.path, FILES)  # of a run that was killed while writing a checkpoint

    def __getstate__(self) -> dict[str, object]:
        """Return what other processes of the group get; only the first one holds the lock."""
        return {**vars(self), "check_lock": None}

    def names(self) -> list[str]:
        """Return the names of all checkpoints, oldest first."""
        return [path.name for path in _numbered(self.path)]

    def next_name(self) -> str:
        """Return the name of the next checkpoint."""
        return _name(int(max(self.names(), default="0")) + 1)

    def write(self, tensors: dict[str, Tensor], state: JSONObject, best: str | None) -> None:
        """Write a checkpoint, then remove all but the last ones and the one named `best`.

        The checkpoint is written to a temporary folder, flushed, read back and renamed. A process
        that is killed at any time leaves the old checkpoints, or the old and the new one, intact.

        Raises:
            OSError: If the disk is full or the folder is missing. Older checkpoints are kept.
            CheckpointError: If the checkpoint cannot be read back. Older checkpoints are kept.
        """
        if self.check_lock is not None:
            self.check_lock()
        name = self.next_name()
        files = {
            STATE: json.dumps({"format": FORMAT, **state}, separators=(",", ":")).encode(),
            TENSORS: safetensors.torch.save(tensors),
        }
        with staged_folder(self.path, files) as staged:
            read(staged)
            staged.rename(self.path / name)
        sync(self.path)
        for old in self.names()[:-KEEP_LAST]:
            if old != best and not foreign(self.path / old, FILES):
                # Renamed first, so that a partly removed checkpoint is never read.
                _remove((self.path / old).rename(unused(self.path, OLD)))

    def intact(self) -> Iterator[Checkpoint]:
        """Read the intact checkpoints, newest first; warn about each damaged one.

        Yields:
            The tensors and the JSON state of a checkpoint.
        """
        for name in reversed(self.names()):
            try:
                yield read(self.path / name)
            except CheckpointError as error:
                warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=4)

    def newest(self) -> Checkpoint | None:
        """Read the newest intact checkpoint; return None if there are no checkpoints.

        Raises:
            CheckpointError: If there are checkpoints and all of them are damaged.
        """
        checkpoint = next(self.intact(), None)
        if checkpoint is None and (names := self.names()):
            raise CheckpointError(
                f"none of the {len(names)} checkpoints in {self.path} is intact: start again "
                f"without {setting('resume', True)}"
            )
        return checkpoint

    def set_aside(self) -> None:
        """Move the checkpoints of an earlier run to `checkpoints-before`.

        They replace the checkpoints in that folder. Links are not moved, and folders in
        `checkpoints-before` that contain other files are kept.
        """
        earlier = [path for path in _numbered(self.path) if is_folder(path)]
        if not earlier:
            return
        self.before.mkdir(exist_ok=True)
        for path in _numbered(self.before):
            _remove(path)
        number = 0
        for path in earlier:  # the newest one last, so that `newest` finds it until then
            number = max(number + 1, int(path.name))
            while os.path.lexists(self.before / _name(number)):
                number += 1
            path.rename(self.before / _name(number))
        for folder in (self.before, self.path, self.path.parent):
            sync(folder)


class CheckpointWriter:
    """Writes checkpoints in a thread while training continues. If the disk fails, it warns.

    Args:
        store: Destination of the checkpoints.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self.saved_step = 0  # step of the last checkpoint on disk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pyro_vae")
        self._writing: tuple[int, Future[None]] | None = None

    def start(
        self, tensors: dict[str, Tensor], state: JSONObject, step: int, best: str | None
    ) -> None:
        """Start to write a checkpoint. The tensors must not change until it is written."""
        self.wait()
        self._writing = step, self._thread.submit(self.store.write, tensors, state, best)

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Warns:
            UserWarning: If the checkpoint cannot be written.
        """
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        try:
            writing.result()
            self.saved_step = step
        except Exception as error:  # from the disk, or from the check of what was written
            self.fail(step, error)

    def fail(self, step: int, error: Exception) -> None:
        """Warn that a checkpoint cannot be written. The older ones are kept."""
        warnings.warn(
            f"the checkpoint of step {step} cannot be written ({error}); training continues, "
            f"and the last checkpoint is of step {self.saved_step}",
            stacklevel=3,
        )

    def close(self) -> None:
        """Wait for the checkpoint that is being written and end the thread."""
        self.wait()
        self._thread.shutdown()


def read(path: Path) -> Checkpoint:
    """Read the checkpoint in the folder `path`: its tensors, on the CPU, and its JSON state.

    Raises:
        CheckpointError: If the checkpoint is damaged or of a later format.
    """
    if path.is_symlink():
        raise CheckpointError(f"{path} is damaged: it is a link")
    files = read_files(path, {STATE: MAX_BYTES, TENSORS: None})
    version = parse(files[STATE], path / STATE, Record({"format": PLACE}))["format"]
    if version > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}; this version of pyro_vae reads formats up to {FORMAT}: "
            "upgrade pyro_vae"
        )
    try:
        state = parse(files[STATE], path / STATE, SCHEMA)
        return safetensors.torch.load(files[TENSORS]), state
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _name(number: int) -> str:
    return f"{number:08d}"


def _numbered(folder: Path) -> list[Path]:
    """Return the paths with names of checkpoints, oldest first; empty if `folder` is missing."""
    return sorted(path for path in folder.glob("*") if re.fullmatch(r"\d{8}", path.name))


def _remove(path: Path) -> None:
    remove_folder(path, FILES)
