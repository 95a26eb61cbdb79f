"""Tables as frames: files, pandas and polars frames and arrays, read through narwhals."""

import csv
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import array_files

SEPARATORS = ",;\t|"
MISSING = ("?", "-")  # read as missing in text files, in addition to those of pandas
MOSTLY = 0.9  # text of which this share is numbers or dates has faulty values, not levels
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?")


def is_frame(source: object) -> bool:
    """Return whether an object is a frame of pandas, polars or another library of narwhals."""
    return nw.dependencies.is_into_dataframe(source)


def is_source(data: object) -> bool:
    """Return whether data are in the form of a user: a path, a frame or an array of no tensor."""
    return isinstance(data, str | os.PathLike | np.ndarray) or is_frame(data) or is_matrix(data)


def is_matrix(source: object) -> bool:
    """Return whether an object is a sparse matrix of scipy, or AnnData."""
    return type(source).__module__.startswith(("scipy.sparse.", "anndata."))


def numbers_of(frame: Any) -> Tensor:
    """Return a frame of numbers as a float32 tensor, unchanged, with NaN for missing values.

    Raises:
        DataError: If a column has other values than numbers or truth values.
    """
    columns = []
    found = read(frame)
    for name in found.columns:
        kind = type_of(found[name])
        if kind not in ("boolean", "integer", "real"):
            raise DataError(
                f"column {name!r} has values of type {kind}, which are no numbers. pv.suggest("
                "frame) builds a VAE for tables with such columns; or leave the column out"
            )
        columns.append(values_of(found[name], "real")[0])
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))


def read(
    source: Any,
    separator: str | None = None,
    encoding: str = "utf-8",
    na: Sequence[str] = (),
    key: str | None = None,
) -> nw.DataFrame:
    """Return a table as a frame.

    Args:
        source: Path of a CSV, TSV, Parquet or Feather file, a frame, or an array of two dimensions
            or the path of its file.
        separator: Separator of a text file; by default the most frequent of `SEPARATORS` in the
            first line.
        encoding: Encoding of a text file.
        na: Further texts that are read as missing in a text file.
        key: Name of the array, if the file has several.

    Raises:
        DataError: If the file is damaged, or the table has no rows or repeated columns.
    """
    if isinstance(source, str | os.PathLike) and Path(source).suffix in array_files.ENDINGS:
        source = np.asarray(array_files.load(Path(source), key))
    if isinstance(source, str | os.PathLike):
        frame = _file(Path(source), separator, encoding, na)
    elif isinstance(source, np.ndarray):
        if source.ndim != 2:
            raise DataError(f"expected an array of rows and columns, got shape {source.shape}")
        frame = nw.from_dict(
            {f"x{i}": column for i, column in enumerate(source.T)}, backend="pandas"
        )
    else:
        try:
            frame = nw.from_native(source, eager_only=True)
        except Exception as error:  # duplicate columns, a lazy frame, another class
            raise DataError(f"cannot read a {type(source).__name__} as a table: {error}") from error
    if not len(frame) or not frame.columns:
        raise DataError(
            f"{name_of(source)} is empty: it has {len(frame)} rows, and the columns {frame.columns}"
        )
    return frame


def name_of(source: object) -> str:
    """Return a name for the data of a source."""
    return Path(source).stem if isinstance(source, str | os.PathLike) else "table"


def _file(path: Path, separator: str | None, encoding: str, na: Sequence[str]) -> nw.DataFrame:
    import pandas as pd

    reads = {".parquet": pd.read_parquet, ".feather": pd.read_feather}
    try:
        if path.suffix.lower() in reads:
            return nw.from_native(reads[path.suffix.lower()](path), eager_only=True)
        return _text(path, separator, encoding, na)
    except ImportError as error:
        raise DataError(
            f"reading {path.name} needs pyarrow: pip install 'pyro-vae[tables]'"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {encoding} text: byte {error.start} is {error.object[error.start]:#x}. "
            "Give its encoding, as in encoding='latin-1'"
        ) from error
    except (DataError, OSError):
        raise
    except Exception as error:  # ParserError, ArrowInvalid, ...
        raise DataError(f"{path} cannot be read as a table: {error}") from error


def _text(path: Path, separator: str | None, encoding: str, na: Sequence[str]) -> nw.DataFrame:
    import pandas as pd

    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    with path.open(encoding=encoding, newline="") as file:
        first = file.readline()
        if not first.strip():
            raise DataError(f"{path} is empty: expected a first line with the names of columns")
        if "\0" in first:
            raise DataError(f"{path} is not a text file")
        sep = separator or max(SEPARATORS, key=first.count)
    header = next(csv.reader([first], delimiter=sep))
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(
            f"{path}: the column {repeated[0]!r} occurs {header.count(repeated[0])} times"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        found = pd.read_csv(
            path,
            sep=sep,
            encoding=encoding,
            na_values=[*MISSING, *na],
            index_col=False,
            skipinitialspace=True,
            low_memory=False,
        )
    return nw.from_native(found, eager_only=True)


def type_of(series: nw.Series, *, as_text: bool = False) -> str:
    """Return the type of a column: `"boolean"`, `"integer"`, `"real"`, `"date"` or `"text"`.

    Text of which all values are numbers, or dates in ISO 8601 format, has their type.

    Raises:
        DataError: If the values are of another type, or most of a text's values are numbers or
            dates, but not all.
    """
    dtype = series.dtype
    if dtype == nw.Boolean:
        return "boolean"
    if dtype.is_integer():
        return "integer"
    if dtype.is_numeric():
        return "real"
    if dtype in (nw.Date, nw.Datetime):
        return "date"
    if dtype not in (nw.String, nw.Categorical, nw.Enum, nw.Object):
        raise DataError(
            f"column {series.name!r} has values of type {dtype}; expected numbers, truth values, "
            "dates or text. Leave the column out or convert it"
        )
    texts, missing = texts_of(series)
    observed = texts[~missing]
    if as_text or not len(observed):
        return "text"
    distinct = {*observed}
    if distinct <= {"True", "False"}:
        return "boolean"
    for name, test in (("real", _is_number), ("date", _DATE.fullmatch)):
        valid = {text for text in distinct if test(text)}
        if valid == distinct:
            return name
        mask = np.array([text in valid for text in observed] if valid else [False])
        if mask.mean() > MOSTLY:
            row = int(np.flatnonzero(~missing)[(~mask).argmax()])
            raise DataError(
                f"column {series.name!r}, row {row}: {texts[row]!r} is not a "
                f"{'number' if name == 'real' else name}, but {mask.mean():.1%} of the values are. "
                f"Correct it, read it as missing by na=[{texts[row]!r}], or give the column's "
                f"kind, as in columns={{{series.name!r}: 'category'}}"
            )
    return "text"


def values_of(series: nw.Series, expected: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a column as an array, and the mask of missing ones.

    Args:
        series: The column.
        expected: Type of the values.

    Returns:
        Numbers as float64 and missing ones as NaN, dates as `datetime64[us]`, text as objects.

    Raises:
        DataError: If the values are of another type, or infinite.
    """
    found = type_of(series, as_text=expected == "text")
    numbers = ("boolean", "integer", "real")
    if found != expected and not (found in numbers and expected in numbers):
        raise DataError(f"column {series.name!r}: expected values of type {expected}, got {found}")
    if expected == "text":
        return texts_of(series)
    if expected == "date":
        return _dates(series)
    values = _numbers(series)
    if (infinite := np.isinf(values)).any():
        raise DataError(
            f"column {series.name!r}, row {int(infinite.argmax())}: the value is infinite "
            f"({int(infinite.sum())} such values). Replace it by a number or leave it empty"
        )
    return values, np.isnan(values)


def _numbers(series: nw.Series) -> np.ndarray:
    if series.dtype.is_numeric() or series.dtype == nw.Boolean:
        return np.array(series.cast(nw.Float64).fill_null(float("nan")).to_numpy(), np.float64)
    texts, missing = texts_of(series)
    known = {"True": 1.0, "False": 0.0}
    return np.array(
        [
            np.nan if lost else known[text] if text in known else float(text)
            for text, lost in zip(texts, missing, strict=True)
        ]
    )


def texts_of(series: nw.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of any column as text, "" for missing ones, and the mask of these."""
    values = series.to_list()
    missing = np.array([value is None or value != value for value in values])  # NaN != NaN
    texts = ["" if lost else str(value) for value, lost in zip(values, missing, strict=True)]
    return np.array(texts, dtype=object), missing


def _dates(series: nw.Series) -> tuple[np.ndarray, np.ndarray]:
    if series.dtype in (nw.Date, nw.Datetime):
        dates = series.cast(nw.Datetime("us")).to_numpy().astype("datetime64[us]")
    else:
        texts, missing = texts_of(series)
        try:
            dates = np.array(np.where(missing, "NaT", texts), dtype="datetime64[us]")
        except ValueError as error:
            raise DataError(f"column {series.name!r}: {error}") from error
    return dates, np.isnat(dates)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def frame_of(columns: Mapping[str, list[object]], like: Any = None) -> Any:
    """Return columns of Python values as a frame of the library of `like`, by default pandas."""
    if like is not None and is_frame(like):
        library = nw.from_native(like, eager_only=True).implementation
        if not library.is_pandas():
            return nw.from_dict(columns, backend=library).to_native()
    import pandas as pd

    # Columns with missing values have pandas' nullable types: integers stay integers.
    return pd.DataFrame(
        {name: pd.array(values) if None in values else values for name, values in columns.items()}
    )
