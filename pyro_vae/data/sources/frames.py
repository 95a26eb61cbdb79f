"""Tables as frames: files, pandas and polars frames and arrays, read through narwhals."""

import contextlib
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, cast

import narwhals as nw
import numpy as np
from narwhals.typing import IntoDataFrame

from pyro_vae.arguments import setting
from pyro_vae.data.conversion import without_mask
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources import array_files, text_files, texts
from pyro_vae.data.sources.text_files import DEFAULT_FORM, TextForm
from pyro_vae.data.sources.texts import Texts

# Data in the form of the user: the path of a file, an array, or a frame of pandas, polars, ....
Table: TypeAlias = str | os.PathLike[str] | np.ndarray | IntoDataFrame

SMALLEST = float(np.finfo(np.float32).tiny)
OUTSIDE = (
    f"expected numbers of magnitude {SMALLEST:.2g} to {np.finfo(np.float32).max:.2g}, the range of "
    "float32. Divide the column by a number, such as its largest one"
)


def is_frame(source: object) -> TypeGuard[IntoDataFrame]:
    """Return whether an object is a frame of pandas, polars or another library of narwhals."""
    return nw.dependencies.is_into_dataframe(source)


def identifiers(frame: nw.DataFrame, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return columns that identify rows, and the index of pandas if it has values of its own."""
    found = {name: frame[name].to_numpy() for name in names if name in frame.columns}
    index: Any = nw.maybe_get_index(frame)
    if index is None or type(index).__name__ == "RangeIndex":
        return found
    for i, name in enumerate(index.names):
        unnamed = f"index_{i}" if i else "index"
        found[unnamed if name is None else str(name)] = index.get_level_values(i).to_numpy()
    return found


def is_source(data: object) -> TypeGuard[Table]:
    """Return whether data are in the form of a user: a path, a frame or an array of no tensor."""
    return isinstance(data, str | os.PathLike | np.ndarray) or is_frame(data) or is_matrix(data)


def is_matrix(source: object) -> bool:
    """Return whether an object is a sparse matrix of scipy, or AnnData."""
    return f"{type(source).__module__}.".startswith(("scipy.sparse.", "anndata."))


def numbers_in(series: nw.Series) -> np.ndarray:
    """Return a column of numbers as float32, unchanged, with NaN for missing values.

    Raises:
        DataError: If it has other values than numbers or truth values, or numbers that float32 does
            not have.
    """
    kind = type_of(series)
    if kind not in ("boolean", "integer", "real"):
        raise DataError(
            f"column {series.name!r} has values of type {kind}, which are no numbers. pv.suggest("
            "frame) builds a VAE for tables with such columns; or leave the column out"
        )
    values = values_of(series, "real")[0]
    if (large := np.abs(values) > np.finfo(np.float32).max).any():
        row = int(large.argmax())
        raise DataError(f"column {series.name!r}, row {row}: {OUTSIDE}, got {values[row]!r}")
    return values.astype(np.float32)


def check_columns(
    frame: nw.DataFrame, needed: Sequence[str], known: Collection[str], advice: str = ""
) -> None:
    """Check that a frame has the columns that a model needs.

    Args:
        frame: The frame.
        needed: Names of the columns.
        known: Names of all columns that are expected.
        advice: Sentence for the error.

    Raises:
        DataError: If one of the columns is missing.

    Warns:
        DataWarning: If there are other columns.
    """
    if absent := [name for name in needed if name not in frame.columns]:
        raise DataError(
            f"the column {absent[0]!r} is missing ({len(absent)} in all); expected the columns "
            f"{', '.join(map(repr, needed[:10]))}, got "
            f"{', '.join(map(repr, frame.columns[:10]))}{advice}"
        )
    if new := [name for name in frame.columns if name not in known]:
        warnings.warn(
            f"columns that are not in the schema are ignored: {', '.join(map(repr, new[:10]))}",
            DataWarning,
            stacklevel=4,
        )


def read(
    source: object,
    form: TextForm = DEFAULT_FORM,
    key: str | None = None,
    as_text: Collection[str] = (),
) -> nw.DataFrame:
    """Return a table as a frame. Names of columns are text.

    Args:
        source: Path of a CSV, TSV, Parquet or Feather file, a frame, or an array of two dimensions
            or the path of its file.
        form: Form of a text file.
        key: Name of the array, if the file has several.
        as_text: Names of columns of a text file that are not examined for numbers.

    Raises:
        DataError: If the file is damaged, or the table has no rows or repeated columns.
    """
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in array_files.ENDINGS:
        source = np.asarray(array_files.load(Path(source), key))
    if isinstance(source, str | os.PathLike):
        frame = _file(Path(source), form, as_text)
    elif isinstance(source, np.ndarray):
        source = without_mask(source)
        source = source.astype(_native(source.dtype), copy=False)
        if source.ndim != 2:
            raise DataError(f"expected an array of rows and columns, got shape {source.shape}")
        frame = nw.from_dict(
            {f"x{i}": column for i, column in enumerate(source.T)}, backend="pandas"
        )
    else:
        try:
            frame = nw.from_native(_plain(cast(IntoDataFrame, source)), eager_only=True)
        except Exception as error:  # duplicate columns, a lazy frame, another class
            raise DataError(f"cannot read a {type(source).__name__} as a table: {error}") from error
    if not len(frame) or not frame.columns:
        name = source if isinstance(source, str | os.PathLike) else "table"
        raise DataError(
            f"{name} is empty: it has {len(frame)} rows, and the columns {frame.columns}"
        )
    return frame


def _plain(frame: Any) -> Any:
    """Return a frame; if it is one of pandas, with names that are text and dense native columns."""
    if not nw.dependencies.is_pandas_dataframe(frame):
        return frame
    dtypes = frame.dtypes.items()
    if changed := {name: _native(dtype) for name, dtype in dtypes if dtype != _native(dtype)}:
        frame = frame.astype(changed)
    if all(isinstance(name, str) for name in frame.columns):
        return frame
    return frame.set_axis([str(name) for name in frame.columns], axis="columns")


def _native(dtype: Any) -> Any:
    """Return the dtype to read a column in: dense, in the byte order of this machine."""
    if not isinstance(dtype, np.dtype):
        return dtype.subtype if hasattr(dtype, "fill_value") else dtype  # sparse
    if dtype.kind == "f" and dtype.itemsize > 8:
        return np.dtype(np.float64)
    return dtype.newbyteorder("=")


@contextlib.contextmanager
def errors_of(source: object) -> Iterator[None]:
    """Name the file in errors about its data."""
    try:
        yield
    except DataError as error:
        if not isinstance(source, str | os.PathLike) or str(source) in str(error):
            raise
        raise DataError(f"{source}: {error}") from error


def name_of(source: object) -> str:
    """Return a name for the data of a source."""
    return Path(source).stem if isinstance(source, str | os.PathLike) else "table"


def _file(path: Path, form: TextForm, as_text: Collection[str]) -> nw.DataFrame:
    import pandas as pd

    if not path.exists():
        raise DataError(f"{path}: no such file or directory")
    reads = {".parquet": pd.read_parquet, ".feather": pd.read_feather}
    try:
        if path.suffix.lower() in reads:
            # Nullable types: integers with missing values stay integers.
            found = reads[path.suffix.lower()](path, dtype_backend="numpy_nullable")
        else:
            found = text_files.read(path, form, as_text)
        return nw.from_native(_plain(found), eager_only=True)
    except ImportError as error:
        raise DataError(
            f"reading {path.name} needs pyarrow: pip install 'pyro-vae[tables]'"
        ) from error
    except (DataError, OSError):
        raise
    except Exception as error:  # ParserError, ArrowInvalid, ...
        raise DataError(f"{path} cannot be read as a table: {str(error).strip()}") from error


def type_of(series: nw.Series, accepted: Collection[str] | None = None) -> str:
    """Return the type of a column: `"boolean"`, `"integer"`, `"real"`, `"date"` or `"text"`.

    Text of which all values are numbers, or dates in ISO 8601 format, has their type, unless it has
    digits after leading zeros, as postal codes have. Columns of categories, as in
    `pandas.Categorical`, are text. So are columns without any value.

    Args:
        series: The column.
        accepted: Types that are accepted. If `"text"` is one, text is not examined for numbers and
            dates; otherwise numbers may have leading zeros.

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
    if series.is_null().all():
        return "text"
    if dtype not in (nw.String, nw.Categorical, nw.Enum, nw.Object):
        given = series.to_native().dtype if dtype == nw.Unknown else dtype
        advice = ", for example by .dt.total_seconds()" if dtype == nw.Duration else ""
        raise DataError(
            f"column {series.name!r} has values of type {given}; expected numbers, truth values, "
            f"dates or text. Leave the column out or convert it{advice}"
        )
    if dtype in (nw.Categorical, nw.Enum) or (accepted is not None and "text" in accepted):
        return "text"
    return texts.type_of(Texts.of(series), has_codes=accepted is None)


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
    numbers = ("boolean", "integer", "real")
    found = type_of(series, [expected])
    if found != expected and not (found in numbers and expected in numbers):
        if series.null_count() < len(series) and not (missing_of(series)).all():
            raise DataError(f"column {series.name!r}: {_not_of(series, expected, found)}")
        missing = np.ones(len(series), dtype=bool)
        empty = {"text": np.array("", object), "date": np.datetime64("NaT", "us")}
        return np.full(len(series), empty.get(expected, np.array(np.nan))), missing
    if expected == "text":
        found_texts = Texts.of(series)
        return found_texts.all, found_texts.missing
    if expected == "date":
        dates = _dates(series)
        return dates, np.isnat(dates)
    values = _numbers(series)
    if (infinite := np.isinf(values)).any():
        raise DataError(
            f"column {series.name!r}, row {int(infinite.argmax())}: the value is infinite "
            f"({int(infinite.sum())} such values). Replace it by a number or leave it empty"
        )
    return values, np.isnan(values)


def _not_of(series: nw.Series, expected: str, found: str) -> str:
    """Return why the values of a column are not of the type expected."""
    if found == "text":
        values = Texts.of(series)
        wrong = ~values.missing & ~values.are(expected)
        row = int(wrong.argmax())
        return f"expected values of type {expected}, got {values.all[row]!r} in row {row}"
    return f"expected values of type {expected}, got {found}"


def check_exact(series: nw.Series) -> None:
    """Check that no integer of a column changes as a float64, as those beyond 2^53 can.

    Raises:
        DataError: If one does; the message has its row.
    """
    if not series.dtype.is_integer():
        return
    found = series.drop_nulls().unique().to_list()
    if changed := [value for value in found if int(float(value)) != value]:
        row = int((series == changed[0]).fill_null(False).to_numpy().argmax())
        way_out = setting("columns", {series.name: "identifier"})
        raise DataError(
            f"column {series.name!r}, row {row}: {changed[0]} has too many digits for a level, "
            f"which are compared as float64. Convert the column to text, or leave it out by "
            f"{way_out}"
        )


def missing_of(series: nw.Series) -> np.ndarray:
    """Return the mask of missing values: null, NaN, NaT or blank text."""
    if series.dtype.is_numeric():
        return np.isnan(_numbers(series))
    if series.dtype in (nw.String, nw.Categorical, nw.Enum, nw.Object):
        return Texts.of(series).missing
    return np.asarray(series.is_null().to_numpy(), dtype=bool)


def _numbers(series: nw.Series) -> np.ndarray:
    if series.dtype.is_numeric() or series.dtype == nw.Boolean:
        return np.array(series.cast(nw.Float64).fill_null(float("nan")).to_numpy(), np.float64)
    return Texts.of(series).numbers()


def _dates(series: nw.Series) -> np.ndarray:
    if series.dtype not in (nw.Date, nw.Datetime):
        return Texts.of(series).dates()
    if getattr(series.dtype, "time_zone", None):
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return series.cast(nw.Datetime("us")).to_numpy().astype("datetime64[us]")


def have_zones(series: nw.Series) -> bool:
    """Return whether the dates of a column have a time zone."""
    if series.dtype in (nw.Date, nw.Datetime):
        return getattr(series.dtype, "time_zone", None) is not None
    return Texts.of(series).have_zones()


def in_utc(frame: Any, columns: Sequence[str]) -> Any:
    """Return a frame with the time zone UTC in some columns of dates."""
    return (
        nw.from_native(frame).with_columns(nw.col(*columns).dt.replace_time_zone("UTC")).to_native()
    )


def frame_of(columns: Mapping[str, np.ndarray], like: object = None) -> np.ndarray | IntoDataFrame:
    """Return columns as a frame of the library of `like`, by default pandas.

    Args:
        columns: Values by name, with None or NaT for missing ones.
        like: Frame or numpy array. For an array, the result is an array.
    """
    if like is not None and is_frame(like):
        library = nw.from_native(like, eager_only=True).implementation
        if not library.is_pandas():
            values = {
                name: column.tolist() if column.dtype == object else column
                for name, column in columns.items()
            }
            return nw.from_dict(values, backend=library).to_native()
    import pandas as pd

    # Columns with missing values have pandas' nullable types: integers stay integers.
    found = pd.DataFrame(
        {
            name: pd.array(column) if column.dtype == object and None in column else column
            for name, column in columns.items()
        }
    )
    return found.to_numpy() if isinstance(like, np.ndarray) else found


def with_index_of(frame: Any, source: object) -> Any:
    """Return a frame with the index of the rows that it is about, if that is a frame of pandas."""
    if not nw.dependencies.is_pandas_dataframe(source):
        return frame
    return frame.set_axis(cast(Any, source).index, axis="index")
