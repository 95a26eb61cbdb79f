"""`Column`: a column of a table, and its values as numbers."""

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Self

import narwhals as nw
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pyro_vae.arguments import AtLeastZero, Finite, Positive, setting
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources import frames, kinds
from pyro_vae.data.sources.kinds import KINDS, Kind, Level, Values
from pyro_vae.part import Part

SHOWN = 6  # levels in a description
NARROW = ("binary", "category", "count", "proportion", "positive")  # kinds that refuse numbers
_CODE = re.compile(r"-?(9{1,4}[789]|8{2,5}|7{2,5})")  # codes for missing values, by convention
MAX_ROUNDING = 1e-3  # of x as float32, in standard deviations of a column


class Column(Part):
    """A column of a table.

    Args:
        name: Name of the column.
        kind: Kind, a key of `KINDS`.
        type: Type of its values: `"boolean"`, `"integer"`, `"real"`, `"date"` or `"text"`.
        levels: Sorted values of a binary column or a category; the one value of a constant.
        shift: Mean of the observed numbers, on the scale of the kind (a logarithm for positive
            numbers and counts).
        unit: Their standard deviation on that scale; 1 if it is 0.
        low: Smallest number in the data.
        high: Largest number in the data.
        missing: Share of missing values.
        origin: First date, in ISO 8601 format. Dates are days since it.
        zoned: Whether dates have a time zone. They are converted to UTC.

    Raises:
        DataError: If the kind is unknown or does not apply to the type.

    Example:
        >>> import pyro_vae as pv
        >>> pv.data.Column("age", "real", shift=41.5, unit=12.0, low=18.0, high=90.0).shown
        '18 to 90'

    See also: `pyro_vae.data.open`, `pyro_vae.data.TableSchema`.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        type: str = "real",
        levels: Sequence[Level] = (),
        shift: Finite = 0.0,
        unit: Positive = 1.0,
        low: Finite = 0.0,
        high: Finite = 0.0,
        missing: AtLeastZero = 0.0,
        origin: str = "",
        zoned: bool = False,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise DataError(f"column {name!r}: unknown kind {kind!r}; expected one of {[*KINDS]}")
        if type not in KINDS[kind].accepts:
            raise DataError(
                f"column {name!r}: values of type {type} cannot be of kind {kind!r}; expected one "
                f"of {[known.name for known in KINDS.values() if type in known.accepts]}"
            )
        if KINDS[kind].has_levels and len(levels) not in KINDS[kind].num_levels:
            allowed = KINDS[kind].num_levels
            count = f"{'exactly' if len(allowed) == 1 else 'at least'} {allowed.start}"
            raise DataError(
                f"column {name!r}: a column of kind {kind!r} has {count} different values, got "
                f"{len(levels)}"
            )
        self.name, self.kind, self.values_type = name, kind, type
        self.levels, self.origin, self.missing = list(levels), origin, missing
        self.shift, self.unit, self.low, self.high = shift, unit, low, high
        self.zoned = zoned

    @property
    def rule(self) -> Kind:
        """The kind of the column, with its rules."""
        return KINDS[self.kind]

    @property
    def num_levels(self) -> int:
        """Number of levels of a binary column or a category, otherwise 0."""
        return len(self.levels) if self.rule.has_levels else 0

    @property
    def is_open(self) -> bool:
        """Whether the values are numbers between 0 and 1 without 0 and 1."""
        return self.kind == "proportion" and self.low > 0 and self.high < 1

    def numbers(self, series: nw.Series) -> np.ndarray:
        """Return the values of a column as numbers in float32, NaN for missing ones.

        Raises:
            DataError: If a value is not of this column's kind; the message has its row.

        Warns:
            DataWarning: If numbers change by their conversion to float32.
        """
        values, x = self.checked_values(series)
        if not self.rule.has_levels:
            self._say_rounding(values[~np.isnan(x)], x[~np.isnan(x)])
        return x

    def checked_values(self, series: nw.Series) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of a column in float64 and in float32, as `numbers`.

        Raises:
            DataError: If a value is not of this column's kind; the message has its row.
        """
        given, missing = frames.values_of(series, self.values_type)
        if self.rule.has_levels:
            codes = self._codes(given, missing)
            return codes, codes.astype(np.float32)
        self.say_zone(series, missing)
        values = kinds.days(given, self.origin) if self.kind == "date" else given
        with np.errstate(over="ignore", under="ignore"):
            x = values.astype(np.float32)
        self._check(self._outside(values, x), given, frames.OUTSIDE, way_out=False)
        valid = missing | (self.rule.valid(values) & self.rule.valid(x))
        if self.is_open:
            valid &= missing | ((x > 0) & (x < 1))
        self._check(~valid, given, f"expected {self._expected}")
        return values, x

    def _outside(self, values: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the mask of values that float32 does not have.

        Small numbers are 0 in float32. They are outside if the kind refuses 0, or if all numbers of
        the column, these and those of the schema, are as small.
        """
        small = (values != 0) & (np.abs(values) < frames.SMALLEST)
        known = np.append(values[np.isfinite(values)], [self.low, self.high])
        is_scale = bool(np.abs(known).max() < frames.SMALLEST)
        refuses_zero = not self.rule.valid(np.zeros(1))[0]
        large = np.isfinite(values) & np.isinf(x)
        return large | small if is_scale or refuses_zero else large

    @property
    def _expected(self) -> str:
        if self.is_open:
            return "numbers between 0 and 1, without 0 and 1, as in the data of the schema"
        return self.rule.expected

    def _say_rounding(self, values: np.ndarray, x: np.ndarray) -> None:
        if not len(values):
            return
        change = np.abs(self.rule.scale(x.astype(np.float64)) - self.rule.scale(values)).max()
        largest = np.abs(x - values).max()
        is_whole = self.values_type == "integer"
        if change > MAX_ROUNDING * self.unit or (is_whole and largest > 0):
            warnings.warn(
                f"column {self.name!r}: values change by up to {largest:.2g} by the conversion to "
                f"float32, for a standard deviation of {self.unit:.2g}"
                f"{' of the logarithm' * (self.rule.scale is not kinds.identity)}. Subtract an "
                "origin from the column, such as its first value, or convert timestamps to dates",
                DataWarning,
                stacklevel=2,
            )

    def say_zone(self, series: nw.Series, missing: np.ndarray) -> None:
        """Warn if dates have a time zone and those of the column have none, or the reverse."""
        if self.values_type != "date" or missing.all() or frames.have_zones(series) == self.zoned:
            return
        ours, theirs = ("a", "no") if self.zoned else ("no", "a")
        warnings.warn(
            f"column {self.name!r}: the dates have {theirs} time zone, those in the data of the "
            f"model have {ours} time zone. They are compared as if all were in UTC, which may be "
            "hours apart. Convert them, for example with .dt.tz_localize or .dt.tz_convert of "
            "pandas",
            DataWarning,
            stacklevel=2,
        )

    @property
    def constant(self) -> object:
        """The value of a constant column."""
        value = self.levels[0]
        return np.datetime64(str(value), "us") if self.values_type == "date" else value

    def _codes(self, values: np.ndarray, missing: np.ndarray) -> np.ndarray:
        levels = np.array(self.levels, dtype=values.dtype).tolist()
        code = {level: i for i, level in enumerate(levels)}
        codes = np.array([code.get(value, -1) for value in values.tolist()])
        known = f"the levels {', '.join(map(repr, self.levels[:SHOWN]))}"
        more = len(self.levels) - SHOWN
        self._check(
            ~missing & (codes < 0),
            values,
            f"expected {known}{f' and {more} more' * (more > 0)}",
        )
        return np.where(missing, np.nan, codes)

    def _check(
        self, invalid: np.ndarray, values: np.ndarray, expected: str, way_out: bool = True
    ) -> None:
        if invalid.any():
            row, advice = int(invalid.argmax()), ""
            if way_out and self.kind in NARROW and self.values_type != "text":
                kind = setting("columns", {self.name: "real"})
                advice = f". If such values are possible, build the model with {kind}"
            raise DataError(
                f"column {self.name!r}, row {row}: {expected}, got {_plain(values[row])!r} "
                f"({int(invalid.sum())} such values; rows are counted from 0, without the header)"
                f"{advice}"
            )

    def standardized_by(self, numbers: np.ndarray) -> Self:
        """Return the column with shift and unit of some of its numbers, NaN for missing ones."""
        observed = numbers[~np.isnan(numbers)]
        if self.rule.has_levels or not len(observed):
            return self
        arguments: dict[str, Any] = self.build_arguments | _moments(self.rule.scale(observed))
        return type(self)(**arguments)

    @property
    def context_size(self) -> int:
        """Number of entries of the column as context of a conditional model."""
        return self.num_levels or 1

    def encoded(self, series: nw.Series) -> Tensor:
        """Return the values as context: one-hot levels, or standardized numbers.

        Returns:
            Floats of shape `(num_data, context_size)`.

        Raises:
            DataError: If a value is missing or not of this column's kind.
        """
        values, x = self.checked_values(series)
        self._check(np.isnan(x), values, "a column of the context has no missing values")
        if self.num_levels:
            return one_hot(torch.from_numpy(x).long(), self.num_levels).float()
        scaled = (self.rule.scale(values) - self.shift) / self.unit
        return torch.from_numpy(scaled).float()[:, None]

    def decoded(self, context: np.ndarray) -> np.ndarray:
        """Return the values of a column from its context, shape `(num_data, context_size)`."""
        if self.num_levels:
            return self.restored(context.argmax(axis=1).astype(np.float64))
        return self.restored(self.rule.unscale(context[:, 0] * self.unit + self.shift))

    def restored(self, numbers: np.ndarray) -> np.ndarray:
        """Return numbers of the model as values of the column, None for NaN."""
        missing = np.isnan(numbers)
        if self.kind == "date":
            return kinds.dates(numbers, self.origin)
        filled = np.where(missing, 0, numbers)
        found: np.ndarray = filled
        if self.rule.has_levels:
            levels = np.array(self.levels, dtype=object if self.values_type == "text" else None)
            found = levels[filled.round().clip(0, len(levels) - 1).astype(np.int64)]
        elif self.values_type == "integer":
            if self.low >= 0 and self.high >= 2.0**63:
                found = filled.round().clip(0, 2.0**64 - 2048).astype(np.uint64)
            else:
                found = filled.round().clip(-(2.0**63), 2.0**63 - 1024).astype(np.int64)
        elif self.values_type == "boolean":
            found = filled > 0.5
        elif self.kind == "proportion":
            found = filled.clip(0, 1)
        elif self.kind == "count":
            found = filled.round()
        if self.values_type == "real":
            return np.where(missing, np.nan, found)
        if missing.any():
            found = found.astype(object)
            found[missing] = None
        return found

    @property
    def shown(self) -> str:
        """Its levels or range, for a description."""
        if self.levels:
            more = len(self.levels) - SHOWN
            known = ", ".join(map(str, self.levels[:SHOWN]))
            return known + (f", and {more} more" if more > 0 else "")
        if self.kind == "date":
            first, last = kinds.dates(np.array([self.low, self.high]), self.origin)
            unit = "datetime64[s]" if "T" in self.origin else "datetime64[D]"
            return f"{first.astype(unit)} to {last.astype(unit)}"
        return f"{self.low:.4g} to {self.high:.4g}" if self.rule.in_model else ""


def _moments(scaled: np.ndarray) -> dict[str, Any]:
    return {"shift": float(scaled.mean()), "unit": float(scaled.std()) or 1.0}


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _say_equal(name: str, levels: Sequence[Level]) -> None:
    texts = sorted(map(str, levels), key=str.casefold)
    for first, second in itertools.pairwise(texts):
        if first.casefold() == second.casefold():
            warnings.warn(
                f"column {name!r}: the levels {first!r} and {second!r} differ in upper and lower "
                "case only, and are two levels. Correct the data if they are one",
                DataWarning,
                stacklevel=2,
            )
            return


def _say_codes(values: Values, rule: Kind) -> None:
    """Warn of repeated numbers such as -999, far from all others: they may mean missing."""
    for codes, others in _candidates(values.distinct) if values.is_number and rule.in_model else ():
        low, high = others.min(), others.max()
        spread = np.abs(others).max() if rule.has_levels else high - low  # labels have no distances
        is_far = np.abs(others - codes[-1]).min() > spread or codes[-1] < 0 <= low
        counts = {f"{code:g}": int((values.observed == code).sum()) for code in codes}
        if not is_far or sum(counts.values()) < 2:
            continue
        said = " and ".join(f"{code} occurs {count} times" for code, count in counts.items())
        these = "these are codes" if len(codes) > 1 else "this is a code"
        warnings.warn(
            f"column {values.name!r}: {said}, far from the other values, {low:.4g} to {high:.4g}. "
            f"If {these} for missing values, read a file with {setting('na', [*counts])}, or write "
            f"NaN instead. Otherwise, pass {setting('columns', {values.name: rule.name})}",
            DataWarning,
            stacklevel=2,
        )
        return


def _candidates(distinct: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the smallest or largest values that are written as codes, and the other values."""
    for ends in (distinct, distinct[::-1]):
        is_code = [_CODE.fullmatch(f"{value:g}") is not None for value in ends[:-1]]
        for size in range(len([*itertools.takewhile(bool, is_code)]), 0, -1):
            yield ends[:size], ends[size:]


def column_of(series: nw.Series, kind: str | None) -> Column:
    """Describe a column.

    Args:
        series: The column.
        kind: Its kind; None to find it by the rules of `kinds`.

    Raises:
        DataError: If the kind does not apply; the message has the row of an invalid value.
    """
    name, rule = series.name, None if kind is None else KINDS.get(str(kind))
    kind_type = frames.type_of(series, None if rule is None else rule.accepts)
    if rule is not None and kind_type == "text" and "text" not in rule.accepts:
        frames.values_of(series, "date" if rule.name == "date" else "real")  # names the row
        raise DataError(f"column {name!r} has no values: it cannot be of kind {kind!r}")
    values, missing = frames.values_of(series, kind_type)
    observed = Values(kind_type, values[~missing], name)
    share = float(missing.mean())
    if kind is None:
        kinds.refuse_dates(observed)
        rule = kinds.kind_of(observed)
        _say_codes(observed, rule)
    if rule is None or kind_type not in rule.accepts:
        return Column(name, str(kind), kind_type)  # raises the error that lists the kinds
    if rule.has_levels or (rule.name == "constant" and len(observed.distinct)):
        frames.check_exact(series)
        levels = kinds.levels_of(observed)
        _say_equal(name, levels)
        zoned = kind_type == "date" and frames.have_zones(series)
        return Column(name, rule.name, kind_type, levels, missing=share, zoned=zoned)
    if not rule.in_model:
        return Column(name, rule.name, kind_type, missing=share)
    if not len(observed.observed):
        raise DataError(f"column {name!r} has no values: it cannot be of kind {kind!r}")
    origin, numbers = "", observed.observed
    if rule.name == "date":
        origin = kinds.origin_of(numbers)
        numbers = kinds.days(numbers, origin)
    else:
        # Raises an error that names the row of an invalid value.
        Column(name, rule.name, kind_type).checked_values(series)
    scaled = rule.scale(numbers)
    return Column(
        name,
        rule.name,
        kind_type,
        **_moments(scaled),
        low=float(numbers.astype(np.float32).min()),
        high=float(numbers.astype(np.float32).max()),
        missing=share,
        origin=origin,
        zoned=rule.name == "date" and frames.have_zones(series),
    )
