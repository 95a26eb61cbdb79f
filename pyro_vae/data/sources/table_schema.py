"""`TableSchema`: the columns of a table, and their values as numbers."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Self

import narwhals as nw
import numpy as np
import torch
from narwhals.typing import IntoDataFrame
from torch import Tensor

from pyro_vae.arguments import Count, CountOrZero, checked, setting
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError, DataWarning
from pyro_vae.data.sources import filling, frames
from pyro_vae.data.sources.columns import SHOWN, Column, column_of
from pyro_vae.data.sources.kinds import MAX_LABELS
from pyro_vae.data.sources.labels import classes_in, codes_of, names_in
from pyro_vae.data.sources.text_files import TextForm
from pyro_vae.part import Part


class TableSchema(Part):
    """The columns of a table.

    x has one entry for each column that is modelled, in the order of the table, as float32.

    Args:
        columns: The columns, including those that are left out.
        labels: Name of a column of classes that is not among `columns`, or None.
        class_names: Sorted values of that column, in the order of the labels.
        context: Columns that are context of a conditional model. They are not among `columns`.

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
        context: Sequence[Column] = (),
    ) -> None:
        super().__init__()
        self.columns, self.given = list(columns), list(context)
        self.labels, self.class_names = labels, tuple(class_names)
        self.modelled = [column for column in self.columns if column.rule.in_model]
        if not self.modelled:
            left_out = ", ".join(f"{column.name!r}: {column.kind}" for column in self.columns[:10])
            message = f"the table has no column to model ({left_out})"
            if varied := [c.name for c in self.columns if c.kind != "constant"]:
                way_out = setting("columns", {varied[0]: "category"})
                message += f". Give the kind of a column, as in {way_out}"
            raise DataError(message)

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

    @checked
    def read(
        self,
        source: object,
        *,
        key: str | None = None,
        separator: str | None = None,
        encoding: str = "utf-8",
        na: Sequence[str] = (),
        decimal: str = ".",
        thousands: str | None = None,
        skip: CountOrZero = 0,
    ) -> Dataset:
        """Return a table as a dataset of this schema.

        Args:
            source: Path of a file, a frame, or a numpy array with these columns in order.
            key: Name of the array, if the file has several.
            separator: Separator of a text file; by default found in its first line.
            encoding: Encoding of a text file.
            na: Further texts that are read as missing in a text file.
            decimal: Decimal point of the numbers in a text file.
            thousands: Separator of thousands in a text file.
            skip: Number of lines of a text file before the names of the columns.

        Raises:
            DataError: If a column is missing, or a value is of another type or level.
        """
        form = TextForm(separator, encoding, na, decimal, thousands, skip)
        as_text = [column.name for column in self.columns if column.values_type == "text"]
        with frames.errors_of(source):
            return self._read(frames.read(source, form, key, as_text), source)

    def _read(self, table: nw.DataFrame, source: object) -> Dataset:
        frame = self._checked_names(table, is_array=isinstance(source, np.ndarray))
        self._say_changes(frame)
        x = np.stack([column.numbers(frame[column.name]) for column in self.modelled], axis=1)
        if not self.has_missing and (lost := np.isnan(x)).any():
            row, place = (int(found[0]) for found in lost.nonzero())
            raise DataError(
                f"column {self.modelled[place].name!r}, row {row}: the value is missing, but the "
                "data of the model had no missing values. Fill it, or train on data with missing "
                "values"
            )
        classes = self._classes(frame)
        return Dataset(
            torch.from_numpy(x),
            classes,
            name=frames.name_of(source),
            schema=self,
            class_names=() if classes is None else self.class_names,
            context=(self._encoded(frame),) if self.given else (),
            identifiers=frames.identifiers(
                frame, [column.name for column in self.columns if column.kind == "identifier"]
            ),
        )

    def _say_changes(self, frame: nw.DataFrame) -> None:
        """Warn of columns that were constant in the data of the schema and have other values."""
        for column in self.columns:
            if column.kind != "constant" or not column.levels or column.name not in frame.columns:
                continue
            series = frame[column.name]
            try:
                values, missing = frames.values_of(series, column.values_type)
                column.say_zone(series, missing)
            except DataError:  # of another type
                values, missing = np.array(series.to_list(), object), frames.missing_of(series)
            known = np.array(column.levels, dtype=values.dtype)
            if (changed := ~missing & ~np.isin(values, known)).any():
                row = int(changed.argmax())
                warnings.warn(
                    f"column {column.name!r}, row {row}: expected {column.shown}, the only value "
                    f"in the data of the model, got {series[row]} ({int(changed.sum())} such rows)."
                    " The column is not in the model, so this does not change its results. Train "
                    "on data in which the column varies if it matters",
                    DataWarning,
                    stacklevel=5,  # the caller of `read`, which has a decorator
                )

    def _encoded(self, frame: nw.DataFrame) -> Tensor:
        return torch.cat([column.encoded(frame[column.name]) for column in self.given], dim=-1)

    def context(self, num_data: Count = 1, /, **values: object) -> Tensor:
        """Return the same context for some data, as the model takes it.

        Args:
            num_data: Number of data. It is given by position, so any name can be that of a column.
            values: Value of each column of the context, by its name.

        Returns:
            Context of shape `(num_data, context_size)`.

        Raises:
            DataError: If a column is missing or unknown, or a value is not of its kind.

        See also: `pyro_vae.ConditionalVAE`.
        """
        names = [column.name for column in self.given]
        if {*values} != {*names}:
            raise DataError(f"expected a value for each of {names}, got {sorted(values)}")
        row = nw.from_dict({name: [values[name]] for name in names}, backend="pandas")
        return self._encoded(row).expand(num_data, -1)

    def _classes(self, frame: nw.DataFrame) -> Tensor | None:
        """Return the classes of rows; None if the table has none, or a class that is not known."""
        if self.labels is None or self.labels not in frame.columns:
            return None
        names = names_in(frame[self.labels])
        return codes_of(names, self.class_names, f"column {self.labels!r}")

    def _checked_names(self, frame: nw.DataFrame, is_array: bool) -> nw.DataFrame:
        known = [column.name for column in (*self.columns, *self.given)]
        if is_array and self.given:
            raise DataError("expected a table with names, since some of its columns are context")
        if is_array and len(known) == len(frame.columns):
            return frame.rename(dict(zip(frame.columns, known, strict=True)))
        needed = [*self.names(), *(column.name for column in self.given)]
        frames.check_columns(frame, needed, {*known, self.labels or ""})
        return frame

    def standardized_by(self, data: Dataset) -> Self:
        """Return the schema with the shift and unit of other rows, such as the training rows."""
        x = data.sample().cpu().double().numpy()
        numbers = dict(zip(self.names(), x.T, strict=True))
        columns = [
            column.standardized_by(numbers[column.name]) if column.name in numbers else column
            for column in self.columns
        ]
        return type(self)(columns, self.labels, self.class_names, self.given)

    def restore(
        self, x: Tensor, like: object = None, context: Tensor | None = None
    ) -> np.ndarray | IntoDataFrame:
        """Return rows of the model as a frame with the types and levels of the table.

        Args:
            x: Rows of shape `(num_data, num_modelled_columns)`, NaN for missing values.
            like: Frame that decides the library, pandas or polars; by default pandas. For a numpy
                array, the result is one.
            context: Context of each row, which is added as columns.

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
                columns[column.name] = np.full(len(numbers), column.constant)
        ordered = {c.name: columns[c.name] for c in self.columns if c.name in columns}
        if context is not None:
            parts = context.cpu().double().split([c.context_size for c in self.given], dim=-1)
            ordered |= {
                c.name: c.decoded(y.numpy()) for c, y in zip(self.given, parts, strict=True)
            }
        frame = frames.frame_of(ordered, like)
        zoned = [c.name for c in (*self.columns, *self.given) if c.zoned and c.name in ordered]
        return frames.in_utc(frame, zoned) if zoned and frames.is_frame(frame) else frame

    def center(self, draws: Tensor) -> Tensor:
        """Return the median of each value over draws, or the most frequent level, as `center`.

        Args:
            draws: Rows of the model, shape `(num_draws, num_data, num_modelled_columns)`.
        """
        return center(draws, [column.num_levels for column in self.modelled])

    def complete(self, source: object, x: Tensor) -> np.ndarray | IntoDataFrame:
        """Return a table with its missing values replaced by those of x.

        Columns that are not modelled, and observed values, are copied. Columns of integers that
        are filled have 64 bits, since a model of their values knows no narrower bounds.

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
                values = column.restored(numbers[rows, i])
                filled.append(filling.filled(series, rows, values, column.levels))
        completed = frame.clone()  # draws and source would share the memory of other columns
        completed = completed.with_columns(*filled) if filled else completed
        return completed.to_numpy() if is_array else completed.to_native()

    def rows(self) -> list[dict[str, str]]:
        """Return the description of the table: one row for each column."""
        parts = ("" if column.rule.in_model else ", left out" for column in self.columns)
        roles = [*zip(self.columns, parts, strict=True), *((c, ", context") for c in self.given)]
        return [
            {
                "column": column.name,
                "kind": f"{column.kind}{role}",
                "missing": f"{column.missing:.1%}" if column.missing else "none",
                "values": column.shown,
            }
            for column, role in roles
        ]

    def notes(self, data: Dataset, given: Collection[str] = ()) -> list[str]:
        """Return sentences about whole numbers of few values, which may be labels or numbers.

        Args:
            data: Rows of the table.
            given: Names of columns with a kind on request, which need no note.
        """
        found: dict[str, list[str]] = {"category": [], "count": []}
        for column, x in zip(self.modelled, data.sample().unbind(-1), strict=True):
            if column.name in given or column.values_type == "text":
                continue
            if column.kind == "category":
                found["count"].append(column.name)
            elif column.kind in ("count", "real"):
                values = x[~x.isnan()].unique()
                if len(values) <= MAX_LABELS and bool((values == values.round()).all()):
                    found["category"].append(column.name)
        return [
            f"{', '.join(map(repr, names[:SHOWN]))}{f' and {more} more' if more > 0 else ''}: "
            f"{_NOTES[kind]}, pass {setting('columns', {names[0]: kind})}"
            for kind, names in found.items()
            if (more := len(names) - SHOWN) > -SHOWN
        ]


_NOTES = {
    "category": f"numbers with at most {MAX_LABELS} different values. If they are labels",
    "count": f"labels, since all of at most {MAX_LABELS} whole numbers are frequent. If they are "
    "numbers",
}


def center(draws: Tensor, num_levels: Sequence[int]) -> Tensor:
    """Return the median of numbers over draws, or the most frequent level.

    The median of an even number of draws is the mean of the two in the middle. Of two levels that
    are equally frequent, the smaller one is returned.

    Args:
        draws: Rows of numbers without NaN, shape `(num_draws, num_data, num_columns)`.
        num_levels: Number of levels of each column, 0 for numbers.

    Returns:
        Rows of shape `(num_data, num_columns)`.
    """
    ordered, count = draws.sort(dim=0).values, len(draws)
    found = ordered[(count - 1) // 2].lerp(ordered[count // 2], 0.5)
    has_levels = torch.tensor(num_levels) > 0
    found[:, has_levels] = draws[..., has_levels].mode(dim=0).values
    return found


def schema_of(
    frame: nw.DataFrame,
    given: Mapping[str, str] | None = None,
    labels: str | None = None,
    context: Sequence[str] = (),
) -> TableSchema:
    """Find the kind of each column by the rules of `kinds`.

    Args:
        frame: The table.
        given: Kinds of columns by name, which override the rules.
        labels: Name of a column of classes, which is not modelled.
        context: Names of columns that are context of a conditional model.

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
    for option, names in (("labels", [] if labels is None else [labels]), ("context", context)):
        if unknown := [name for name in names if name not in frame.columns]:
            raise DataError(
                f"{setting(option, unknown[0])} is not a column; expected one of {frame.columns}"
            )
    class_names = [] if labels is None else classes_in(frame[labels])
    found = {name: column_of(frame[name], given.get(name)) for name in frame.columns}
    if unused := [name for name in context if not found[name].rule.in_model]:
        raise DataError(
            f"column {unused[0]!r}: {found[unused[0]].kind} is no kind of context. Give another "
            f"kind, as in {setting('columns', {unused[0]: 'category'})}"
        )
    columns = [found[name] for name in frame.columns if name not in (labels, *context)]
    return TableSchema(columns, labels, class_names, [found[name] for name in context])
