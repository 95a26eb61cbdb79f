"""`TableSchema`: the columns of a table, and their values as numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import narwhals as nw
import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import frames, kinds
from pyro_vae.data.sources.kinds import KINDS, Kind, Level, Values
from pyro_vae.part import Part

SHOWN = 6  # levels in a description


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

    def numbers(self, series: nw.Series) -> np.ndarray:
        """Return the values of a column as float64 numbers, NaN for missing ones.

        Raises:
            DataError: If a value is not of this column's kind; the message has its row.
        """
        values, missing = frames.values_of(series, self.values_type)
        if self.rule.has_levels:
            return self._codes(values, missing)
        if self.kind == "date":
            return kinds.days(values, self.origin)
        invalid = ~missing & ~self.rule.valid(np.where(missing, 0.5, values))
        if self.rule.name == "count":
            invalid = ~missing & ~self.rule.valid(np.where(missing, 0, values))
        self._check(invalid, values, f"expected {self.rule.expected}")
        return values

    def _codes(self, values: np.ndarray, missing: np.ndarray) -> np.ndarray:
        levels = np.array(self.levels, dtype=values.dtype)
        order = np.argsort(levels)
        filled = np.where(missing, levels[0], values)
        place = np.searchsorted(levels, filled, sorter=order).clip(max=len(levels) - 1)
        codes = order[place]
        known = f"the levels {', '.join(map(repr, self.levels[:SHOWN]))}"
        more = len(self.levels) - SHOWN
        self._check(
            levels[codes] != filled, values, f"expected {known}{f' and {more} more' * (more > 0)}"
        )
        return np.where(missing, np.nan, codes)

    def _check(self, invalid: np.ndarray, values: np.ndarray, expected: str) -> None:
        if invalid.any():
            row = int(invalid.argmax())
            raise DataError(
                f"column {self.name!r}, row {row}: {expected}, got {values[row].item()!r} "
                f"({int(invalid.sum())} such values). Rows are counted from 0, without the header"
            )

    def restored(self, numbers: np.ndarray) -> list[object]:
        """Return numbers of the model as values of the column, None for NaN."""
        missing = np.isnan(numbers)
        if self.kind == "date":
            return list(kinds.dates(numbers, self.origin))
        if self.rule.has_levels:
            codes = np.where(missing, 0, numbers).round().clip(0, len(self.levels) - 1)
            found: list[object] = [self.levels[int(code)] for code in codes]
        elif self.values_type == "integer":
            found = [int(value) for value in np.where(missing, 0, numbers).round()]
        else:
            found = numbers.tolist()
        return [None if lost else value for value, lost in zip(found, missing, strict=True)]


class TableSchema(Part):
    """The columns of a table.

    x has one entry for each column that is modelled, in the order of the table, as float32.

    Args:
        columns: The columns, including those that are left out.
        labels: Name of a column of classes that is not among `columns`, or None.
        class_names: Sorted values of that column, in the order of the labels.

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

    def __init__(
        self,
        columns: Sequence[Column],
        labels: str | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.columns = list(columns)
        self.labels, self.class_names = labels, tuple(class_names)
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

    def read(
        self,
        source: object,
        *,
        separator: str | None = None,
        encoding: str = "utf-8",
        na: Sequence[str] = (),
        key: str | None = None,
    ) -> Dataset:
        """Return a table as a dataset of this schema.

        Args:
            source: Path of a file, a frame, or a numpy array with these columns in order.
            separator: Separator of a text file, see `frames.read`.
            encoding: Encoding of a text file.
            na: Further texts that are read as missing in a text file.
            key: Name of the array, if the file has several.

        Raises:
            DataError: If a column is missing, or a value is of another type or level.
        """
        frame = frames.read(source, separator, encoding, na, key)
        if absent := [name for name in self.names() if name not in frame.columns]:
            raise DataError(
                f"the column {absent[0]!r} is missing ({len(absent)} in all); expected the columns "
                f"{', '.join(map(repr, self.names()[:10]))}"
            )
        numbers = np.stack([column.numbers(frame[column.name]) for column in self.modelled], axis=1)
        for i, column in enumerate(self.modelled):
            if not self.has_missing and np.isnan(numbers[:, i]).any():
                row = int(np.isnan(numbers[:, i]).argmax())
                raise DataError(
                    f"column {column.name!r}, row {row}: the value is missing, but the data of the "
                    "model had no missing values. Fill it, or train on data with missing values"
                )
        return Dataset(
            torch.from_numpy(numbers.astype(np.float32)),
            self._classes(frame),
            name=frames.name_of(source),
            schema=self,
        )

    def _classes(self, frame: nw.DataFrame) -> Tensor | None:
        """Return the classes of rows; None if the table has none, or a class that is not known."""
        if self.labels is None or self.labels not in frame.columns:
            return None
        texts, _ = frames.texts_of(frame[self.labels])
        number = {name: i for i, name in enumerate(self.class_names)}
        if not {*texts} <= number.keys():
            return None
        return torch.tensor([number[text] for text in texts])

    def restore(self, x: Tensor, like: object = None) -> Any:
        """Return rows of the model as a frame with the types and levels of the table.

        Args:
            x: Rows of shape `(num_data, num_modelled_columns)`, NaN for missing values.
            like: Frame that decides the library, pandas or polars; by default pandas.
        """
        numbers = x.detach().cpu().numpy().astype(np.float64)
        columns: dict[str, list[object]] = {
            column.name: column.restored(numbers[:, i]) for i, column in enumerate(self.modelled)
        }
        for column in self.columns:
            if column.kind == "constant" and column.levels:
                columns[column.name] = [column.levels[0]] * len(numbers)
        ordered = {c.name: columns[c.name] for c in self.columns if c.name in columns}
        return frames.frame_of(ordered, like)

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
        return f"{first} to {last}"
    return f"{column.low:.4g} to {column.high:.4g}" if column.rule.in_model else ""


def schema_of(
    frame: nw.DataFrame, given: Mapping[str, str] | None = None, labels: str | None = None
) -> TableSchema:
    """Find the kind of each column by the rules of `kinds`.

    Args:
        frame: The table.
        given: Kinds of columns by name, which override the rules.
        labels: Name of a column of classes, which is not modelled.

    Raises:
        DataError: If a name is unknown, a kind does not apply, or no column is modelled.
    """
    given = given or {}
    if unknown := sorted(given.keys() - {*frame.columns}):
        raise DataError(
            f"the table has no column {unknown[0]!r}; its columns are "
            f"{', '.join(map(repr, frame.columns[:20]))}"
        )
    class_names: list[str] = []
    if labels is not None:
        if labels not in frame.columns:
            raise DataError(f"labels={labels!r} is not a column; expected one of {frame.columns}")
        class_names = sorted({*frames.texts_of(frame[labels])[0]})
    columns = [_column(frame[name], given.get(name)) for name in frame.columns if name != labels]
    return TableSchema(columns, labels, class_names)


def _column(series: nw.Series, kind: str | None) -> Column:
    kind_type = frames.type_of(series)
    values, missing = frames.values_of(series, kind_type)
    observed = Values(kind_type, values[~missing])
    name, share = series.name, float(missing.mean())
    rule = KINDS[kind] if kind in KINDS else kinds.kind_of(observed) if kind is None else None
    if rule is None:
        return Column(name, str(kind), kind_type)  # raises the error that lists the kinds
    if rule.has_levels or (rule.name == "constant" and len(observed.distinct)):
        levels = kinds.levels_of(observed) if kind_type != "date" else []
        if rule.name == "binary" and len(levels) != 2:
            raise DataError(
                f"column {name!r} has {len(levels)} different values; expected two for the kind "
                "'binary'. The kind 'category' takes any number of levels"
            )
        return Column(name, rule.name, kind_type, levels, missing=share)
    if not rule.in_model:
        return Column(name, rule.name, kind_type, missing=share)
    origin = ""
    numbers = observed.observed
    if rule.name == "date":
        origin = str(observed.distinct[0].astype("datetime64[us]").item().isoformat())
        numbers = kinds.days(numbers, origin)
    column = Column(name, rule.name, kind_type, missing=share, origin=origin)
    column.numbers(series)  # raises an error that names the row of an invalid value
    scaled = rule.scale(numbers)
    return Column(
        name,
        rule.name,
        kind_type,
        shift=float(scaled.mean()),
        unit=float(scaled.std()) or 1.0,
        low=float(numbers.min()),
        high=float(numbers.max()),
        missing=share,
        origin=origin,
    )
