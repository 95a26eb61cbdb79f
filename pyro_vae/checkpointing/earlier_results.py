"""Move the results of an earlier run away before another run writes into the same folder."""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyro_vae.checkpointing.model_folder import FILES as MODEL_FILES
from pyro_vae.checkpointing.model_folder import MODEL
from pyro_vae.runtime import json_schema
from pyro_vae.runtime.files import (
    CheckpointError,
    finite_or_none,
    foreign,
    read_file,
    remove_folder,
    replaced,
    sync,
    unused,
)
from pyro_vae.runtime.json_schema import MAX_BYTES, Record, parse

HISTORY, METRICS, POSTERIOR, TRUST = "history.json", "metrics.json", "posterior.nc", "trust.json"
PICTURES = (
    "learning_curve", "latents", "samples", "reconstructions", "manifold", "traversals",
    "columns", "dependence", "imputation", "counts",
)  # fmt: skip
PRIOR_SAMPLES, CARD, EXPLORER = "prior_samples.png", "model_card.md", "explorer.html"
OTHERS = (PRIOR_SAMPLES, "prior_samples.csv", "schema.json", "page.html", EXPLORER, CARD)
FILES = (
    HISTORY, METRICS, POSTERIOR, TRUST, *OTHERS, *(f"{name}.png" for name in PICTURES)
)  # fmt: skip
BEFORE = "results-before"


def set_aside_results(folder: Path) -> None:
    """Move the model, scores and pictures in the folder of a run to `results-before`.

    They replace the results in that folder. If it has other files, or is a link, it is kept, and
    the results are moved to a folder with a number after that name. Links are not moved.

    Warns:
        UserWarning: If there are results. The message names the folder.
    """
    found = [folder / name for name in FILES if _is_file(folder / name)]
    models = (folder / MODEL, replaced(folder / MODEL))
    found += [path for path in models if path.exists() and not foreign(path, MODEL_FILES)]
    if not found:
        return
    moved, before = unused(folder, f"{BEFORE}-"), folder / BEFORE
    moved.mkdir()
    for path in found:
        path.rename(moved / path.name)
    for name in (MODEL, replaced(before / MODEL).name):
        remove_folder(before / name, MODEL_FILES)
    remove_folder(before, FILES)
    if not before.exists() and not before.is_symlink():
        moved = moved.rename(before)
    sync(folder)
    warnings.warn(
        f"{folder} has the results of an earlier run: they were moved to {moved}. Pass another "
        "folder (out=) to keep the results of several runs",
        stacklevel=2,
    )


def set_aside_other_results(folder: Path, history: Iterable[Mapping[str, object]]) -> None:
    """Move the results in a folder away if they are those of a run with another history.

    Warns:
        UserWarning: If results were moved.
    """
    recorded = _history(folder)
    given = json.loads(json.dumps(list(history)))
    if recorded is not None and finite_or_none(recorded) != finite_or_none(given):
        set_aside_results(folder)


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
