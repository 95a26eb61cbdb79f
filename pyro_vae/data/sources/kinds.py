"""The kinds of columns in a table, the rules that find them, and their values as numbers.

The first kind with a rule that fits is the kind of a column:

- constant: at most one value. Left out.
- binary: two values. x is 0 or 1.
- date: dates, times, or text in ISO 8601 format. x is the number of days since the first date.
  Times with a time zone are converted to UTC.
- identifier: text with more than `MAX_LEVELS` values or with different values only, or 10 or more
  different integers that are 0, 1, 2, ... or 1, 2, 3, ... in order, or in a column without a name
  or with the name id, or one that ends in _id or Id. Left out.
- category: other text; and whole numbers of 3 to `MAX_LABELS` values, each in at least `LABEL_ROWS`
  rows and in the share `LABEL_SHARE` of them, that do not end as counts do. x is the position in
  the sorted levels.
- count: integers from 0 to `MAX_COUNT`, some of them below `SMALL_COUNT`. x is the integer.
- proportion: numbers in [0, 1], some of them below 1/4 and some above 3/4.
- positive: numbers above 0 with a skewness above 1 that the logarithm reduces.
- real: other numbers.

Whole numbers are labels, not counts, if all values are frequent. The largest values of a count are
rare, so a sample nearly always has a value with few rows. The probability that the next value is a
new one is about the share of values that occur once (Good 1953), which is 0 for labels. If the mean
of a count is small, all values can be frequent. For the values 0, 1, ..., K in n_0, ..., n_K rows,
a Poisson law with the ratio n_K / n_(K-1) expects at least n_K^2 K / (n_(K-1) (K + 1)) rows above
K; a negative binomial law expects more, and further zeros change nothing. Labels have none, so the
values are a count unless this number is `ROWS_ABOVE` or more. Values that were not in the data of
the schema are refused for levels, and for numbers outside the range of their kind. Another kind on
request, such as `real`, accepts them.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from pyro_vae.arguments import setting
from pyro_vae.data.errors import DataError

Level: TypeAlias = bool | int | float | str

MAX_LEVELS = 50  # of a category of text
MAX_LABELS = 10  # of a category of whole numbers
LABEL_ROWS, LABEL_SHARE = 10, 0.005  # of each label that is a whole number
ROWS_ABOVE = 5.0  # expected above the largest label, if it were a count: none has exp(-5) = 0.7%
MAX_COUNT = 2**24  # float32 has all integers up to it
SMALL_COUNT = 10  # integers that are all larger, such as ages of adults, are numbers
SECONDS_PER_DAY = 86_400.0
_NAME_OF_IDS = re.compile(r"(Unnamed: 0)?|([iI][dD]|ID)|.*([_ .-][iI][dD]|[a-z]I[dD])")


@dataclasses.dataclass(frozen=True)
class Values:
    """The observed values of a column, as the rules see them.

    Attributes:
        type: `"boolean"`, `"integer"`, `"real"`, `"date"` or `"text"`.
        observed: Values that are not missing, in order: float64 numbers, `datetime64[us]` or str.
        name: Name of the column.
    """

    type: str
    observed: np.ndarray
    name: str = "x"

    @functools.cached_property
    def distinct(self) -> np.ndarray:
        """The different values, sorted."""
        if self.observed.dtype == object:
            return np.array(sorted({*self.observed}), dtype=object)  # faster than np.unique
        return np.unique(self.observed)

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers."""
        return self.type in ("boolean", "integer", "real")

    @functools.cached_property
    def is_whole(self) -> bool:
        """Whether all values are integers."""
        return self.is_number and bool((self.observed == np.round(self.observed)).all())


def _is_identifier(values: Values) -> bool:
    distinct, total = len(values.distinct), len(values.observed)
    if values.type == "text":
        return distinct > MAX_LEVELS or (distinct == total and total > 2)
    if not values.is_whole or distinct != total or total < 10:
        return False
    steps = np.diff(values.observed)
    in_order = values.observed[0] in (0, 1) and bool((steps == 1).all())
    return in_order or _NAME_OF_IDS.fullmatch(values.name) is not None


def is_labels(values: Values) -> bool:
    """Return whether whole numbers have few values, all frequent, and do not end as counts do."""
    if not values.is_whole or not 2 < len(values.distinct) <= MAX_LABELS:
        return False
    rows = np.unique(values.observed, return_counts=True)[1].astype(float)
    if rows.min() < max(LABEL_ROWS, LABEL_SHARE * rows.sum()):
        return False
    largest = len(rows) - 1
    if values.distinct[0] != 0 or values.distinct[-1] != largest:
        return True
    return bool(rows[-1] ** 2 * largest / (rows[-2] * (largest + 1)) >= ROWS_ABOVE)


def skewness(x: np.ndarray) -> float:
    """Return the skewness of numbers, 0 if they are all equal."""
    deviations = x - x.mean()
    spread = np.sqrt((deviations**2).mean())
    return float((deviations**3).mean() / spread**3) if spread > 0 else 0.0


def _is_positive(values: Values) -> bool:
    if not values.is_number or values.distinct[0] <= 0:
        return False
    skew = skewness(values.observed)
    return skew > 1 and abs(skewness(np.log(values.observed))) < skew


def identity(x: np.ndarray) -> np.ndarray:
    """Return x."""
    return x


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of column.

    Attributes:
        name: Name in schemas.
        fits: The rule by which a column is of this kind, if no kind before it fits.
        accepts: Types of values that can be of this kind on request.
        scale: Function of the values that networks standardize, such as the logarithm.
        unscale: Inverse of `scale`.
        in_model: Whether columns of this kind are modelled. Others are left out.
        num_levels: Numbers of levels that are allowed, if values are positions in a list of levels.
        expected: Description of valid values, for messages.
        valid: Mask of the valid numbers.
    """

    name: str
    fits: Callable[[Values], bool]
    accepts: frozenset[str]
    scale: Callable[[np.ndarray], np.ndarray] = identity
    unscale: Callable[[np.ndarray], np.ndarray] = identity
    in_model: bool = True
    num_levels: range = range(0)
    expected: str = "finite numbers"
    valid: Callable[[np.ndarray], np.ndarray] = np.isfinite

    @property
    def has_levels(self) -> bool:
        """Whether values are positions in a list of levels."""
        return len(self.num_levels) > 0


_ANY = frozenset({"boolean", "integer", "real", "date", "text"})
_NUMBERS = frozenset({"boolean", "integer", "real"})

# To add a kind of column, add it here, and its likelihood to `models.column_likelihoods`.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("constant", lambda v: len(v.distinct) < 2, _ANY, in_model=False),
        Kind("binary", lambda v: len(v.distinct) == 2, _ANY - {"date"}, num_levels=range(2, 3)),
        Kind("date", lambda v: v.type == "date", frozenset({"date"}), expected="dates"),
        Kind("identifier", _is_identifier, _ANY, in_model=False),
        Kind(
            "category",
            lambda v: v.type == "text" or is_labels(v),
            _ANY - {"date"},
            num_levels=range(2, MAX_COUNT + 1),
        ),
        Kind(
            "count",
            lambda v: (
                v.is_whole and 0 <= v.distinct[0] < SMALL_COUNT and v.distinct[-1] <= MAX_COUNT
            ),
            _NUMBERS,
            scale=np.log1p,
            unscale=np.expm1,
            expected="integers from 0 on",
            valid=lambda x: (x >= 0) & (x == np.round(x)) & np.isfinite(x),
        ),
        Kind(
            "proportion",
            lambda v: v.is_number and 0 <= v.distinct[0] < 0.25 and 0.75 < v.distinct[-1] <= 1,
            _NUMBERS,
            expected="numbers from 0 to 1",
            valid=lambda x: (x >= 0) & (x <= 1),
        ),
        Kind(
            "positive",
            _is_positive,
            _NUMBERS,
            scale=np.log,
            unscale=np.exp,
            expected="numbers above 0",
            valid=lambda x: (x > 0) & np.isfinite(x),
        ),
        Kind("real", lambda v: v.is_number, _NUMBERS),
    )
}


def kind_of(values: Values) -> Kind:
    """Return the kind of a column: the first in `KINDS` with a rule that fits."""
    return next(kind for kind in KINDS.values() if kind.fits(values))


def refuse_dates(values: Values) -> None:
    """Refuse integers such as 20200131, which are dates.

    Raises:
        DataError: If all values of a column are dates of 1900 to 2099 in the form YYYYMMDD.
    """
    found = values.distinct
    if not values.is_whole or len(found) < 3 or not 19e6 < found[0] <= found[-1] < 21e6:
        return
    year, month, day = found // 10_000, found // 100 % 100, found % 100
    if ((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all():
        iso = f"{year[0]:.0f}-{month[0]:02.0f}-{day[0]:02.0f}"
        raise DataError(
            f"column {values.name!r}: all values are dates without hyphens, as {found[0]:.0f}. "
            f"Write them as {iso}, or give the kind of the column, as in "
            f"{setting('columns', {values.name: 'real'})}"
        )


def levels_of(values: Values) -> list[Level]:
    """Return the levels of a column, sorted, as values of JSON."""
    convert: dict[str, Callable[[Any], Level]] = {
        "boolean": bool,
        "integer": int,
        "real": float,
        "text": str,
        "date": origin_of,
    }
    return [convert[values.type](value) for value in values.distinct]


def days(dates: np.ndarray, origin: str) -> np.ndarray:
    """Return the number of days from an origin, NaN for missing dates."""
    elapsed = (dates - np.datetime64(origin, "us")) / np.timedelta64(1, "us")
    return np.asarray(elapsed, dtype=np.float64) / (SECONDS_PER_DAY * 1e6)


def origin_of(dates: np.ndarray | np.datetime64) -> str:
    """Return the first date, without a time if no date has one."""
    whole = np.all(dates == dates.astype("datetime64[D]"))
    return str(np.min(dates).astype("datetime64[D]" if whole else "datetime64[us]"))


def dates(numbers: np.ndarray, origin: str) -> np.ndarray:
    """Return the dates at a number of days from an origin, NaT for NaN.

    Whole days if the origin has no time. Dates are limited to the years 1 to 9999.
    """
    days = numbers.round() if "T" not in origin else numbers
    first, last = (
        (np.datetime64(end, "us") - np.datetime64(origin, "us")) / np.timedelta64(1, "D")
        for end in ("0001-01-01", "9999-12-31")
    )
    microseconds = np.where(np.isnan(days), 0, days.clip(first, last)) * (SECONDS_PER_DAY * 1e6)
    found = np.datetime64(origin, "us") + microseconds.round().astype("timedelta64[us]")
    return np.where(np.isnan(days), np.datetime64("NaT", "us"), found)
