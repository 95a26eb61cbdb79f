"""Random tables with columns of every kind, for pandas, polars, CSV and Parquet."""

import datetime

import numpy as np
import pandas as pd
import polars as pl

ROWS = 40
START = datetime.datetime(2020, 1, 1)


def _dates(rng):
    return [START + datetime.timedelta(days=int(d)) for d in rng.integers(0, 3000, ROWS)]


# For each kind of column: functions from a generator to a list of Python values.
COLUMNS = {
    "real": [
        lambda rng: rng.normal(50, 20, ROWS).tolist(),
        lambda rng: [*(-rng.integers(1, 90, ROWS - 1)).tolist(), 5],
    ],
    "positive": [lambda rng: rng.permutation(np.exp(3 + np.linspace(-2.5, 2.5, ROWS))).tolist()],
    "proportion": [
        lambda rng: rng.uniform(0.1, 0.9, ROWS).tolist(),
        lambda rng: [0.0, 1.0, *rng.uniform(0, 1, ROWS - 2).tolist()],
    ],
    "count": [lambda rng: [0, 3, *rng.poisson(4, ROWS - 2).tolist()]],
    "binary": [
        lambda rng: [True, False, *(rng.random(ROWS - 2) < 0.5).tolist()],
        lambda rng: ["yes", "no", *rng.choice(["yes", "no"], ROWS - 2).tolist()],
        lambda rng: [1, 2, *rng.integers(1, 3, ROWS - 2).tolist()],
        lambda rng: [0.5, 2.25, *rng.choice([0.5, 2.25], ROWS - 2).tolist()],
    ],
    "category": [
        lambda rng: ["ä", "b, c", 'd "e"', *rng.choice(["ä", "b, c", 'd "e"'], ROWS - 3).tolist()]
    ],
    "date": [
        _dates,
        lambda rng: [d + datetime.timedelta(seconds=86.4 * i) for i, d in enumerate(_dates(rng))],
    ],
    "identifier": [
        lambda rng: [f"row {i}" for i in range(ROWS)],
        lambda rng: [*range(1, ROWS + 1)],
    ],
    "constant": [lambda rng: ["same"] * ROWS, lambda rng: [7] * ROWS],
}


def random_table(seed):
    """Return the values and the kind of each column by name. Some columns have missing values."""
    rng = np.random.default_rng(seed)
    values, kinds = {}, {}
    for kind, makers in COLUMNS.items():
        for i, make in enumerate(makers):
            column = make(rng)
            if kind != "identifier" and rng.random() < 0.5:
                lost = rng.random(ROWS) < 0.2
                lost[:3] = False  # all levels of the first rows remain
                column = [None if gone else v for v, gone in zip(column, lost, strict=True)]
            values[f"{kind} {i}"], kinds[f"{kind} {i}"] = column, kind
    names = rng.permutation([*values]).tolist()
    return {name: values[name] for name in names}, kinds


def nullable(values):
    """Return a pandas frame of nullable types."""
    return pd.DataFrame({name: pd.array(column) for name, column in values.items()})


def _categories(values):
    frame = pd.DataFrame(values)
    texts = [name for name, column in values.items() if isinstance(column[0], str)]
    return frame.astype(dict.fromkeys(texts, "category"))


def _written(ending, write):
    def container(values, folder):
        path = folder / f"table{ending}"
        write(nullable(values), path)
        return path

    return container


CONTAINERS = {
    "pandas": lambda values, folder: pd.DataFrame(values),
    "pandas, nullable": lambda values, folder: nullable(values),
    "pandas, categories": lambda values, folder: _categories(values),
    "pandas, Arrow": lambda values, folder: nullable(values).convert_dtypes(
        dtype_backend="pyarrow"
    ),
    "pandas, repeated index": lambda values, folder: pd.DataFrame(values, index=[0] * ROWS),
    "polars": lambda values, folder: pl.DataFrame(values),
    "CSV": _written(".csv", lambda frame, path: frame.to_csv(path, index=False)),
    "semicolons": _written(".csv", lambda frame, path: frame.to_csv(path, index=False, sep=";")),
    "TSV, BOM": _written(
        ".tsv",
        lambda frame, path: frame.to_csv(path, index=False, sep="\t", encoding="utf-8-sig"),
    ),
    "Parquet": _written(".parquet", lambda frame, path: frame.to_parquet(path)),
    "Feather": _written(".feather", lambda frame, path: frame.to_feather(path)),
}
