"""`ColumnOrder`: the columns of a frame of numbers, or the genes of a matrix, in the order of x."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import narwhals as nw
import numpy as np
import torch
from narwhals.typing import IntoDataFrame
from torch import Tensor

from pyro_vae.data.any_data import Data, as_dataset
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.errors import DataError
from pyro_vae.data.sources import array_files, counts, frames, tables
from pyro_vae.data.sources.columns import Column
from pyro_vae.data.sources.schema import Schema
from pyro_vae.data.sources.table_schema import TableSchema
from pyro_vae.data.sources.text_files import TextForm
from pyro_vae.part import Part

# Names that libraries give to columns without a name, followed by the number of the column.
_BY_DEFAULT = re.compile(r"(|x|V|f|c|column_?|Column ?|Unnamed: ?)\d+")


class ColumnOrder(Part):
    """The names of the columns of x, by which frames and matrices are read.

    `fit` gives it to a pair without a schema, if the training data have names of columns. Arrays
    and tensors have no names and are used as they are.

    Args:
        columns: Names of the columns, in the order of x.
        coded: Columns in which x is not the number in the table: levels, dates.
    """

    content: ClassVar[str] = "array"

    def __init__(self, columns: Sequence[str], coded: Sequence[Column] = ()) -> None:
        super().__init__()
        self.columns, self.coded = tuple(columns), list(coded)

    @classmethod
    def of(cls, schema: Schema | None) -> Self | None:
        """Return the order of the columns in data of a schema; None if they have no names."""
        if schema is None or isinstance(schema, cls) or not is_named(schema.names()):
            return schema if isinstance(schema, cls) else None
        columns: list[Column] = getattr(schema, "modelled", [])
        return cls(schema.names(), [column for column in columns if not _is_plain(column)])

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one row: the number of columns."""
        return (len(self.columns),)

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
        skip: int = 0,
    ) -> Dataset:
        """Return other data with these columns, in this order. Files of tables have a schema.

        Args:
            source: Frame, sparse matrix, AnnData, or path of one; or an array, by position.
            key: Name of the array, if a file has several.
            separator: Separator of a text file, as for `TableSchema.read`.
            encoding: Encoding of a text file.
            na: Further texts that are read as missing in a text file.
            decimal: Decimal point of the numbers in a text file.
            thousands: Separator of thousands in a text file.
            skip: Number of lines of a text file before the names of the columns.

        Raises:
            DataError: If a column is missing, or has other values than numbers.

        Warns:
            DataWarning: If there are other columns.
        """
        path = Path(source) if isinstance(source, str | os.PathLike) else None
        if frames.is_matrix(source) or (path is not None and counts.READER.accepts(path)):
            data = counts.CountsSchema(self.columns, "real").read(source)
        elif frames.is_frame(source) or (path is not None and tables.READER.accepts(path)):
            form = TextForm(separator, encoding, na, decimal, thousands, skip)
            with frames.errors_of(source):
                table = frames.read(source, form)
                x = self._numbers(table)
            if path is not None:
                return Dataset(x, name=frames.name_of(source), schema=self._described(table))
            data = Dataset(x)
        else:
            loaded = source
            if path is not None:
                loaded = np.asarray(array_files.load(path, key), np.float32)
            data = as_dataset(cast(Data, loaded))
        return Dataset(data.values, name=frames.name_of(source), schema=self)

    def _described(self, table: nw.DataFrame) -> TableSchema:
        """Return a schema of the same numbers for a file, with which its values can be filled."""
        coded = {column.name: column for column in self.coded}
        named = is_named(table.columns)
        return TableSchema(
            [
                coded.get(name)
                or Column(
                    name, "real", frames.type_of(table[name if named else given]), missing=1.0
                )
                for name, given in zip(self.columns, table.columns, strict=not named)
            ]
        )

    def _numbers(self, frame: nw.DataFrame) -> Tensor:
        if is_named(frame.columns):
            advice = ". An array, such as frame.to_numpy(), is read by position"
            frames.check_columns(frame, self.columns, self.columns, advice)
        elif len(frame.columns) == len(self.columns):
            frame = frame.rename(dict(zip(frame.columns, self.columns, strict=True)))
        else:
            raise DataError(
                f"expected {len(self.columns)} columns, got {len(frame.columns)} without names"
            )
        coded = {column.name: column for column in self.coded}
        numbers = [
            coded[name].numbers(frame[name]) if name in coded else frames.numbers_in(frame[name])
            for name in self.columns
        ]
        return torch.from_numpy(np.stack(numbers, axis=1))

    def standardized_by(self, data: Dataset) -> Self:
        """Return the same order, which has neither shift nor unit."""
        return self

    def restore(self, x: Tensor) -> np.ndarray:
        """Return data of the model as a numpy array."""
        return x.detach().cpu().numpy()

    def names(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return self.columns

    def rows(self) -> list[dict[str, str]]:
        """Return the names and kinds of the columns: one row for each of them."""
        kinds = {column.name: column.kind for column in self.coded}
        return [{"column": name, "kind": kinds.get(name, "number")} for name in self.columns]


def read_numbers(frame: IntoDataFrame, name: str) -> Dataset:
    """Return a frame of numbers as float32, unchanged, with NaN for missing values.

    Raises:
        DataError: If a column has other values than numbers or truth values, or numbers that
            float32 does not have.
    """
    read = frames.read(frame)
    x = np.stack([frames.numbers_in(read[column]) for column in read.columns], axis=1)
    order = ColumnOrder(read.columns) if is_named(read.columns) else None
    return Dataset(torch.from_numpy(x), name=name, schema=order)


def is_named(columns: Sequence[str]) -> bool:
    """Return whether columns have names of their own, not those that libraries give by default."""
    return any(_BY_DEFAULT.fullmatch(name) is None for name in columns)


def check_agreement(known: Schema, given: Schema) -> None:
    """Check that the entries of x mean the same in data of two schemas.

    Args:
        known: Schema of a model.
        given: Schema of data.

    Raises:
        DataError: If columns are in another order, or have other levels.
    """
    advice = "pass them in the form of the source, or read them by the schema of the model, as in "
    advice += "vae.schema.read(source)"
    names, others = known.names(), given.names()
    if is_named(names) and is_named(others) and (*names,) != (*others,):
        raise DataError(
            f"the data have other columns than the model, or another order: expected "
            f"{', '.join(map(repr, names[:10]))}, got {', '.join(map(repr, others[:10]))}. To "
            f"order them, {advice}"
        )
    columns: Any = zip(names, _coded(known), _coded(given), strict=False)
    for name, column, other in columns:
        if not _same_codes(column, other):
            raise DataError(
                f"column {name!r} of the data has other levels or another first date than in the "
                f"model, so its numbers mean something else. To convert the data, {advice}"
            )
    if _context(known) != _context(given):
        raise DataError(
            f"the context of the data has other columns, levels or units than in the model: "
            f"{advice}"
        )


def _context(schema: Schema) -> object:
    """Return what decides the numbers of the context."""
    given: list[Column] = getattr(schema, "given", [])
    found: list[object] = [(c.name, c.levels, c.origin, c.zoned, c.shift, c.unit) for c in given]
    return found or list(getattr(schema, "columns", ()) if schema.content == "counts" else ())


def _coded(schema: Schema) -> list[Column | None]:
    """Return the column of each entry of x; None for one of plain numbers."""
    columns: list[Column] = getattr(schema, "modelled", getattr(schema, "coded", []))
    coded = {column.name: column for column in columns if not _is_plain(column)}
    return [coded.get(name) for name in schema.names()]


def _is_plain(column: Column) -> bool:
    """Return whether x is the number in the table."""
    if column.kind == "date":
        return False
    return not column.num_levels or column.levels == [*range(column.num_levels)]


def _same_codes(column: Column | None, other: Column | None) -> bool:
    if column is None or other is None:
        return column is other
    if (column.origin, column.zoned) != (other.origin, other.zoned):
        return False
    shorter = min(len(column.levels), len(other.levels))
    return column.levels[:shorter] == other.levels[:shorter]
