"""The model card of a run: what the model is, its scores and limits, as a Markdown file."""

import re
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from pyro_vae.checkpointing.earlier_results import CARD, TRUST
from pyro_vae.evaluation import DESCRIPTIONS
from pyro_vae.models.base import Autoencoder
from pyro_vae.reporting.described import parts_of
from pyro_vae.runtime.files import CheckpointError, JSONObject, read_file
from pyro_vae.runtime.json_schema import MAX_BYTES, PLACE, ListOf, Record, Text, parse
from pyro_vae.runtime.records import write_result
from pyro_vae.runtime.tables import printable

TEMPLATE = "model_card.md.jinja"
# Names of settings in the card and in metrics.json.
DATA = {
    "data set": "dataset",
    "binarization": "binarization",
    "training data": "num_train",
    "test data": "num_test",
}
TRAINING = {
    "objective": "objective",
    "epochs": "epochs",
    "weights of epoch": "best_epoch",
    "average of the weights": "average",
    "batch size": "batch_size",
    "precision": "precision",
    "device": "device",
    "seed": "seed",
    "seconds": "train_seconds",
    "ended by": "stopped",
}
_TRUST = Record({"verdict": Text(), "reasons": ListOf(Text()), "num_data": PLACE})


def write(run: Path, metrics: JSONObject, vae: Autoencoder, trust: JSONObject | None) -> None:
    """Write `model_card.md` into the folder of a run, atomically.

    Args:
        run: Folder of the run.
        metrics: Contents of its metrics.json.
        vae: Model of the run. If it has a `schema`, the card contains it.
        trust: Contents of its trust.json, if there is one.

    Raises:
        OSError: If the file cannot be written.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(cell=_cell, code=_code)
    template = files("pyro_vae.reporting").joinpath(TEMPLATE).read_text(encoding="utf-8")
    schema = getattr(vae, "schema", None)
    card = environment.from_string(template).render(
        run=_cell(run.resolve().name),
        model=type(vae).__name__,
        parts=parts_of(vae),
        num_test=metrics.get("num_test", "?"),
        num_samples=metrics.get("num_importance_samples", "?"),
        proposal=metrics.get("proposal", "guide"),
        data=_settings(DATA, metrics),
        columns=[] if schema is None else schema.rows(),
        training=_settings(TRAINING, metrics),
        scores=[
            (what, metrics[f"test_{score}"], metrics[f"test_{score}_se"])
            for score, what in DESCRIPTIONS.items()
            if metrics.keys() >= {f"test_{score}", f"test_{score}_se"}
        ],
        unreliable=metrics.get("test_khat_share_above_threshold"),
        trust=trust,
        versions=metrics.get("versions", {}),
    )
    write_result(run / CARD, card.encode())


def read_trust(run: Path) -> JSONObject | None:
    """Return the contents of a run's trust.json; None if there is none, or it is damaged."""
    try:
        return parse(read_file(run, TRUST, MAX_BYTES), run / TRUST, _TRUST)
    except CheckpointError:
        return None


def _settings(names: dict[str, str], metrics: JSONObject) -> list[tuple[str, object]]:
    return [(name, metrics[key]) for name, key in names.items() if key in metrics]


def _cell(value: object) -> str:
    """Return a value as the text of a cell of a Markdown table, without markup of its own."""
    value = f"{value:,.0f}" if isinstance(value, float) else value
    text = re.sub(r"([\[\]|])", r"\\\1", _line(value))
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)  # the start of a tag


def _code(value: object) -> str:
    """Return a value as code in a cell of a Markdown table."""
    text = _line(value).replace("`", "'").replace("|", r"\|")
    return f"`{text}`"


def _line(value: object) -> str:
    return printable(" ".join(str(value).split()))
