"""Move the results of an earlier run away before another run writes into the same folder.

Results are recorded with their checksums (`runtime.records`). A file with the name of a result that
is not recorded, or was changed since, may be of the user: it is moved, and never deleted.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyro_vae.arguments import setting
from pyro_vae.checkpointing.model_folder import FILES as MODEL_FILES
from pyro_vae.checkpointing.model_folder import MODEL
from pyro_vae.runtime import json_schema
from pyro_vae.runtime.files import (
    SUMS,
    CheckpointError,
    finite_or_none,
    foreign,
    read_file,
    remove_folder,
    replaced,
    sync,
)
from pyro_vae.runtime.json_schema import MAX_BYTES, Record, parse
from pyro_vae.runtime.records import (
    BEFORE,
    RECORD,
    changed,
    digests,
    moved_away,
    record,
    recorded,
    set_aside_changed,
)

HISTORY, METRICS, POSTERIOR, TRUST = "history.json", "metrics.json", "posterior.nc", "trust.json"
PICTURES = (
    "learning_curve", "latents", "samples", "reconstructions", "manifold", "traversals",
    "columns", "dependence", "imputation", "counts",
)  # fmt: skip
PRIOR_SAMPLES, CARD, EXPLORER = "prior_samples.png", "model_card.md", "explorer.html"
OTHERS = (PRIOR_SAMPLES, "prior_samples.csv", "schema.json", "page.html", EXPLORER, CARD, RECORD)
FILES = (
    HISTORY, METRICS, POSTERIOR, TRUST, *OTHERS, *(f"{name}.png" for name in PICTURES)
)  # fmt: skip


def check_results(folder: Path) -> None:
    """Check that no file has the name of a result, unless the folder is that of an earlier run.

    Raises:
        CheckpointError: If a run has not written into the folder, and a run would replace a file.
    """
    if (found := _results(folder)) and not _is_of_run(folder):
        raise CheckpointError(
            f"{found[0]} is not the result of a run, and a run would replace it: move it away, or "
            "choose another output folder"
        )


def set_aside_results(folder: Path) -> None:
    """Move the model, scores and pictures in the folder of a run to `results-before`.

    They replace the results in that folder. They are moved to a folder with a number after that
    name, and nothing is deleted, if `results-before` has files that no run recorded or is a link,
    if only the results in it have scores, or if the files are not the results of a run. Links are
    not moved.

    Warns:
        UserWarning: If there are results. The message names the folder.
    """
    if not (found := _results(folder)):
        return
    is_of_run = _is_of_run(folder)
    moved, before = moved_away(found, folder), folder / BEFORE
    # A run that failed before its scores were written does not replace a finished one.
    is_finished = _is_file(moved / METRICS) or not _is_file(before / METRICS)
    if is_of_run and is_finished and not changed(before, FILES):
        for name in (MODEL, replaced(before / MODEL).name):
            remove_folder(before / name, MODEL_FILES)
        remove_folder(before, FILES)
        if not before.exists() and not before.is_symlink():
            moved = moved.rename(before)
    sync(folder)
    what = "the results of an earlier run" if is_of_run else "files with the names of results"
    warnings.warn(
        f"{folder} has {what}: they were moved to {moved}. Pass another folder "
        f"({setting('out')}) to keep the results of several runs",
        stacklevel=2,
    )


def set_aside_other_results(
    folder: Path, history: Iterable[Mapping[str, object]], names: Iterable[str]
) -> None:
    """Move the results in a folder away if they are those of a run with another history.

    Otherwise move those files that are to be written and that no run recorded.

    Warns:
        UserWarning: If results were moved.
    """
    found = _history(folder)
    given = json.loads(json.dumps(list(history)))
    is_other = found is not None and finite_or_none(found) != finite_or_none(given)
    if is_other or not _is_of_run(folder):
        set_aside_results(folder)
    else:
        set_aside_changed(folder, names)
    # A run of an earlier version has no record. Its files are left to be replaced.
    record(folder, {} if recorded(folder) else digests(folder, names))


def _results(folder: Path) -> list[Path]:
    """Return the files and models in a folder that have the names of results."""
    return [folder / name for name in FILES if _is_file(folder / name)] + [
        path
        for path in (folder / MODEL, replaced(folder / MODEL))
        if not foreign(path, MODEL_FILES) and any(_is_file(path / name) for name in MODEL_FILES)
    ]


def _is_of_run(folder: Path) -> bool:
    """Return whether a run has written into a folder: a history, a model or a checkpoint.

    The names of other results, such as `page.html`, prove nothing: a user may have chosen them.
    """
    models = (folder / MODEL, replaced(folder / MODEL))
    return (
        bool(_history(folder))
        or any(all(_is_file(path / name) for name in MODEL_FILES) for path in models)
        or any(folder.glob(f"checkpoints*/*/{SUMS}"))
    )


def _history(folder: Path) -> object:
    """Return the history of the run that wrote into a folder; None if it is not recorded."""
    for name in (HISTORY, METRICS):
        if _is_file(folder / name):
            try:
                data = read_file(folder, name, MAX_BYTES)
                if name == HISTORY:
                    return parse(data, folder / name, json_schema.HISTORY)
                schema = Record({"history": json_schema.HISTORY})
                return parse(data, folder / name, schema)["history"]
            except CheckpointError:
                return ()  # not written by this package: equal to no history
    return None


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
