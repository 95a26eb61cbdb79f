"""`TableSchema`: the columns of a table, and their values as numbers."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import narwhals as nw
import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources import frames, kinds
from pyro_vae.data.sources.kinds import KINDS, Kind, Level, Values
from pyro_vae.part import Part

SHOWN = 6  # levels in a description
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

    Raises:
        DataError: If the kind is unknown or does not apply to the type.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        type: str = "real",
        levels: Sequence[Level] = (),
        shift: float = 0.0,
        unit: float = 1.0,
        low: float = 0.0,
        high: float = 0.0,
        missing: float = 0.0,
        origin: str = "",
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
        values = kinds.days(given, self.origin) if self.kind == "date" else given
        with np.errstate(over="ignore"):
            x = values.astype(np.float32)
        valid = missing | (self.rule.valid(values) & self.rule.valid(x))
        if self.is_open:
            valid &= missing | ((x > 0) & (x < 1))
        self._check(~valid, given, f"expected {self._expected}")
        return values, x

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

    def _codes(self, values: np.ndarray, missing: np.ndarray) -> np.ndarray:
        import pandas as pd

        codes = pd.Index(np.array(self.levels, dtype=values.dtype)).get_indexer(values)
        known = f"the levels {', '.join(map(repr, self.levels[:SHOWN]))}"
        more = len(self.levels) - SHOWN
        self._check(
            ~missing & (codes < 0),
            values,
            f"expected {known}{f' and {more} more' * (more > 0)}",
        )
        return np.where(missing, np.nan, codes)

    def _check(self, invalid: np.ndarray, values: np.ndarray, expected: str) -> None:
        if invalid.any():
            row = int(invalid.argmax())
            raise DataError(
                f"column {self.name!r}, row {row}: {expected}, got {_plain(values[row])!r} "
                f"({int(invalid.sum())} such values). Rows are counted from 0, without the header"
            )

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
            found = filled.round().clip(-(2.0**63), 2.0**63 - 1024).astype(np.int64)
        elif self.values_type == "boolean":
            found = filled > 0.5
        if self.kind == "proportion":
            found = filled.clip(0, 1)
        if self.kind == "count":
            found = filled = filled.round()
        if self.values_type == "real":
            return np.where(missing, np.nan, found)
        if missing.any():
            found = found.astype(object)
            found[missing] = None
        return found


def _plain(value: Any) -> object:
    return value.item() if isinstance(value, np.generic) else value


class TableSchema(Part):
    """The columns of a table.

    x has one entry for each column that is modelled, in the order of the table, as float32.

    Args:
        columns: The columns, including those that are left out.

    Raises:
        DataError: If no column is modelled.

    Example:
        >>> import pandas as pd
        >>> import pyro_vae as pv
        >>> frame = pd.DataFrame({"age": [31.5, 42.0, 28.5], "member": ["yes", "no", "yes"]})
        >>> schema = pv.data.open(frame).schema
        >>> schema.read(frame)[:]
        tensor([[31.5000,  1.0000],
                [42.0000,  0.0000],
                [28.5000,  1.0000]])
        >>> schema.restore(schema.read(frame)[:])["member"].tolist()
        ['yes', 'no', 'yes']

    See also: `pyro_vae.data.open`, `pyro_vae.suggest`.
    """

    content: ClassVar[str] = "table"

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.columns = list(columns)
        self.modelled = [column for column in self.columns if column.rule.in_model]
        if not self.modelled:
            left_out = ", ".join(f"{column.name!r}: {column.kind}" for column in self.columns[:10])
            raise DataError(
                f"the table has no column to model ({left_out}). Give the kind of a column, as in "
                "columns={'name': 'category'}"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one row: the number of columns that are modelled."""
        return (len(self.modelled),)

    @property
    def has_missing(self) -> bool:
        """Whether values were missing in the data of the schema."""
        return any(column.missing > 0 for column in self.modelled)

    def names(self) -> tuple[str, ...]:
        """Return the names of the columns that are modelled."""
        return tuple(column.name for column in self.modelled)

    def read(self, source: object) -> Dataset:
        """Return a table as a dataset of this schema.

        Args:
            source: Path of a file, a frame, or a numpy array with these columns in order.

        Raises:
            DataError: If a column is missing, or a value is of another type or level.
        """
        with frames.errors_of(source):
            return self._read(frames.read(source), source)

    def _read(self, table: nw.DataFrame, source: object) -> Dataset:
        frame = self._checked_names(table, is_array=isinstance(source, np.ndarray))
        x = np.stack([column.numbers(frame[column.name]) for column in self.modelled], axis=1)
        if not self.has_missing and (lost := np.isnan(x)).any():
            row, place = (int(found[0]) for found in lost.nonzero())
            raise DataError(
                f"column {self.modelled[place].name!r}, row {row}: the value is missing, but the "
                "data of the model had no missing values. Fill it, or train on data with missing "
                "values"
            )
        return Dataset(torch.from_numpy(x), name=frames.name_of(source), schema=self)

    def _checked_names(self, frame: nw.DataFrame, is_array: bool) -> nw.DataFrame:
        known = [column.name for column in self.columns]
        if is_array and len(known) == len(frame.columns):
            return frame.rename(dict(zip(frame.columns, known, strict=True)))
        if absent := [name for name in self.names() if name not in frame.columns]:
            raise DataError(
                f"the column {absent[0]!r} is missing ({len(absent)} in all); expected the columns "
                f"{', '.join(map(repr, self.names()[:10]))}, got "
                f"{', '.join(map(repr, frame.columns[:10]))}"
            )
        if new := [name for name in frame.columns if name not in known]:
            warnings.warn(
                f"columns that are not in the schema are ignored: {', '.join(map(repr, new[:10]))}",
                DataWarning,
                stacklevel=3,
            )
        return frame

    def restore(self, x: Tensor, like: object = None) -> Any:
        """Return rows of the model as a frame with the types and levels of the table.

        Args:
            x: Rows of shape `(num_data, num_modelled_columns)`, NaN for missing values.
            like: Frame that decides the library, pandas or polars; by default pandas. For a numpy
                array, the result is one.

        Raises:
            DataError: If x has another shape.
        """
        numbers = x.detach().cpu().numpy().astype(np.float64)
        if not len(self.modelled) == numbers.shape[-1] or numbers.ndim != 2:
            raise DataError(
                f"expected rows of shape (num_data, {len(self.modelled)}), got {tuple(x.shape)}"
            )
        columns: dict[str, np.ndarray] = {
            column.name: column.restored(numbers[:, i]) for i, column in enumerate(self.modelled)
        }
        for column in self.columns:
            if column.kind == "constant" and column.levels:
                columns[column.name] = np.full(len(numbers), column.levels[0])
        ordered = {c.name: columns[c.name] for c in self.columns if c.name in columns}
        return frames.frame_of(ordered, like)

    def center(self, draws: Tensor) -> Tensor:
        """Return the median of each value over draws, or the most frequent level.

        Args:
            draws: Rows of the model, shape `(num_draws, num_data, num_modelled_columns)`.
        """
        found = draws.median(dim=0).values
        levels = [i for i, column in enumerate(self.modelled) if column.rule.has_levels]
        found[:, levels] = draws[..., levels].mode(dim=0).values
        return found

    def complete(self, source: object, x: Tensor) -> Any:
        """Return a table with its missing values replaced by those of x.

        Columns that are not modelled, and observed values, are unchanged.

        Args:
            source: Table of this schema: a path, a frame or an array.
            x: Complete rows of the model, shape `(num_data, num_modelled_columns)`.
        """
        is_array = isinstance(source, np.ndarray)
        frame = self._checked_names(frames.read(source), is_array)
        numbers = x.detach().cpu().numpy().astype(np.float64)
        filled = []
        for i, column in enumerate(self.modelled):
            series = frame[column.name]
            rows = np.flatnonzero(frames.missing_of(series))
            if len(rows):
                filled.append(frames.filled(series, rows, column.restored(numbers[rows, i])))
        completed = frame.with_columns(*filled) if filled else frame
        return completed.to_numpy() if is_array else completed.to_native()

    def rows(self) -> list[dict[str, str]]:
        """Return the description of the table: one row for each column."""
        return [
            {
                "column": column.name,
                "kind": column.kind if column.rule.in_model else f"{column.kind}, left out",
                "missing": f"{column.missing:.1%}" if column.missing else "none",
                "values": _shown(column),
            }
            for column in self.columns
        ]


def _shown(column: Column) -> str:
    if column.levels:
        more = len(column.levels) - SHOWN
        known = ", ".join(map(str, column.levels[:SHOWN]))
        return known + (f", and {more} more" if more > 0 else "")
    if column.kind == "date":
        first, last = kinds.dates(np.array([column.low, column.high]), column.origin)
        unit = "datetime64[s]" if "T" in column.origin else "datetime64[D]"
        return f"{first.astype(unit)} to {last.astype(unit)}"
    return f"{column.low:.4g} to {column.high:.4g}" if column.rule.in_model else ""


def schema_of(frame: nw.DataFrame, given: Mapping[str, str] | None = None) -> TableSchema:
    """Find the kind of each column by the rules of `kinds`.

    Args:
        frame: The table.
        given: Kinds of columns by name, which override the rules.

    Raises:
        DataError: If a name is unknown, a kind does not apply, or no column is modelled.
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise DataError(
            f"expected columns as kinds by name, such as {{'age': 'real'}}, got {given!r}"
        )
    if unknown := sorted(given.keys() - {*frame.columns}):
        raise DataError(
            f"the table has no column {unknown[0]!r}; its columns are "
            f"{', '.join(map(repr, frame.columns[:20]))}"
        )
    return TableSchema([_column(frame[name], given.get(name)) for name in frame.columns])


def _column(series: nw.Series, kind: str | None) -> Column:
    name, rule = series.name, None if kind is None else KINDS.get(str(kind))
    kind_type = frames.type_of(series, as_text=rule is not None and "text" in rule.accepts)
    if rule is not None and kind_type == "text" and "text" not in rule.accepts:
        frames.values_of(series, "date" if rule.name == "date" else "real")  # names the row
        raise DataError(f"column {name!r} has no values: it cannot be of kind {kind!r}")
    values, missing = frames.values_of(series, kind_type)
    observed = Values(kind_type, values[~missing])
    share = float(missing.mean())
    if kind is None:
        rule = kinds.kind_of(observed)
    if rule is None or kind_type not in rule.accepts:
        return Column(name, str(kind), kind_type)  # raises the error that lists the kinds
    if rule.has_levels or (rule.name == "constant" and len(observed.distinct)):
        levels = kinds.levels_of(observed) if kind_type != "date" else []
        return Column(name, rule.name, kind_type, levels, missing=share)
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
        shift=float(scaled.mean()),
        unit=float(scaled.std()) or 1.0,
        low=float(numbers.astype(np.float32).min()),
        high=float(numbers.astype(np.float32).max()),
        missing=share,
        origin=origin,
    )
