"""How observations are shown: as images, or as columns with names, ranges and levels."""

from typing import Any

import numpy as np

from pyro_vae.data.content import content_of
from pyro_vae.data.dataset import Dataset
from pyro_vae.runtime.files import JSONObject

SHOWN = 24  # columns that are shown
WIDE = 100.0  # ratio of positive numbers that are shown on a logarithmic scale


def observation_of(data: Dataset, x: np.ndarray) -> JSONObject:
    """Return the description of observations.

    Args:
        data: The data.
        x: Some of them, shape `(num_data, *event)`.
    """
    if content_of(data) == "images":
        return {"kind": "image", "shape": list(x.shape[1:])}
    rows = x.reshape(len(x), -1)
    columns = _columns(data, rows)
    spread = np.nanstd(np.log1p(np.abs(rows)), axis=0) if len(columns) > SHOWN else rows[0] * 0
    shown = np.sort(np.argsort(-np.nan_to_num(spread), kind="stable")[:SHOWN])
    return {"kind": "columns", "columns": columns, "shown": shown.tolist()}


def pixels(x: np.ndarray) -> np.ndarray:
    """Return images with values in [0, 1] as bytes."""
    return np.round(255 * np.clip(np.nan_to_num(x), 0, 1)).astype(np.uint8)


def _columns(data: Dataset, rows: np.ndarray) -> list[JSONObject]:
    schema: Any = data.schema
    names = list(schema.names()) if schema is not None else []
    if len(names) != rows.shape[1]:
        names = [f"x{i}" for i in range(rows.shape[1])]
    known = {column.name: column for column in getattr(schema, "modelled", ())}
    return [
        _column(name, values, known.get(name)) for name, values in zip(names, rows.T, strict=True)
    ]


def _column(name: str, values: np.ndarray, column: Any) -> JSONObject:
    observed = values[np.isfinite(values)]
    low, high = map(float, np.quantile(observed, [0.005, 0.995])) if len(observed) else (0.0, 1.0)
    is_count = bool((observed == np.round(observed)).all() and low >= 0)
    found: JSONObject = {
        "name": name,
        "low": 0.0 if is_count and low < high / 4 else low,
        "high": high,
        "log": low >= 0 and high > WIDE * max(low, 1.0),
    }
    if column is not None and column.num_levels:
        found["levels"] = [str(level) for level in column.levels]
    if column is not None and column.kind == "date":
        found["origin"] = column.origin
    return found
