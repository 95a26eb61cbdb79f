"""Fill the missing values of a column: in a type that holds all values, in the column's form."""

import datetime
import decimal
import re
from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np

from pyro_vae.data.sources.texts import Texts

MAX_DIGITS = 38  # of decimals in polars and pyarrow
# Dates of 64-bit nanoseconds, to which pandas converts Python's dates.
DATES_OF_NS = (np.datetime64("1677-09-22", "us"), np.datetime64("2262-04-11", "us"))
_TIME = re.compile(
    r".{10}(?P<mark>[ T])\d{2}:\d{2}(?P<seconds>:\d{2})?(\.(?P<fraction>\d+))?"
    r"(?P<zone>(?P<space> ?)(Z|[+-]\d{2}(?P<colon>:?)\d{2}))?"
)


def filled(
    series: nw.Series, rows: np.ndarray, values: np.ndarray, levels: Sequence[object] = ()
) -> nw.Series:
    """Return a column with other values in some rows.

    The type of the result depends on the column and the levels, not on the values, so that several
    completed tables have the same types: integers have 64 bits, float16 becomes float32, decimals
    have 38 digits. A categorical column without some of the levels becomes text.

    Args:
        series: The column.
        rows: Numbers of the rows.
        values: Their values, as `Column.restored` returns them.
        levels: All values that the column may have, if they are levels.
    """
    wide = _widened(series, [str(level) for level in levels])
    return wide.scatter(rows, _in_form(series, wide.dtype, values))


def _widened(series: nw.Series, levels: Sequence[str]) -> nw.Series:
    """Return a column in a type that holds the values of a model.

    A model of the numbers of an int8 column has no bounds. Libraries replace integers beyond the
    type by nulls, or raise an error.
    """
    dtype = series.dtype
    if dtype.is_integer():
        if dtype in (nw.Int128, nw.UInt128):
            return series.cast(nw.Int128)
        observed = series.drop_nulls()
        is_large = dtype == nw.UInt64 and len(observed) > 0 and int(observed.max()) >= 2**63
        return series if is_large else series.cast(nw.Int64)
    if repr(dtype) == "Float16":  # a type of newer versions of narwhals
        return series.cast(nw.Float32)
    if dtype == nw.Decimal and (scale := getattr(dtype, "scale", None)) is not None:
        return series.cast(nw.Decimal(MAX_DIGITS, scale))
    if dtype in (nw.Categorical, nw.Enum):
        known = _categories(series)
        return series if known is None or {*levels} <= known.keys() else series.cast(nw.String)
    return series


def _categories(series: nw.Series) -> dict[str, object] | None:
    """Return the categories of a column by their texts; None if it takes any text."""
    native: Any = series.to_native()
    if series.implementation.is_pandas():
        return {str(category): category for category in native.cat.categories}
    return {text: text for text in native.dtype.categories} if series.dtype == nw.Enum else None


def _in_form(
    series: nw.Series, dtype: nw.dtypes.DType, values: np.ndarray
) -> list[object] | nw.Series:
    """Return values as a column of a type holds them, in the form of its observed values."""
    if dtype == nw.Boolean:
        return [bool(value) for value in values]
    if dtype.is_integer():
        is_large = dtype != nw.Int64
        low, high = (0 if dtype == nw.UInt64 else -(2**63)), 2 ** (63 + is_large) - 1
        return [min(max(round(value), low), high) for value in values.tolist()]
    if dtype == nw.Decimal:
        return [_decimal(value, -getattr(dtype, "scale", 0)) for value in values.tolist()]
    if dtype in (nw.Date, nw.Datetime):
        return _dates(series, values)
    if dtype in (nw.String, nw.Categorical, nw.Enum):
        known = _categories(series) if dtype != nw.String else None
        texts = _texts(Texts.of(series), values)
        return [known[text] for text in texts] if known else list(texts)
    if dtype == nw.Object:
        return _objects(series, values)
    return values.tolist()


def _dates(series: nw.Series, values: np.ndarray) -> nw.Series:
    """Return dates as a series of the type of a column. polars takes others for numbers."""
    dtype = series.dtype
    if series.implementation.is_pandas() or getattr(dtype, "time_unit", "us") == "ns":
        values = values.clip(*DATES_OF_NS)
    zone = datetime.UTC if getattr(dtype, "time_zone", None) else None
    dates = [value.item().replace(tzinfo=zone) for value in values]
    return nw.new_series("", dates, backend=series.implementation).cast(dtype)


def _decimal(value: float, exponent: int) -> decimal.Decimal:
    with decimal.localcontext(decimal.Context(prec=2 * MAX_DIGITS)):
        limit = decimal.Decimal(10) ** (MAX_DIGITS + exponent) - 1
        rounded = decimal.Decimal(value).quantize(decimal.Decimal(1).scaleb(exponent))
        return max(min(rounded, limit), -limit)


def _objects(series: nw.Series, values: np.ndarray) -> list[object]:
    """Return values of the class of the observed ones: dates, decimals, text, or others."""
    observed = [value for value in series.to_list() if value is not None and value == value]
    example = next(iter(observed), None)
    if isinstance(example, str):
        return list(_texts(Texts.of(series), values))
    if isinstance(example, decimal.Decimal):
        exponent = min(int(value.as_tuple().exponent) for value in observed)
        return [_decimal(value, exponent) for value in values.tolist()]
    if values.dtype.kind == "M":
        is_day = not isinstance(example, datetime.datetime)
        zone = getattr(example, "tzinfo", None) and datetime.UTC
        dates = [value.item().replace(tzinfo=zone) for value in values]
        return [date.date() for date in dates] if is_day else dates
    return values.tolist()


def _texts(observed: Texts, values: np.ndarray) -> Sequence[str]:
    """Return values as text: dates as the longest observed one, whole numbers without a point."""
    if values.dtype.kind == "M":
        return _date_texts(max(observed.distinct, key=len, default=""), values)
    if values.dtype.kind == "f" and not any("." in text for text in observed.distinct):
        return [str(int(v)) if v.is_integer() else str(v) for v in values.tolist()]
    return [str(value) for value in values]


def _date_texts(example: str, values: np.ndarray) -> list[str]:
    form = _TIME.fullmatch(example)
    if form is None:  # days, or no observed value
        return np.datetime_as_string(values.astype("datetime64[D]")).tolist()
    unit = "s" if form["seconds"] else "m"
    if form["fraction"]:
        unit = "ms" if len(form["fraction"]) <= 3 else "us"
    found = np.datetime_as_string(values.astype(f"datetime64[{unit}]")).tolist()
    zone = ""
    if form["zone"]:  # dates with a time zone are read in UTC
        zone = form["space"] + ("Z" if form["zone"].endswith("Z") else f"+00{form['colon']}00")
    return [text.replace("T", form["mark"]) + zone for text in found]
